"""An executor answers calls, or says why not: signed, counted, written down first, once each, and in time."""

from typing import Any

import pytest
import trio

from loremesh.backends.budget import DailyCap, MemoryTokenCounter
from loremesh.errors import (
    BackendFailed,
    ErrorKind,
    Fault,
    MachineError,
    Unreachable,
)
from loremesh.primitives import Hash, Millis
from loremesh.protocol.journal import EntryKind
from loremesh.protocol.llm import (
    Accepted,
    Busy,
    ChatMessage,
    Delta,
    LlmError,
    SignedRequest,
    check_serving,
    sign_request,
)
from loremesh.protocol.receipts import (
    BackendUsage,
    LlmFinal,
    SignedReceipt,
    check_receipt,
)
from loremesh.protocol.vouchers import VoucherAccepted
from loremesh.protocol.wire import MessageType, seal
from loremesh.services.happenings import Served
from loremesh.services.slots import Slots
from loremesh.testing.builders import CAT, START
from loremesh.testing.calls import CLIENT, EXECUTOR, PRICE, count_words
from loremesh.testing.scripted_chat import ScriptedChat
from loremesh.testing.serving_scene import MODEL, Scene, refusal

pytestmark = pytest.mark.usefixtures("autojump_clock")

OTHER_SESSION = Hash(b"\x0d" * 32)


# ---- a call that goes well


async def test_a_call_is_accepted_answered_in_signed_pieces_and_ends_in_a_receipt_that_the_client_finds_too(
    scene: Scene,
) -> None:
    scene.chat.usage = BackendUsage(11, 4)
    async with scene.call() as caller:
        request = caller.request(temperature=(700,), top_p=(900,), seed=(7,), stop=("\n",), max_tokens=50)
        transcript, final = await caller.answer(request)
    assert isinstance(final, LlmFinal)
    assert transcript.text == "Nobody keeps the lamp."
    check_receipt(SignedReceipt(final.receipt, final.signature), request, transcript.text, count_words)
    assert final.usage == (BackendUsage(11, 4),)
    assert final.served == ()
    [asked] = scene.chat.requests
    assert (asked.model, asked.messages, asked.max_tokens) == ("real-name", request.messages, 50)
    assert (asked.temperature, asked.top_p, asked.seed, asked.stop) == (0.7, 0.9, 7, ("\n",))
    assert scene.happened.of(Served) == [Served(final.receipt)]


async def test_what_the_client_does_not_say_is_left_to_the_backend(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.answer(caller.request(continues=1, messages=(ChatMessage("assistant", "Nobo"),)))
        assert isinstance(caller.replies[-1], LlmFinal)
        await caller.pay(caller.replies[-1])
        await caller.answer(caller.request(response_format='{"type": "json_object"}'))
    first, second = scene.chat.requests
    assert (first.temperature, first.top_p, first.seed, first.response_format) == (None, None, None, None)
    assert first.stop == ()
    assert first.continues
    assert not second.continues
    assert second.response_format == {"type": "json_object"}


async def test_one_stream_carries_call_after_call_and_one_voucher_sums_them_up(scene: Scene) -> None:
    async with scene.call() as caller:
        for number in (1, 2, 3):
            _, final = await caller.answer()
            assert isinstance(final, LlmFinal)
            answer = await caller.pay(final)
            assert isinstance(answer, VoucherAccepted)
            assert caller.voucher is not None
            assert answer.head == caller.voucher.head
            assert caller.voucher.receipts == number
    kinds = [entry.kind for entry in scene.journal.entries]
    assert kinds == [EntryKind.SERVED, EntryKind.VOUCHER] * 3


async def test_the_receipt_is_written_down_before_the_client_hears_of_it(scene: Scene) -> None:
    scene.journal.failure = MachineError("disk full")
    async with scene.call() as caller:
        transcript, failed = await caller.answer()
        assert transcript.text
        assert isinstance(failed, LlmError)
        assert failed.kind == ErrorKind.BACKEND_FAILED
        assert not scene.journal.entries
        assert not scene.happened.of(Served)
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)


