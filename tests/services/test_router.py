"""One answer, whoever gave it: what is asked, who is asked next, and when there is no answer."""

from dataclasses import replace
from typing import Any

import pytest
import trio

from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    MachineError,
    NoExecutor,
    Unreachable,
    UnsupportedModel,
)
from loremesh.primitives import Hash
from loremesh.protocol.journal import Dispute, EntryKind
from loremesh.protocol.llm import ChatMessage
from loremesh.protocol.receipts import CUT, SignedReceipt, check_evidence
from loremesh.protocol.vouchers import SignedVoucher, VoucherAccepted, VoucherRefused, next_voucher
from loremesh.services.router import MOST_ATTEMPTS
from loremesh.services.routing import short_name
from loremesh.testing.builders import BOB, CAT
from loremesh.testing.calling_scene import CHAT, TEXT, CallingScene, world
from loremesh.testing.calls import ASKED, PRICE, count_words
from loremesh.testing.scripted_executor import (
    MODEL,
    Script,
    accept,
    accepts,
    answers_and_speaks_to_itself,
    babbles,
    busy,
    honest,
    leaves,
    lies_of_the_paragraph,
    lost_after,
    refuses,
    shows_life,
    signs_another,
    silent_after,
    speaks_to_itself,
)

pytestmark = pytest.mark.usefixtures("autojump_clock")


# ---- All goes well --------------------------------------------------------------------------------------------------


async def test_an_answer_is_what_the_executor_wrote_and_its_bill_is_countersigned() -> None:
    async with world([honest]) as here:
        answer = await here.call()
        await here.settled()
        assert (answer.text, answer.finish, answer.model) == (TEXT, "stop", MODEL)
        assert answer.executors == (BOB.peer_id,)
        assert answer.usage.prompt_tokens == sum(count_words(message.content) for message in ASKED)
        assert answer.usage.completion_tokens == count_words(TEXT)
        assert answer.backend_usage is not None
        assert not answer.warnings
        (evidence,) = answer.evidence
        assert check_evidence(evidence).tokens == answer.usage.total_tokens
        assert here.kinds() == [EntryKind.RECEIVED, EntryKind.VOUCHER, EntryKind.DELIVERED]
        (voucher,) = here.executors[BOB].vouchers
        assert voucher.voucher.amount == evidence.receipt.amount


async def test_what_is_asked_is_what_the_executor_reads() -> None:
    chat = replace(
        CHAT, temperature=0.7, top_p=0.25, seed=5, stop=("\n",), response_format={"type": "json_object"}, max_price=900
    )
    async with world([honest]) as here:
        await here.call(chat)
        (request,) = here.executors[BOB].requests
        assert (request.temperature, request.top_p, request.seed) == ((700,), (250,), (5,))
        assert (request.stop, request.response_format) == (("\n",), '{"type": "json_object"}')
        assert (request.max_tokens, request.max_price, request.continues) == (200, 900, 0)
        assert request.messages == ASKED


async def test_calls_one_after_another_share_a_lane_and_a_session_whose_vouchers_add_up() -> None:
    async with world([honest]) as here:
        for _ in range(5):
            await here.call()
            await here.settled()
        executor = here.executors[BOB]
        assert len({request.session for request in executor.requests}) == 1
        assert len({request.id for request in executor.requests}) == 5
        assert [signed.voucher.receipts for signed in executor.vouchers] == [1, 2, 3, 4, 5]
        previous = None
        receipts = [entry.fact for entry in here.journal.of(EntryKind.RECEIVED)]
        for signed, evidence in zip(executor.vouchers, receipts, strict=True):
            assert isinstance(evidence, SignedReceipt)
            previous = next_voucher(previous, evidence.receipt)
            assert signed.voucher == previous


async def test_calls_side_by_side_have_sessions_of_their_own() -> None:
    async with world([honest], pause=0.1) as here:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(here.mesh.call, CHAT, _drop)
        await here.settled()
        executor = here.executors[BOB]
        assert len({request.session for request in executor.requests}) == 6
        assert [signed.voucher.receipts for signed in executor.vouchers] == [1] * 6


async def test_a_burst_spreads_over_the_executors_there_are() -> None:
    async with world([honest], [honest], pause=1) as here:
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(here.mesh.call, CHAT, _drop)
        assert [len(one.requests) for one in here.executors.values()] == [3, 3]


async def test_pieces_are_delivered_as_they_come() -> None:
    times = []

    async def deliver(text: str) -> None:
        times.append(round(trio.current_time(), 1))

    async with world([honest], pause=2.0) as here:
        began = round(trio.current_time(), 1)
        await here.mesh.call(CHAT, deliver)
        assert [round(time - began) for time in times] == [2, 4, 6]


