"""Receipts and vouchers: both sides count alike, or refuse to sign and say which field differs."""

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import Fault, InvalidMessage, ProtocolError, ReceiptMismatch, VoucherMismatch
from loremesh.primitives import Hash, Millis
from loremesh.protocol.codec import U64_MAX, decode, encode
from loremesh.protocol.llm import CLOCK_SKEW, MAX_PRICE, ChatMessage, Transcript
from loremesh.protocol.metering import TOKENIZER, amount_of, completion_tokens, prompt_tokens
from loremesh.protocol.receipts import (
    CUT,
    FINISHES,
    LENGTH,
    STOP,
    Evidence,
    PartialReceipt,
    Receipt,
    SignedReceipt,
    check_evidence,
    check_receipt,
    make_receipt,
    partial_receipt,
    receipt_digest,
    sign_receipt,
)
from loremesh.protocol.typed_data import Domain
from loremesh.protocol.vouchers import (
    Balance,
    HandIn,
    SignedVoucher,
    Voucher,
    balances,
    check_voucher,
    check_voucher_signature,
    next_voucher,
    sign_voucher,
    voucher_of,
)
from loremesh.testing.builders import CAT, START
from loremesh.testing.calls import CLIENT, EXECUTOR, PIECES, PRICE, answer, chat_request, count_words

REQUEST = chat_request()
TEXT = "".join(PIECES)


def receipt(number: int = 1, **changes: Any) -> Receipt:
    """The right receipt of the usual call, then changed."""
    usual = make_receipt(chat_request(number), TEXT, count_words, price=PRICE, finish=STOP, time=Millis(START + 900))
    return replace(usual, **changes)


def partial() -> PartialReceipt:
    transcript, _ = answer(REQUEST)
    made = partial_receipt(CLIENT, REQUEST, transcript, count_words, time=Millis(START + 900))
    assert made is not None
    return made


def recounted(evidence: Evidence) -> Receipt:
    return check_receipt(evidence, REQUEST, TEXT, count_words)


# ---- Counting -------------------------------------------------------------------------------------------------------


def test_only_contents_and_the_answer_count() -> None:
    messages = (ChatMessage("system", "one two"), ChatMessage("user", ""), ChatMessage("assistant", "three"))
    assert prompt_tokens(messages, count_words) == 3
    assert completion_tokens("four five", count_words) == 2


@given(st.integers(0, 2**33), st.integers(0, MAX_PRICE))
def test_an_amount_is_rounded_up_to_the_next_gwei_and_fits_64_bits(tokens: int, price: int) -> None:
    amount = amount_of(tokens, price)
    assert (amount - 1) * 1000 < tokens * price <= amount * 1000
    assert amount <= U64_MAX


# ---- Receipts -------------------------------------------------------------------------------------------------------


def test_both_sides_make_the_same_receipt() -> None:
    signed = sign_receipt(EXECUTOR, receipt())
    assert recounted(signed) == receipt()
    assert check_evidence(signed) == receipt()
    assert receipt().tokenizer == TOKENIZER
    assert receipt().tokens == 3 + 4 + 9


WRONG: dict[str, Any] = {
    "request": Hash(bytes(32)),
    "client": CAT.peer_id,
    "executor": CAT.peer_id,
    "session": Hash(bytes(32)),
    "model": "large-model",
    "tokenizer": "cl100k_base",
    "prompt_tokens": 8,
    "completion_tokens": 7,
    "prompt_digest": Hash(bytes(32)),
    "output_digest": Hash(bytes(32)),
    "price": 1001,
    "amount": 4_000,
    "finish": "done",
    "time": Millis(START - CLOCK_SKEW - 1),
}


def test_every_field_of_a_receipt_has_its_wrong_value_here() -> None:
    assert list(WRONG) == [field.name for field in fields(Receipt)]


@pytest.mark.parametrize("field", WRONG)
def test_a_receipt_that_differs_in_one_field_is_refused_by_the_name_of_that_field(field: str) -> None:
    wrong = receipt(**{field: WRONG[field]})
    if field == "price":
        wrong = replace(wrong, amount=amount_of(wrong.tokens, wrong.price))
    with pytest.raises(ReceiptMismatch) as refusal:
        recounted(sign_receipt(EXECUTOR, wrong))
    assert refusal.value.field == field
    assert refusal.value.claimed == WRONG[field]
    assert refusal.value.fault is Fault.WRONG_RECEIPT


@pytest.mark.parametrize("amount", [amount_of(receipt().tokens, PRICE) - 1, amount_of(receipt().tokens, PRICE) + 1])
def test_an_amount_that_is_not_tokens_times_price_is_seen_without_request_and_answer(amount: int) -> None:
    with pytest.raises(ReceiptMismatch) as refusal:
        check_evidence(sign_receipt(EXECUTOR, receipt(amount=amount)))
    assert refusal.value.field == "amount"


@pytest.mark.parametrize("finish", FINISHES)
def test_an_answer_ends_in_one_of_three_ways(finish: str) -> None:
    assert recounted(sign_receipt(EXECUTOR, receipt(finish=finish))).finish == finish