async def test_the_executor_signs_what_it_served_when_a_miner_asks_for_that(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer(caller.request(fold_words=20))
    assert isinstance(final, LlmFinal)
    [served] = final.served
    assert check_serving(served).executor == EXECUTOR.peer_id


async def test_a_stream_rests_between_calls_for_two_minutes_and_is_then_finished(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.answer()
        started = trio.current_time()
        assert await caller.reply() is None
        assert trio.current_time() - started == pytest.approx(120, abs=1)
    assert (await scene.wait_ended())[0].fault is None


# ---- what is refused, and what that costs


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": "large-model"}, ErrorKind.UNSUPPORTED_MODEL, MODEL),
        ({"max_price": PRICE - 1}, ErrorKind.TOO_EXPENSIVE, str(PRICE)),
        ({"messages": (ChatMessage("user", "word " * 512),)}, ErrorKind.CONTEXT_TOO_LONG, "512"),
        ({"messages": ()}, ErrorKind.BAD_REQUEST, "no message"),
        ({"messages": (ChatMessage("tool", "x"),)}, ErrorKind.BAD_REQUEST, "role"),
        ({"stop": ("",)}, ErrorKind.BAD_REQUEST, "stop word"),
        ({"response_format": "[" * 9000}, ErrorKind.BAD_REQUEST, "JSON"),
        ({"continues": 1}, ErrorKind.BAD_REQUEST, "continued"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_answered_is_refused_by_name_and_the_stream_goes_on(
    changes: dict[str, Any], kind: ErrorKind, words: str, scene: Scene
) -> None:
    async with scene.call() as caller:
        error = await refusal(caller, caller.request(**changes))
        assert error.kind == kind
        assert words in error.message
        assert not scene.chat.requests
        await caller.answer()
    assert (await scene.wait_ended())[0].fault is None


@pytest.mark.parametrize(("seconds", "kind"), [(-61, ErrorKind.EXPIRED), (61, ErrorKind.EXPIRED)])
async def test_a_request_out_of_its_time_is_refused_and_costs_nothing(
    seconds: int, kind: ErrorKind, scene: Scene
) -> None:
    async with scene.call() as caller:
        then = Millis(scene.clock() + seconds * 1000)
        error = await refusal(caller, caller.request(time=then, expires=Millis(then + 60_000 - 1)))
        assert error.kind == kind
        await caller.answer()
    assert (await scene.wait_ended())[0].fault is None


async def test_a_request_that_its_client_did_not_sign_is_refused_and_counts_against_it(scene: Scene) -> None:
    async with scene.call() as caller:
        request = caller.request()
        forged = SignedRequest(request, sign_request(CAT, request).signature)
        await caller.send(MessageType.LLM_REQUEST, forged)
        error = await caller.expect(LlmError)
        assert error.kind == ErrorKind.UNAUTHORISED
        assert await caller.reply() is None
    assert (await scene.wait_ended())[0].fault is Fault.BAD_SIGNATURE
    assert not scene.chat.requests


@pytest.mark.parametrize("field", ["client", "executor"])
async def test_a_request_that_is_somebody_elses_is_refused_and_counts_against_its_sender(
    field: str, scene: Scene
) -> None:
    changes: dict[str, Any] = {field: CAT.peer_id}
    async with scene.call() as caller:
        error = await refusal(caller, caller.request(**changes))
        assert error.kind == ErrorKind.UNAUTHORISED
    assert (await scene.wait_ended())[0].fault is Fault.WRONG_SENDER


async def test_a_billion_tokens_are_a_bad_request_and_count_against_the_client(scene: Scene) -> None:
    async with scene.call() as caller:
        request = caller.request()
        usual = seal(CLIENT, MessageType.LLM_REQUEST, sign_request(CLIENT, request), 0, EXECUTOR.peer_id)
        greedy = usual.replace(b"\xcc\xc8\x90", b"\xce\x3b\x9a\xca\x00\x90")  # 200 and the empty list that follows it
        assert len(greedy) == len(usual) + 3
        # The lengths around it: of the payload in the envelope.
        size = usual.index(b"\xc5") + 1
        length = int.from_bytes(usual[size : size + 2], "big") + 3
        await caller.stream.send(greedy[:size] + length.to_bytes(2, "big") + greedy[size + 2 :])
        error = await caller.expect(LlmError)
        assert error.kind == ErrorKind.BAD_REQUEST
        assert "max_tokens" in error.message
    assert (await scene.wait_ended())[0].fault is Fault.OUT_OF_RANGE


async def test_more_tokens_than_there_is_room_for_are_as_many_as_there_is_room_for(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.answer(caller.request("one two three", max_tokens=2**20))
    assert scene.chat.requests[0].max_tokens == 512 - 3


async def test_a_request_is_served_once_on_whichever_stream_it_comes_again(scene: Scene) -> None:
    async with scene.call() as caller:
        request = caller.request()
        await caller.answer(request)
    async with scene.call(session=OTHER_SESSION) as again:
        error = await refusal(again, request)
        assert error.kind == ErrorKind.REPLAYED
    assert [event.fault for event in await scene.wait_ended(2)] == [None, Fault.REPLAYED]
    assert len(scene.chat.requests) == 1


async def test_a_request_is_served_once_though_the_executor_has_started_again(scene: Scene) -> None:
    async with scene.call() as caller:
        request = caller.request()
        await caller.answer(request)
    scene.server()
    async with scene.call(session=OTHER_SESSION) as again:
        assert (await refusal(again, request)).kind == ErrorKind.REPLAYED


async def test_two_clients_may_have_the_same_request_id(scene: Scene) -> None:
    async with scene.call() as caller:
        request = caller.request()
        await caller.answer(request)
    async with scene.call(CAT) as other:
        _, final = await other.answer(other.request(id=request.id))
    assert isinstance(final, LlmFinal)


async def test_a_call_without_the_voucher_for_the_one_before_is_refused_until_that_comes(scene: Scene) -> None:
    async with scene.call() as caller:
        _, final = await caller.answer()
        assert isinstance(final, LlmFinal)
        assert (await refusal(caller)).kind == ErrorKind.UNAUTHORISED
        assert isinstance(await caller.pay(final), VoucherAccepted)
        await caller.answer()
    assert (await scene.wait_ended())[0].fault is None


async def test_a_session_runs_on_one_stream_at_a_time_and_a_stream_carries_one(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.answer()
        async with scene.call() as second:
            second.made = 10
            error = await refusal(second)
            assert error.kind == ErrorKind.BAD_REQUEST
            assert "session" in error.message
        error = await refusal(caller, caller.request(session=OTHER_SESSION))
        assert error.kind == ErrorKind.BAD_REQUEST


async def test_garbage_ends_the_stream_and_counts_against_the_client(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.stream.send(b"\x00 garbage")
        with pytest.raises(Unreachable):
            await caller.reply()
    assert (await scene.wait_ended())[0].fault is not None


async def test_a_message_that_has_no_place_here_ends_the_stream(scene: Scene) -> None:
    async with scene.call() as caller:
        await caller.send(MessageType.LLM_ACCEPTED, Accepted(Hash(bytes(32)), 0))
        with pytest.raises(Unreachable):
            await caller.reply()
    assert (await scene.wait_ended())[0].fault is Fault.UNEXPECTED


async def test_a_message_that_is_for_somebody_else_ends_the_stream(scene: Scene) -> None:
    async with scene.call() as caller:
        frame = seal(CLIENT, MessageType.LLM_REQUEST, sign_request(CLIENT, caller.request()), START, CAT.peer_id)
        await caller.stream.send(frame)
        with pytest.raises(Unreachable):
            await caller.reply()
    assert (await scene.wait_ended())[0].fault is Fault.WRONG_SENDER
    assert not scene.chat.requests


# ---- limits


async def test_a_client_is_not_queued_but_told_when_there_should_be_room(scene: Scene) -> None:
    scene.slots = Slots(1)
    scene.chat = ScriptedChat.playing((6.0, "Slowly."))
    async with scene.call() as first, scene.call(CAT) as second:
        await first.ask()
        await first.expect(Accepted)
        await second.ask()
        busy = await second.expect(Busy)
        assert 0 < busy.retry_after <= 60_000
        await first.expect(Delta)
        await first.expect(LlmFinal)
        await second.answer()
    assert [event.fault for event in await scene.wait_ended(2)] == [None, None]


async def test_a_client_that_calls_too_often_in_a_minute_is_told_when_to_come_back_and_others_are_served(
    scene: Scene,
) -> None:
    scene.slots = Slots(4, requests_per_minute=2)
    async with scene.call() as caller:
        for _ in range(2):
            _, final = await caller.answer()
            assert isinstance(final, LlmFinal)
            await caller.pay(final)
        await caller.ask()
        busy = await caller.expect(Busy)
        assert 50_000 < busy.retry_after <= 60_000
        async with scene.call(CAT) as other:
            await other.answer()
        await trio.sleep(busy.retry_after / 1000)
        await caller.answer()


async def test_when_the_days_tokens_are_used_up_the_client_is_told_so(scene: Scene) -> None:
    counter = MemoryTokenCounter()
    scene.cap = DailyCap(1000, counter, lambda: Millis(scene.clock()))
    scene.context = 4096
    async with scene.call() as caller:
        _, final = await caller.answer(caller.request(max_tokens=900))
        assert isinstance(final, LlmFinal)
        await caller.pay(final)
        assert sum(counter.days.values()) == final.receipt.tokens
        error = await refusal(caller, caller.request(max_tokens=1000))
        assert error.kind == ErrorKind.EXHAUSTED
        assert sum(counter.days.values()) == final.receipt.tokens


async def test_of_the_days_tokens_a_call_that_fails_takes_what_was_read_and_written(scene: Scene) -> None:
    counter = MemoryTokenCounter()
    scene.cap = DailyCap(1000, counter, lambda: Millis(scene.clock()))
    scene.chat = ScriptedChat.playing((BackendFailed("refused"),), ("x" * 30, BackendFailed("broke off")))
    async with scene.call() as caller:
        await caller.answer()
        assert sum(counter.days.values()) == 0
        await caller.answer(caller.request("four words of it"))
        assert sum(counter.days.values()) == 4 + 10