async def test_whether_pieces_are_read_is_told_to_the_executor() -> None:
    async with world([honest]) as here:
        await here.call()
        await here.call(is_whole=True)
        assert here.executors[BOB].whole == [False, True]


async def test_an_executor_that_shows_life_is_waited_for_where_nobody_reads_pieces() -> None:
    async with world([shows_life(100)], [honest]) as here:
        began = trio.current_time()
        answer = await here.call(is_whole=True)
        assert answer.executors == (BOB.peer_id,)
        assert 100 <= trio.current_time() - began < 101


async def test_an_executor_that_stops_showing_life_is_given_up_after_thirty_seconds() -> None:
    async with world([shows_life(100, every=40)], [honest]) as here:
        began = trio.current_time()
        answer = await here.call(is_whole=True)
        assert answer.executors == (CAT.peer_id,)
        assert 30 <= trio.current_time() - began < 31


async def test_whoever_reads_pieces_takes_no_sign_of_life_for_one() -> None:
    async with world([shows_life(100)], [honest]) as here:
        answer = await here.call()
        assert answer.executors == (CAT.peer_id,)
        assert "unexpected message: llm-waiting" in answer.attempts[-2]


async def test_the_answer_does_not_wait_for_the_acknowledgement_of_its_voucher() -> None:
    async with world([honest], answers_vouchers=silent) as here:
        began = trio.current_time()
        await here.call()
        assert trio.current_time() - began < 1
        await here.settled()
        assert here.kinds() == [EntryKind.RECEIVED, EntryKind.VOUCHER]


async def test_a_voucher_is_written_down_before_it_is_sent() -> None:
    async with world([honest]) as here:
        executor = here.executors[BOB]
        await here.call()
        await executor.wait(lambda: bool(executor.vouchers))
        assert here.kinds()[:2] == [EntryKind.RECEIVED, EntryKind.VOUCHER]


async def test_what_cannot_be_written_down_is_not_signed() -> None:
    async with world([honest]) as here:
        here.journal.failure = MachineError("disk full")
        answer = await here.call()
        await here.settled()
        assert answer.text == TEXT
        assert not here.executors[BOB].vouchers
        assert not here.journal.entries


async def test_a_voucher_that_was_not_acknowledged_is_handed_in_at_the_next_contact() -> None:
    async with world([honest]) as here:
        executor = here.executors[BOB]
        await here.call()
        await here.settled()
        executor.answers_vouchers = silent
        first = await here.call()
        await here.settled()
        executor.answers_vouchers = accept
        await here.call()
        await here.settled()
        (handed,) = executor.handed_in
        assert handed.evidence == first.evidence[0]
        assert here.kinds().count(EntryKind.DELIVERED) == 3
        await here.call()
        await here.settled()
        assert len(executor.handed_in) == 1


def silent(_: SignedVoucher) -> None:
    return None


async def test_an_acknowledgement_of_another_voucher_is_none() -> None:
    def another(_: SignedVoucher) -> VoucherAccepted:
        return VoucherAccepted(Hash(b"\x07" * 32))

    async with world([honest], [honest]) as here:
        here.executors[BOB].answers_vouchers = another
        await here.call()
        await here.settled()
        assert here.kinds() == [EntryKind.RECEIVED, EntryKind.VOUCHER]
        assert (await here.call()).executors == (CAT.peer_id,)


async def test_an_acknowledgement_that_is_for_somebody_else_is_none() -> None:
    async with world([answers_and_speaks_to_itself], [honest]) as here:
        await here.call()
        await here.settled()
        assert here.kinds() == [EntryKind.RECEIVED, EntryKind.VOUCHER]
        assert (await here.call()).executors == (CAT.peer_id,)


async def test_a_voucher_that_its_executor_does_not_take_is_kept_as_disputed_and_ends_the_session() -> None:
    def refuse(_: SignedVoucher) -> VoucherRefused:
        return VoucherRefused("not what I counted", ())

    async with world([honest]) as here:
        executor = here.executors[BOB]
        executor.answers_vouchers = refuse
        await here.call()
        await here.settled()
        (dispute,) = here.journal.of(EntryKind.REFUSED)
        assert isinstance(dispute.fact, Dispute)
        assert (dispute.fact.by, dispute.fact.reason) == (BOB.peer_id, "not what I counted")
        executor.answers_vouchers = accept
        await here.call()
        await here.settled()
        assert not executor.handed_in
        assert len({request.session for request in executor.requests}) == 2


async def test_a_lane_that_was_broken_while_it_rested_costs_nothing_but_a_new_one() -> None:
    async with world([honest, leaves_after_paying, honest]) as here:
        await here.call()
        await here.settled()
        answer = await here.call()
        assert answer.text == TEXT
        assert len(here.executors[BOB].requests) >= 2
        assert len(answer.attempts) == 2  # what was considered, and that it answered


