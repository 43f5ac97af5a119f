"""Requests for calls to models, and answers that come in signed pieces."""

import hashlib
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import ErrorKind, Fault, InvalidMessage, ProtocolError
from loremesh.primitives import KIB, Hash, Millis, PeerId, Signature
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.content.paragraph import fold_paragraph
from loremesh.protocol.llm import (
    CLOCK_SKEW,
    LONGEST_CALL,
    MAX_CONTENT_BYTES,
    ChatMessage,
    Delta,
    LlmError,
    LlmRequest,
    Progress,
    SignedRequest,
    SignedServing,
    Transcript,
    check_progress,
    check_request,
    check_serving,
    kind_of,
    prompt_digest,
    sign_request,
    sign_serving,
    text_digest,
    whole_characters,
)
from loremesh.testing.builders import CAT, START
from loremesh.testing.calls import ASKED, CLIENT, EXECUTOR, PIECES, PRICE, answer, chat_request


def taken(request: LlmRequest, now: int = START) -> LlmRequest:
    return check_request(sign_request(CLIENT, request), EXECUTOR.peer_id, CLIENT.peer_id, Millis(now))


def refused(request: LlmRequest, now: int = START) -> Fault:
    with pytest.raises(InvalidMessage) as refusal:
        taken(request, now)
    return refusal.value.fault


def test_a_request_is_taken_by_the_executor_it_names_from_the_client_it_names() -> None:
    request = chat_request()
    assert taken(request) == request


def test_a_request_that_another_client_sends_on_is_refused() -> None:
    signed = sign_request(CLIENT, chat_request())
    with pytest.raises(InvalidMessage) as refusal:
        check_request(signed, EXECUTOR.peer_id, CAT.peer_id, START)
    assert refusal.value.fault is Fault.WRONG_SENDER


def test_a_request_for_another_executor_is_refused() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        check_request(sign_request(CLIENT, chat_request()), CAT.peer_id, CLIENT.peer_id, START)
    assert refusal.value.fault is Fault.WRONG_SENDER


@pytest.mark.parametrize("signature", [bytes(65), CAT.sign(Hash(bytes(32)))])
def test_a_request_that_its_client_did_not_sign_is_refused(signature: bytes) -> None:
    forged = SignedRequest(chat_request(), Signature(signature))
    with pytest.raises(InvalidMessage) as refusal:
        check_request(forged, EXECUTOR.peer_id, CLIENT.peer_id, START)
    assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_one_changed_byte_anywhere_in_a_request_is_refused() -> None:
    good = encode(sign_request(CLIENT, chat_request(response_format='{"type":"json_object"}', stop=("END",))))
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            check_request(decode(SignedRequest, bytes(changed)), EXECUTOR.peer_id, CLIENT.peer_id, START)


def test_a_request_holds_until_it_expires_and_no_longer() -> None:
    request = chat_request()
    assert taken(request, request.expires) == request
    assert refused(request, request.expires + 1) is Fault.EXPIRED


def test_a_clock_may_be_a_minute_ahead() -> None:
    request = chat_request()
    assert taken(request, START - CLOCK_SKEW) == request
    assert refused(request, START - CLOCK_SKEW - 1) is Fault.FROM_THE_FUTURE


@pytest.mark.parametrize("life", [0, -1, LONGEST_CALL + 1])
def test_a_request_lives_ten_minutes_at_most(life: int) -> None:
    assert refused(chat_request(expires=Millis(START + life))) is Fault.OUT_OF_RANGE


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": ()},
        {"messages": (ChatMessage("tool", "x"),)},
        {"messages": (ChatMessage("", "x"),)},
        {"continues": 1},
        {"stop": ("",)},
        {"response_format": "{"},
        {"response_format": "[]"},
        {"response_format": "null"},
        {"response_format": "[" * 5000},
    ],
)
def test_what_cannot_be_asked_is_refused(wrong: dict[str, Any]) -> None:
    assert refused(chat_request(**wrong)) is Fault.WRONG_SHAPE