def test_only_the_executor_signs_a_receipt_and_only_for_one_domain() -> None:
    elsewhere = Domain(1, b"\x11" * 20)
    for evidence in (
        sign_receipt(CAT, receipt()),
        sign_receipt(CLIENT, receipt()),
        sign_receipt(EXECUTOR, receipt(), elsewhere),
    ):
        with pytest.raises(InvalidMessage) as refusal:
            recounted(evidence)
        assert refusal.value.fault is Fault.BAD_SIGNATURE
    signed = sign_receipt(EXECUTOR, receipt(), elsewhere)
    assert check_receipt(signed, REQUEST, TEXT, count_words, elsewhere) == receipt()


def test_an_answer_that_is_not_the_one_delivered_is_refused() -> None:
    with pytest.raises(ReceiptMismatch) as refusal:
        check_receipt(sign_receipt(EXECUTOR, receipt()), REQUEST, TEXT + "!", count_words)
    assert refusal.value.field == "output_digest"


def changes_of(data: bytes) -> list[bytes]:
    """Every byte changed once: its lowest bit, so that a number or a text often stays one."""
    return [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(len(data))]


@pytest.mark.parametrize("evidence", [sign_receipt(EXECUTOR, receipt()), partial()], ids=["whole", "partial"])
def test_one_changed_byte_anywhere_in_a_receipt_is_refused_offline(evidence: Evidence) -> None:
    assert check_evidence(decode(type(evidence), encode(evidence))) == evidence.receipt
    for changed in changes_of(encode(evidence)):
        with pytest.raises(ProtocolError):
            check_evidence(decode(type(evidence), changed))


# ---- Partial receipts -----------------------------------------------------------------------------------------------


def test_what_was_delivered_before_an_executor_died_can_be_billed_and_verified() -> None:
    made = partial()
    assert recounted(made) == made.receipt
    assert (made.receipt.finish, made.receipt.price) == (CUT, PRICE)
    assert made.receipt.completion_tokens == count_words(TEXT)


def test_nothing_is_billed_where_nothing_was_delivered() -> None:
    transcript = Transcript(REQUEST.id, PRICE)
    assert partial_receipt(CLIENT, REQUEST, transcript, count_words, time=START) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("request", Hash(bytes(32))), ("output_digest", Hash(bytes(32))), ("price", PRICE + 1), ("finish", STOP)],
)
def test_a_partial_receipt_says_what_the_signed_progress_says(field: str, value: Any) -> None:
    made = partial()
    wrong = replace(made.receipt, **{field: value})
    wrong = replace(wrong, amount=amount_of(wrong.tokens, wrong.price))
    forged = replace(made, receipt=wrong, signature=CLIENT.sign(receipt_digest(wrong)))
    with pytest.raises(ReceiptMismatch) as refusal:
        check_evidence(forged)
    assert refusal.value.field == field


def test_a_client_cannot_make_a_partial_receipt_without_the_executor() -> None:
    transcript, _ = answer(REQUEST, executor=CLIENT)
    forged = partial_receipt(CLIENT, REQUEST, transcript, count_words, time=START)
    assert forged is not None
    with pytest.raises(InvalidMessage) as refusal:
        check_evidence(forged)
    assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_two_partial_answers_of_one_text_are_billed_for_their_own_pieces() -> None:
    first, _ = answer(REQUEST, PIECES[:1])
    further = chat_request(2, messages=(*REQUEST.messages, ChatMessage("assistant", PIECES[0])), continues=1)
    begun = partial_receipt(CLIENT, REQUEST, first, count_words, time=START)
    ended = make_receipt(further, "".join(PIECES[1:]), count_words, price=PRICE, finish=STOP, time=START)
    assert begun is not None
    assert begun.receipt.completion_tokens + ended.completion_tokens == count_words(TEXT)


# ---- Vouchers -------------------------------------------------------------------------------------------------------


def test_a_voucher_sums_up_every_receipt_before_it() -> None:
    receipts = [receipt(1), receipt(2, completion_tokens=100, amount=777), receipt(3, finish=LENGTH)]
    voucher = voucher_of(receipts)
    assert voucher is not None
    assert (voucher.receipts, voucher.tokens) == (3, sum(one.tokens for one in receipts))
    assert voucher.amount == sum(one.amount for one in receipts)
    assert (voucher.client, voucher.executor, voucher.session) == (
        CLIENT.peer_id,
        EXECUTOR.peer_id,
        REQUEST.session,
    )
    assert voucher_of([]) is None


def test_the_head_depends_on_every_receipt_and_on_their_order() -> None:
    orders = [voucher_of(order) for order in itertools.permutations([receipt(1), receipt(2), receipt(3)])]
    assert len({voucher.head for voucher in orders if voucher}) == 6


def test_the_voucher_that_follows_is_accepted() -> None:
    first = next_voucher(None, receipt(1))
    assert check_voucher(sign_voucher(CLIENT, first), None, receipt(1)) == first
    second = next_voucher(first, receipt(2))
    assert check_voucher(sign_voucher(CLIENT, second), first, receipt(2)) == second


