"""Backends that fail, clients that leave, vouchers that do not fit, the end: nothing is billed that should not be."""

import tracemalloc
from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendExhausted,
    BackendFailed,
    BackendGarbage,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    ErrorKind,
    Fault,
    PromptTooLong,
    Unreachable,
)
from loremesh.primitives import KIB, Hash, Millis
from loremesh.protocol.journal import EntryKind
from loremesh.protocol.llm import (
    LLM_PROTOCOL,
    Accepted,
    Busy,
    Delta,
    LlmError,
    answer_limit,
)
from loremesh.protocol.receipts import (
    CUT,
    LENGTH,
    LlmFinal,
    PartialReceipt,
    SignedReceipt,
    check_receipt,
    partial_receipt,
)
from loremesh.protocol.vouchers import HandIn, VoucherAccepted, VoucherRefused, next_voucher, sign_voucher
from loremesh.protocol.wire import MessageType
from loremesh.services.happenings import Served
from loremesh.testing.builders import CAT
from loremesh.testing.calls import CLIENT, EXECUTOR, count_words
from loremesh.testing.scripted_chat import FOREVER, ScriptedChat, endless
from loremesh.testing.serving_scene import Scene, refusal

pytestmark = pytest.mark.usefixtures("autojump_clock")

OTHER_SESSION = Hash(b"\x0d" * 32)
SMALL = 8 * KIB


class Vanished(Exception):
    """Ends a client in the middle of things."""


# ---- backends that fail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackendFailed("http://10.0.0.1/v1 answered 500: secret"), ErrorKind.BACKEND_FAILED),
        (BackendUnauthorised("secret"), ErrorKind.BACKEND_FAILED),
        (BackendGarbage("secret"), ErrorKind.BACKEND_FAILED),
        (BackendTimeout("secret"), ErrorKind.BACKEND_FAILED),
        (BackendBusy("secret", 2.0), ErrorKind.BUSY),
        (BackendExhausted("secret", Millis(0)), ErrorKind.EXHAUSTED),
        (PromptTooLong("secret"), ErrorKind.CONTEXT_TOO_LONG),
        (BackendRefused("secret"), ErrorKind.BAD_REQUEST),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("pieces", [(), ("Some", " words")])
async def test_a_backend_that_fails_is_a_typed_error_that_keeps_its_secrets_and_bills_nothing(
    error: BackendError, kind: ErrorKind, pieces: tuple[str, ...], scene: Scene
) -> None:
    scene.chat = ScriptedChat.playing((*pieces, error), ("Well.",))
    async with scene.call() as caller:
        transcript, failed = await caller.answer()
        assert transcript.text == "".join(pieces)
        assert isinstance(failed, LlmError)
        assert failed.kind == kind
        assert "secret" not in failed.message
        assert "10.0.0.1" not in failed.message
        assert not scene.journal.entries
        assert not scene.happened.of(Served)
        await trio.sleep(2)
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
    assert (await scene.wait_ended())[0].fault is None