def test_an_answer_that_was_begun_can_be_continued() -> None:
    request = chat_request(messages=(*ASKED, ChatMessage("assistant", "Nobody")), continues=1)
    assert taken(request) == request


def test_all_messages_together_have_512_kib_at_most() -> None:
    half = ChatMessage("user", "é" * (MAX_CONTENT_BYTES // 4))
    request = chat_request(messages=(half, half))
    assert taken(decode(LlmRequest, encode(request))) == request
    assert refused(chat_request(messages=(half, half, ChatMessage("user", "x")))) is Fault.TOO_LARGE


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"temperature": (2001,)},
        {"max_price": 10**12 + 1},
        {"fold_words": 141},
    ],
)
def test_numbers_beyond_their_range_do_not_decode(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        decode(LlmRequest, encode(chat_request(**wrong)))
    assert refusal.value.fault is Fault.OUT_OF_RANGE


def test_what_people_and_models_write_is_not_normalised() -> None:
    request = chat_request(messages=(ChatMessage("user", "cafe\u0301 \u212b"),))
    assert taken(decode(LlmRequest, encode(request))) == request


# ---- The answer -----------------------------------------------------------------------------------------------------


def test_both_sides_have_the_same_transcript_after_every_piece() -> None:
    theirs, deltas = answer(chat_request())
    ours = Transcript(chat_request().id, PRICE)
    assert [ours.accept(delta, EXECUTOR.peer_id) for delta in deltas] == list(PIECES)
    assert (ours.text, ours.progress, ours.signature) == (theirs.text, theirs.progress, theirs.signature)


@given(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=8))
def test_progress_says_what_was_delivered_however_it_was_cut(pieces: list[str]) -> None:
    transcript, _ = answer(chat_request(), pieces)
    data = "".join(pieces).encode()
    digest = Hash(hashlib.sha256(data).digest())
    assert transcript.progress == Progress(chat_request().id, len(pieces), len(data), digest, PRICE)
    assert transcript.signature is not None
    check_progress(transcript.progress, transcript.signature, EXECUTOR.peer_id)


def test_an_answer_of_many_small_pieces_takes_little_more_memory_than_its_text() -> None:
    transcript, size = Transcript(chat_request().id, PRICE), 4000
    tracemalloc.start()
    for _ in range(size):
        transcript.add(EXECUTOR, "x")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 1.5 * size + 2 * KIB
    assert transcript.release() == "x" * size
    assert transcript.text == ""


def test_a_piece_that_is_not_the_next_one_is_refused() -> None:
    _, (first, second, third) = answer(chat_request())
    for before, wrong in (((), second), ((first,), first), ((first,), third)):
        ours = Transcript(chat_request().id, PRICE)
        for delta in before:
            ours.accept(delta, EXECUTOR.peer_id)
        with pytest.raises(InvalidMessage) as refusal:
            ours.accept(wrong, EXECUTOR.peer_id)
        assert refusal.value.fault is Fault.UNEXPECTED


@pytest.mark.parametrize(
    ("request_id", "price", "signer"),
    [
        (chat_request(2).id, PRICE, EXECUTOR.peer_id),
        (chat_request().id, PRICE + 1, EXECUTOR.peer_id),
        (chat_request().id, PRICE, CAT.peer_id),
    ],
    ids=["of another request", "at another price", "of another executor"],
)
def test_a_piece_is_signed_for_its_request_its_price_and_its_executor(
    request_id: Hash, price: int, signer: PeerId
) -> None:
    _, (first, *_) = answer(chat_request())
    with pytest.raises(InvalidMessage) as refusal:
        Transcript(request_id, price).accept(first, signer)
    assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_a_refused_piece_changes_nothing() -> None:
    _, (first, second, _) = answer(chat_request())
    ours = Transcript(chat_request().id, PRICE)
    ours.accept(first, EXECUTOR.peer_id)
    before = ours.progress, ours.signature
    with pytest.raises(InvalidMessage):
        ours.accept(replace(second, text="other"), EXECUTOR.peer_id)
    assert (ours.text, (ours.progress, ours.signature)) == (PIECES[0], before)
    ours.accept(second, EXECUTOR.peer_id)