async def leaves_after_paying(line: Any) -> None:
    await leaves(line)


async def test_the_statement_of_who_served_comes_with_an_answer_that_one_executor_wrote() -> None:
    async with world([honest]) as here:
        answer = await here.call(fold_words=20)
        assert answer.served is not None
        assert answer.served.serving.executor == BOB.peer_id
        assert (await here.call()).served is None


async def test_a_statement_that_says_something_else_is_not_passed_on() -> None:
    async with world([lies_of_the_paragraph]) as here:
        answer = await here.call(fold_words=20)
        assert (answer.text, answer.served) == (TEXT, None)


# ---- Fail-over before the first piece -------------------------------------------------------------------------------

BEFORE: dict[str, tuple[Script, str]] = {
    "refuses": (refuses(ErrorKind.BACKEND_FAILED), "0 of 1 calls"),
    "does not serve it": (refuses(ErrorKind.UNSUPPORTED_MODEL), "0 of 1 calls"),
    "gives an error that is none": (refuses("tired"), "0 of 5 calls"),
    "is silent": (silent_after(None), "0 of 1 calls"),
    "is silent after accepting": (silent_after(0), "0 of 1 calls"),
    "is lost": (lost_after(0), "0 of 1 calls"),
    "leaves": (leaves, "0 of 1 calls"),
    "babbles": (babbles, "0 of 5 calls"),
    "says it to somebody else": (speaks_to_itself, "0 of 5 calls"),
    "accepts another request": (accepts(request=Hash(b"\x0a" * 32)), "0 of 5 calls"),
    "accepts for more than was agreed": (accepts(price=1001), "0 of 5 calls"),
    "signs another request's digest": (signs_another, "0 of 5 calls"),
    "is busy": (busy(60), "busy for"),
    "is exhausted": (refuses(ErrorKind.EXHAUSTED), "busy for"),
}
"""What an executor does, and how the next call explains what it thinks of that."""


@pytest.mark.parametrize("name", BEFORE)
async def test_who_fails_before_the_first_piece_is_replaced_by_the_next(name: str) -> None:
    script, reputation = BEFORE[name]
    async with world([script], [honest]) as here:
        answer = await here.call(max_price=1000)
        await here.settled()
        assert answer.text == TEXT
        assert answer.executors == (CAT.peer_id,)
        assert len(here.executors[BOB].requests) == 1
        assert {entry.executor for entry in here.journal.entries} == {CAT.peer_id}
        again = await here.call(max_price=1000)
        assert any(short_name(BOB.peer_id) in line and reputation in line for line in again.attempts)
        assert len(here.executors[BOB].requests) == 1


async def test_each_attempt_has_a_request_of_its_own() -> None:
    async with world([lost_after(0)], [refuses(ErrorKind.BACKEND_FAILED)], [honest]) as here:
        await here.call()
        requests = [request for one in here.executors.values() for request in one.requests]
        assert len({request.id for request in requests}) == len({request.session for request in requests}) == 3


async def test_a_busy_executor_is_asked_again_when_it_has_said_to_be_free() -> None:
    async with world([busy(3), honest]) as here:
        began = trio.current_time()
        answer = await here.call()
        assert answer.text == TEXT
        assert 3 <= trio.current_time() - began < 4


async def test_nobody_stands_in_line_for_one_executor_while_another_has_room() -> None:
    async with world([honest, busy(1), honest], [honest], pause=1.0) as here:
        took = list[float]()

        async def call() -> None:
            began = trio.current_time()
            await here.mesh.call(CHAT, _drop)
            took.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(call)
        assert max(took) < 5
        assert all(one.requests for one in here.executors.values())


async def test_when_all_are_busy_for_long_the_caller_is_told_how_long() -> None:
    async with world([busy(60)], [busy(40)]) as here:
        with pytest.raises(ExecutorBusy) as caught:
            await here.call()
        assert 39 < caught.value.retry_after <= 40
        with pytest.raises(ExecutorBusy):
            await here.call()
        assert [len(one.requests) for one in here.executors.values()] == [1, 1]


async def test_who_has_failed_is_not_asked_again_in_the_same_call() -> None:
    async with world([lost_after(0), honest], [busy(3), busy(1), honest]) as here:
        answer = await here.call()
        assert answer.executors == (CAT.peer_id,)
        assert [len(one.requests) for one in here.executors.values()] == [1, 3]


async def test_one_call_asks_only_so_often() -> None:
    async with world([busy(0.1)]) as here:
        with pytest.raises(ExecutorBusy):
            await here.call()
        assert len(here.executors[BOB].requests) == MOST_ATTEMPTS


async def test_a_lane_on_which_nothing_was_done_is_used_again() -> None:
    async with world([busy(1), refuses(ErrorKind.BACKEND_FAILED), honest]) as here:
        with pytest.raises(NoExecutor):
            await here.call()
        await here.call()
        assert len({request.session for request in here.executors[BOB].requests}) == 1