async def test_while_a_backend_asks_us_to_wait_clients_are_told_so_at_once(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((BackendBusy("429", 20.0),), ("Well.",))
    async with scene.call() as caller:
        await caller.answer()
        await caller.ask()
        busy = await caller.expect(Busy)
        assert 15_000 < busy.retry_after <= 20_000
        await trio.sleep(busy.retry_after / 1000)
        await caller.answer()
    assert len(scene.chat.requests) == 2


@pytest.mark.parametrize("pieces", [(), ("Some",)])
async def test_a_backend_that_falls_silent_is_given_up_after_thirty_seconds(
    pieces: tuple[str, ...], scene: Scene
) -> None:
    scene.chat = ScriptedChat.playing((*pieces, FOREVER))
    async with scene.call() as caller:
        started = trio.current_time()
        _, failed = await caller.answer()
        assert isinstance(failed, LlmError)
        assert failed.kind == ErrorKind.BACKEND_FAILED
        assert trio.current_time() - started == pytest.approx(30, abs=1)
    assert scene.chat.aborted == 1
    assert scene.slots.running == 0


async def test_no_call_takes_longer_than_its_client_waits(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing(("a", 20.0) * 100)
    async with scene.call() as caller:
        started = trio.current_time()
        transcript, failed = await caller.answer()
        assert isinstance(failed, LlmError)
        assert failed.kind == ErrorKind.EXPIRED
        assert trio.current_time() - started == pytest.approx(60, abs=1)
        assert transcript.text == "aaa"
    assert not scene.journal.entries


@pytest.mark.parametrize("fails_when_cancelled", [False, True])
async def test_an_answer_without_end_ends_at_the_limit_and_what_was_delivered_is_billed(
    scene: Scene, *, fails_when_cancelled: bool
) -> None:
    scene.chat = ScriptedChat.playing(endless("word "))  # type: ignore[arg-type]  # any iterable of steps will do
    scene.chat.fails_when_cancelled = fails_when_cancelled
    scene.server(answer_limit=SMALL)
    async with scene.call() as caller:
        request = caller.request(max_tokens=2**20)
        transcript, final = await caller.answer(request)
    assert isinstance(final, LlmFinal)
    assert final.receipt.finish == LENGTH
    assert SMALL - 5 < len(transcript.text) <= SMALL
    check_receipt(SignedReceipt(final.receipt, final.signature), request, transcript.text, count_words)
    assert scene.chat.aborted == 1


async def test_a_backend_that_goes_on_beyond_what_was_asked_for_is_ended_where_its_client_would_stop_reading(
    scene: Scene,
) -> None:
    scene.chat = ScriptedChat.playing(endless("word "))  # type: ignore[arg-type]  # any iterable of steps will do
    async with scene.call() as caller:
        request = caller.request(max_tokens=7)
        transcript, final = await caller.answer(request)
    assert isinstance(final, LlmFinal)
    assert (final.receipt.finish, len(transcript.text)) == (LENGTH, answer_limit(7))
    assert scene.chat.aborted == 1


async def test_a_call_takes_no_more_memory_than_twice_the_limit_of_its_answer(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing(endless("é" * 16))  # type: ignore[arg-type]  # any iterable of steps will do

    async def peak(limit: int) -> int:
        scene.server(answer_limit=limit)
        async with scene.call(session=Hash(limit.to_bytes(32, "little"))) as caller:
            await caller.ask(caller.request(max_tokens=2**20))
            await caller.expect(Accepted)
            tracemalloc.start()
            while isinstance(await caller.reply(), Delta):
                caller.replies.clear()
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert isinstance(caller.replies[0], LlmFinal)
            return found

    # What a limit takes is the difference: the rest is the windows of the stream, and what the client holds.
    small, large = 64 * KIB, 320 * KIB
    await peak(small - 1)  # the first one brings in what stays
    assert await peak(large) - await peak(small) < 2 * (large - small)


# ---- clients that leave


@pytest.mark.parametrize("fails_when_cancelled", [False, True])
@pytest.mark.parametrize("pieces", [(), ("Some",)])
async def test_when_the_client_vanishes_the_backend_is_cancelled_at_once_and_nothing_is_billed(
    pieces: tuple[str, ...], scene: Scene, *, fails_when_cancelled: bool
) -> None:
    scene.chat = ScriptedChat.playing((*pieces, 20.0, "late"))
    scene.chat.fails_when_cancelled = fails_when_cancelled
    with suppress(Vanished):
        async with scene.call() as caller:
            await caller.ask()
            await caller.expect(Accepted)
            raise Vanished
    started = trio.current_time()
    assert (await scene.wait_ended())[0].fault is None
    assert trio.current_time() - started < 1
    assert scene.chat.aborted == 1
    assert scene.slots.running == 0
    assert not scene.journal.entries


async def test_a_client_that_finishes_its_side_has_left(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((20.0, "late"))
    async with scene.call() as caller:
        await caller.ask()
        await caller.expect(Accepted)
        await caller.stream.finish()
        await scene.wait_ended()
    assert scene.chat.aborted == 1


async def test_a_client_whose_connection_is_cut_has_left(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((20.0, "late"))
    with suppress(Unreachable):
        async with scene.call() as caller:
            await caller.ask()
            await caller.expect(Accepted)
            scene.network.cut(CLIENT.peer_id, EXECUTOR.peer_id)
    await scene.wait_ended()
    assert scene.chat.aborted == 1


async def test_a_client_that_does_not_read_is_cut_off(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing(("x" * 16 * KIB,) * 30)
    async with scene.call() as caller:
        await caller.ask(caller.request(expires=Millis(scene.clock() + 600_000), max_tokens=2**20))
        started = trio.current_time()
        await scene.wait_ended()
        assert trio.current_time() - started < 15
    assert scene.ended[0].fault is None
    assert scene.slots.running == 0
    assert not scene.journal.entries


async def test_a_client_that_speaks_while_it_is_answered_breaks_a_rule(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing((20.0, "late"))
    async with scene.call() as caller:
        await caller.ask()
        await caller.expect(Accepted)
        await caller.ask()
        with pytest.raises(Unreachable):
            await caller.reply()
    assert (await scene.wait_ended())[0].fault is Fault.UNEXPECTED
    assert scene.chat.aborted == 1


async def test_a_request_that_does_not_come_to_its_end_is_given_up_after_ten_seconds(scene: Scene) -> None:
    node = await scene.client(CLIENT)
    async with node.open(EXECUTOR.peer_id, LLM_PROTOCOL) as stream:
        await stream._pipe.write(b"\x00\x00\x10\x00begins")
        started = trio.current_time()
        await scene.wait_ended()
        assert trio.current_time() - started == pytest.approx(10, abs=1)


# ---- vouchers


async def test_a_voucher_that_does_not_follow_is_refused_with_the_last_good_one_and_counts_against_the_client(
    scene: Scene,
) -> None:
    async with scene.call() as caller:
        _, first = await caller.answer()
        assert isinstance(first, LlmFinal)
        await caller.pay(first)
        assert caller.voucher is not None
        good = sign_voucher(CLIENT, caller.voucher)
        _, second = await caller.answer()
        assert isinstance(second, LlmFinal)
        cheap = replace(caller.voucher, receipts=2, amount=caller.voucher.amount + 1)
        await caller.send(MessageType.VOUCHER, sign_voucher(CLIENT, cheap))
        refused = await caller.expect(VoucherRefused)
        assert refused.last == (good,)
        assert "tokens" in refused.reason
        assert await caller.reply() is None
    assert (await scene.wait_ended())[0].fault is Fault.WRONG_VOUCHER
    [entry] = scene.journal.of(EntryKind.REFUSED)
    assert entry.request == second.receipt.request


async def test_a_voucher_that_somebody_else_signed_is_refused(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        await caller.send(MessageType.VOUCHER, sign_voucher(CAT, next_voucher(None, final.receipt)))
        await caller.expect(VoucherRefused)
    assert (await scene.wait_ended())[0].fault is Fault.BAD_SIGNATURE
    assert not scene.journal.of(EntryKind.VOUCHER)


async def test_a_client_that_does_not_agree_says_so_and_that_is_written_down(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.answer()
        await caller.send(MessageType.VOUCHER_REFUSED, VoucherRefused("completion_tokens is 9, expected 4", ()))
        assert await caller.reply() is None
    assert (await scene.wait_ended())[0].fault is None
    [entry] = scene.journal.of(EntryKind.REFUSED)
    assert "completion_tokens" in str(entry.fact)


async def test_a_voucher_that_did_not_arrive_can_be_handed_in_on_another_stream_and_twice(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        voucher = caller.signed(final.receipt)
    scene.server()
    async with scene.call(session=OTHER_SESSION) as later:
        for _ in range(2):
            assert await later.hand_in(final, voucher) == VoucherAccepted(voucher.voucher.head)
        await later.answer()
    assert len(scene.journal.of(EntryKind.VOUCHER)) == 1
    assert [event.fault for event in await scene.wait_ended(2)] == [None, None]


async def test_a_voucher_for_an_old_receipt_may_come_as_the_first_frame(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        voucher = caller.signed(final.receipt)
    async with scene.call() as later:
        later.made = 5
        assert (await refusal(later)).kind == ErrorKind.UNAUTHORISED
        await later.send(MessageType.VOUCHER, voucher)
        await later.expect(VoucherAccepted)
        await later.answer()


async def test_what_was_delivered_of_an_answer_that_broke_off_can_be_handed_in(scene: Scene) -> None:
    scene.chat = ScriptedChat.playing(("Some", " words"), ("Half", BackendFailed("broke off")), ("More",))
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        await caller.pay(final)
        request = caller.request()
        transcript, _ = await caller.answer(request)
        partial = partial_receipt(CLIENT, request, transcript, count_words, time=request.time)
        assert partial is not None
        await caller.send(MessageType.HAND_IN, HandIn.of(partial, caller.signed(partial.receipt)))
        await caller.expect(VoucherAccepted)
        _, last = await caller.answer()
        assert isinstance(last, LlmFinal)
        assert isinstance(await caller.pay(last), VoucherAccepted)
    receipts = [entry.fact for entry in scene.journal.of(EntryKind.SERVED)]
    assert [type(receipt) for receipt in receipts] == [SignedReceipt, PartialReceipt, SignedReceipt]
    assert isinstance(receipts[1], PartialReceipt)
    assert receipts[1].receipt.finish == CUT


async def test_a_partial_receipt_of_a_call_that_was_answered_in_full_is_refused_and_nobody_is_to_blame(
    scene: Scene,
) -> None:
    async with scene.call() as caller:
        request = caller.request()
        transcript, _ = await caller.answer(request)
        partial = partial_receipt(CLIENT, request, transcript, count_words, time=request.time)
        assert partial is not None
        await caller.send(MessageType.HAND_IN, HandIn.of(partial, caller.signed(partial.receipt)))
        await caller.expect(VoucherRefused)
    assert (await scene.wait_ended())[0].fault is None
    assert len(scene.journal.entries) == 1


async def test_nobody_hands_in_what_is_not_his(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        voucher = caller.signed(final.receipt)
    async with scene.call(CAT) as thief:
        evidence = SignedReceipt(final.receipt, final.signature)
        await thief.send(MessageType.HAND_IN, HandIn.of(evidence, voucher))
        with pytest.raises(Unreachable):
            await thief.reply()
    assert (await scene.wait_ended(2))[1].fault is Fault.WRONG_SENDER


async def test_nobody_hands_in_a_voucher_of_his_own_for_the_call_of_another(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
    async with scene.call(CAT) as thief:
        stolen = replace(next_voucher(None, final.receipt), client=CAT.peer_id)
        evidence = SignedReceipt(final.receipt, final.signature)
        await thief.send(MessageType.HAND_IN, HandIn.of(evidence, sign_voucher(CAT, stolen)))
        with pytest.raises(Unreachable):
            await thief.reply()
    assert (await scene.wait_ended(2))[1].fault is Fault.WRONG_SENDER


# ---- stopping


async def test_an_executor_that_is_about_to_stop_finishes_what_it_has_begun_and_takes_nothing_new(
    scene: Scene,
) -> None:
    server = scene.server()
    scene.chat = ScriptedChat.playing((1.0, "Done."))
    async with scene.call() as caller, scene.call(CAT) as late:
        await caller.ask()
        await caller.expect(Accepted)
        assert (server.running, server.slots) == (1, 4)
        server.close()
        assert server.slots == 0
        await late.ask()
        await late.expect(Busy)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 2.0)
            await caller.expect(Delta)
            await caller.expect(LlmFinal)
        assert trio.current_time() - started < 1.5


async def test_a_call_that_takes_longer_than_there_is_time_does_not_hold_the_end_up(scene: Scene) -> None:
    server = scene.server()
    scene.chat = ScriptedChat.playing((20.0, "Done."))
    async with scene.call() as caller:
        await caller.ask()
        await caller.expect(Accepted)
        server.close()
        started = trio.current_time()
        await server.drain(2.0)
        assert trio.current_time() - started == pytest.approx(2)