def test_one_changed_byte_anywhere_in_a_piece_is_refused() -> None:
    _, (first, *_) = answer(chat_request())
    good = encode(first)
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            Transcript(chat_request().id, PRICE).accept(decode(Delta, bytes(changed)), EXECUTOR.peer_id)


def test_an_empty_piece_and_an_answer_beyond_its_limit_are_refused_on_both_sides() -> None:
    transcript = Transcript(chat_request().id, PRICE, limit=4)
    with pytest.raises(InvalidMessage) as empty:
        transcript.add(EXECUTOR, "")
    assert empty.value.fault is Fault.OUT_OF_RANGE
    transcript.add(EXECUTOR, "ééé"[:2])
    with pytest.raises(InvalidMessage) as long:
        transcript.add(EXECUTOR, "x")
    assert long.value.fault is Fault.TOO_LARGE
    _, (first, *_) = answer(chat_request(), ["12345"])
    with pytest.raises(InvalidMessage) as sent:
        Transcript(chat_request().id, PRICE, limit=4).accept(first, EXECUTOR.peer_id)
    assert sent.value.fault is Fault.TOO_LARGE


def test_the_largest_piece_fits_into_its_frame() -> None:
    _, (piece,) = answer(chat_request(), ["x" * 64 * KIB])
    assert decode(Delta, encode(piece)) == piece


# ---- The rest -------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_prompt_is_that_of_its_canonical_array() -> None:
    data = b"\x92\x01\x91\x93\x01\xa4user\xa2hi"
    assert prompt_digest((ChatMessage("user", "hi"),)) == hashlib.sha256(data).digest()


def test_every_kind_of_error_travels_by_name_and_others_are_refused() -> None:
    assert [kind_of(LlmError(str(kind), "")) for kind in ErrorKind] == list(ErrorKind)
    with pytest.raises(InvalidMessage) as refusal:
        kind_of(LlmError("gremlins", ""))
    assert refusal.value.fault is Fault.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("broken", "whole"),
    [("lamp", "lamp"), ("🐉 é", "🐉 é"), ("\ud83d", "\ufffd"), ("a\udc09b", "a\ufffdb"), ("\ud83d\udc09", "🐉")],
)
def test_halves_of_characters_are_replaced(broken: str, whole: str) -> None:
    assert whole_characters(broken) == whole


def test_an_executor_signs_what_its_answer_folds_to_when_it_was_asked() -> None:
    said = "Sure, here it is:\n\nNobody keeps the lamp."
    request = chat_request(fold_words=20)
    served = sign_serving(EXECUTOR, request, said)
    assert served is not None
    serving = check_serving(served)
    folded = fold_paragraph(said, 20)
    assert folded == "Nobody keeps the lamp."
    assert (serving.executor, serving.request, serving.model) == (EXECUTOR.peer_id, request.id, request.model)
    assert (serving.prompt_digest, serving.output_digest) == (prompt_digest(ASKED), text_digest(folded))


def test_nothing_is_signed_where_no_folding_was_asked_or_no_paragraph_is() -> None:
    assert sign_serving(EXECUTOR, chat_request(), "Nobody.") is None
    assert sign_serving(EXECUTOR, chat_request(fold_words=20), "---") is None


def test_one_changed_byte_anywhere_in_a_serving_statement_is_refused() -> None:
    served = sign_serving(EXECUTOR, chat_request(fold_words=20), "Nobody keeps the lamp.")
    good = encode(served)
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1
        with pytest.raises(ProtocolError):
            check_serving(decode(SignedServing, bytes(changed)))