async def test_who_refuses_a_request_for_what_it_is_loses_nothing() -> None:
    async with world([refuses(ErrorKind.BAD_REQUEST), honest], [honest]) as here:
        assert (await here.call()).executors == (CAT.peer_id,)
        await here.settled()
        again = await here.call()
        assert any(short_name(BOB.peer_id) in line and "not asked before" in line for line in again.attempts)


async def test_an_answer_far_longer_than_was_asked_for_is_not_read_to_its_end() -> None:
    pieces = tuple(f"word{number} " * 100 for number in range(100))
    async with world([honest], pieces=pieces) as here:
        answer = await here.call(max_tokens=10)
        assert answer.finish == "length"
        assert 1000 < len(answer.text.encode()) <= 10 * 128 + 1024
        assert [one.receipt.finish for one in answer.evidence] == [CUT]


# ---- No answer ------------------------------------------------------------------------------------------------------


async def test_when_nobody_answers_the_caller_hears_who_was_tried() -> None:
    async with world([lost_after(0)], [silent_after(0)], [refuses(ErrorKind.BACKEND_FAILED)]) as here:
        with pytest.raises(NoExecutor) as caught:
            await here.call()
        assert len(caught.value.tried) == 3
        assert short_name(CAT.peer_id) in str(caught.value)


@pytest.mark.parametrize("kind", [ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_TOO_LONG])
async def test_what_all_refuse_for_what_it_is_is_the_callers_to_mend(kind: ErrorKind) -> None:
    async with world([refuses(kind)], [refuses(kind)]) as here:
        with pytest.raises(CallFailed) as caught:
            await here.call()
        assert caught.value.kind is kind
        here.executors[BOB].scripts = [honest]
        assert (await here.call()).executors == (BOB.peer_id,)


async def test_nobody_is_asked_who_asks_more_than_was_agreed() -> None:
    async with world([honest], [honest]) as here:
        with pytest.raises(CallFailed) as caught:
            await here.call(max_price=PRICE - 1)
        assert caught.value.kind is ErrorKind.TOO_EXPENSIVE
        assert not here.executors[BOB].requests


async def test_a_model_that_nobody_serves_is_refused_with_those_that_are() -> None:
    async with world([honest]) as here:
        with pytest.raises(UnsupportedModel) as caught:
            await here.call(model="large-model")
        assert caught.value.served == (MODEL,)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": ()},
        {"messages": (ChatMessage("robot", "x"),)},
        {"messages": (ChatMessage("user", "x" * 600_000),)},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"temperature": 3.0},
        {"top_p": -1.0},
        {"seed": 2**64},
        {"stop": ("",)},
        {"stop": ("x",) * 5},
        {"model": "x" * 200},
        {"messages": (ChatMessage("user", "\ud800"),)},
    ],
    ids=str,
)
async def test_what_cannot_be_asked_is_asked_of_nobody(changes: dict[str, Any]) -> None:
    async with world([honest]) as here:
        with pytest.raises(CallFailed) as caught:
            await here.call(**changes)
        assert caught.value.kind is ErrorKind.BAD_REQUEST
        assert not here.executors[BOB].requests


async def test_a_call_ends_at_its_deadline() -> None:
    async with world([silent_after(1)], pause=1) as here:
        began = trio.current_time()
        with pytest.raises(DeadlinePassed):
            await here.call(deadline=20)
        assert trio.current_time() - began == pytest.approx(20, abs=0.1)
        assert "0 of 1 calls" in (await _considered(here))


async def _considered(here: CallingScene) -> str:
    here.executors[BOB].scripts = [honest]
    return "; ".join((await here.call()).attempts)


async def test_a_caller_that_leaves_resets_the_stream() -> None:
    async with world([silent_after(1)]) as here:
        with trio.move_on_after(5):
            await here.call()
        executor = here.executors[BOB]
        executor.scripts = [honest]
        await here.call()
        await here.settled()
        assert len({request.session for request in executor.requests}) == 2
        assert here.kinds() == [EntryKind.RECEIVED, EntryKind.VOUCHER, EntryKind.DELIVERED]


class Enough(Exception):
    pass


@pytest.mark.parametrize("error", [Enough("enough"), Unreachable("my reader has left")], ids=str)
async def test_what_the_taker_of_pieces_raises_is_raised_and_nobodys_fault(error: Exception) -> None:
    async def refuse(_: str) -> None:
        raise error

    async with world([honest]) as here:
        with pytest.raises(type(error)) as caught:
            await here.mesh.call(CHAT, refuse)
        assert caught.value is error
        assert "0 of 1 calls" not in await _considered(here)


async def _drop(text: str) -> None:
    del text