@pytest.mark.parametrize("field", [field.name for field in fields(Voucher)])
def test_a_voucher_that_differs_in_one_field_is_refused_by_the_name_of_that_field(field: str) -> None:
    right = next_voucher(None, receipt())
    value = getattr(right, field)
    other: Any = {"client": CAT.peer_id, "executor": CAT.peer_id}.get(field) or (
        value + 1 if isinstance(value, int) else bytes(32)
    )
    with pytest.raises(VoucherMismatch) as refusal:
        check_voucher(sign_voucher(CLIENT, replace(right, **{field: other})), None, receipt())
    assert (refusal.value.field, refusal.value.fault) == (field, Fault.WRONG_VOUCHER)


def test_a_voucher_that_was_signed_before_is_no_payment_for_the_next_call() -> None:
    first = next_voucher(None, receipt(1))
    with pytest.raises(VoucherMismatch) as refusal:
        check_voucher(sign_voucher(CLIENT, first), first, receipt(2))
    assert refusal.value.field == "receipts"


@pytest.mark.parametrize(
    ("field", "value"),
    [("client", CAT.peer_id), ("executor", CAT.peer_id), ("session", Hash(bytes(32)))],
)
def test_a_receipt_of_another_session_does_not_enter_a_voucher(field: str, value: Any) -> None:
    with pytest.raises(VoucherMismatch) as refusal:
        voucher_of([receipt(1), receipt(2, **{field: value})])
    assert refusal.value.field == field


def test_only_the_client_signs_a_voucher() -> None:
    voucher = next_voucher(None, receipt())
    with pytest.raises(InvalidMessage) as refusal:
        check_voucher(sign_voucher(EXECUTOR, voucher), None, receipt())
    assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_a_session_whose_amount_would_leave_64_bits_ends() -> None:
    full = replace(next_voucher(None, receipt()), amount=U64_MAX)
    with pytest.raises(InvalidMessage) as refusal:
        next_voucher(full, receipt(2))
    assert refusal.value.fault is Fault.OUT_OF_RANGE


def test_one_changed_byte_anywhere_in_a_voucher_is_refused_offline() -> None:
    signed = sign_voucher(CLIENT, next_voucher(None, receipt()))
    assert check_voucher_signature(decode(SignedVoucher, encode(signed))) == signed.voucher
    for changed in changes_of(encode(signed)):
        with pytest.raises(ProtocolError):
            check_voucher_signature(decode(SignedVoucher, changed))


def test_a_signature_of_a_receipt_is_none_of_a_voucher() -> None:
    signed = sign_receipt(CLIENT, receipt())
    with pytest.raises(InvalidMessage):
        check_voucher_signature(SignedVoucher(next_voucher(None, receipt()), signed.signature))


# ---- Balances -------------------------------------------------------------------------------------------------------


def test_a_balance_counts_nothing_twice_and_knows_no_order() -> None:
    receipts = [receipt(1), receipt(2), receipt(2, finish=CUT, completion_tokens=1, amount=2), receipt(1)]
    first = next_voucher(None, receipt(1))
    second = next_voucher(first, receipt(2))
    other = next_voucher(None, receipt(3, session=Hash(bytes(32))))
    vouchers = [first, second, second, other]
    pair = CLIENT.peer_id, EXECUTOR.peer_id
    for some in itertools.permutations(receipts):
        for more in itertools.permutations(vouchers):
            assert balances(some, more) == {
                pair: Balance(2, 2 * receipt().tokens, 2 * receipt().amount, 3 * receipt().amount)
            }


def test_a_balance_keeps_pairs_apart_even_where_a_client_copies_a_request_id() -> None:
    copied = receipt(1, client=CAT.peer_id)
    assert balances([receipt(1), copied], []) == {
        (CLIENT.peer_id, EXECUTOR.peer_id): Balance(1, receipt().tokens, receipt().amount, 0),
        (CAT.peer_id, EXECUTOR.peer_id): Balance(1, receipt().tokens, receipt().amount, 0),
    }


def test_a_hand_in_has_a_voucher_and_the_one_receipt_that_it_ends_with() -> None:
    signed = sign_voucher(CLIENT, next_voucher(None, receipt()))
    for evidence in (sign_receipt(EXECUTOR, receipt()), partial()):
        handed = HandIn.of(evidence, signed)
        assert decode(HandIn, encode(handed)).evidence == evidence
    both = replace(HandIn.of(partial(), signed), receipts=(sign_receipt(EXECUTOR, receipt()),))
    for wrong in (both, HandIn((), (), signed)):
        with pytest.raises(InvalidMessage) as caught:
            _ = wrong.evidence
        assert caught.value.fault is Fault.WRONG_SHAPE


def test_a_receipt_and_a_partial_one_are_different_types_on_the_wire() -> None:
    with pytest.raises(InvalidMessage):
        decode(SignedReceipt, encode(partial()))
