"""Executors that are lost in the middle of an answer, and wrong bills: the caller has its answer all the same."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.errors import (
    ErrorKind,
    NoExecutor,
)
from loremesh.primitives import Hash
from loremesh.protocol.journal import Dispute, EntryKind
from loremesh.protocol.llm import ChatMessage
from loremesh.protocol.receipts import CUT, PartialReceipt, SignedReceipt, check_evidence
from loremesh.testing.builders import ANN, BOB, CAT, DAN
from loremesh.testing.calling_scene import CHAT, TEXT, world
from loremesh.testing.calls import ASKED, PIECES, PRICE, count_words
from loremesh.testing.scripted_executor import (
    Line,
    Script,
    bills,
    busy,
    honest,
    lost_after,
    refuses,
    repeats,
    silent_after,
    talks_on,
)
from loremesh.testing.virtual_time import run_jumping

pytestmark = pytest.mark.usefixtures("autojump_clock")


# ---- In the middle --------------------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[[int], Script]] = {
    "is lost": lost_after,
    "is silent": silent_after,
    "fails": lambda pieces: refuses(ErrorKind.BACKEND_FAILED, pieces),
}


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("name", LOSSES)
async def test_who_is_lost_in_the_middle_is_continued_by_the_next_and_both_are_paid(name: str, pieces: int) -> None:
    async with world([LOSSES[name](pieces)], [honest]) as here:
        answer = await here.call(fold_words=20)
        await here.settled()
        assert answer.text == TEXT
        assert answer.executors == (BOB.peer_id, CAT.peer_id)
        partial, full = answer.evidence
        assert isinstance(partial, PartialReceipt)
        assert isinstance(full, SignedReceipt)
        assert (partial.receipt.finish, partial.receipt.executor) == (CUT, BOB.peer_id)
        assert answer.usage.total_tokens == check_evidence(partial).tokens + check_evidence(full).tokens
        assert answer.served is None
        (request,) = here.executors[CAT].requests
        assert (request.continues, request.fold_words) == (1, 0)
        delivered = "".join(PIECES[:pieces])
        assert request.messages == (*ASKED, ChatMessage("assistant", delivered))
        assert request.max_tokens == CHAT.max_tokens - count_words(delivered)
        assert here.kinds().count(EntryKind.VOUCHER) == 2
        assert not here.executors[BOB].vouchers


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=60).filter(lambda text: text.encode("utf-8", "ignore").decode() == text), st.data())
def test_an_answer_cut_anywhere_any_number_of_times_is_the_same_to_the_byte(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text)), max_size=8)) | {len(text)})
    pieces = tuple(text[start:end] for start, end in zip([0, *cuts], cuts, strict=False))
    losses = data.draw(st.lists(st.integers(0, len(pieces)), min_size=2, max_size=2))

    async def main() -> None:
        async with world(*([lost_after(loss)] for loss in losses), [honest], pieces=pieces) as here:
            answer = await here.call()
            await here.settled()
            assert answer.text == text
            tokens = [check_evidence(one).completion_tokens for one in answer.evidence]
            parts = [one.receipt.output_digest for one in answer.evidence]
            assert sum(tokens) == answer.usage.completion_tokens
            assert len(parts) == len(answer.executors)

    run_jumping(main)


async def test_the_partial_voucher_is_handed_in_at_the_next_contact() -> None:
    async with world([honest, lost_after(2), honest], [honest]) as here:
        first = await here.call()
        await here.settled()
        answer = await here.call()
        await here.settled()
        await trio.sleep(10)
        here.executors[CAT].scripts = [busy(60)]
        await here.call()
        await here.settled()
        (handed,) = here.executors[BOB].handed_in
        assert handed.evidence == answer.evidence[0]
        assert handed.voucher.voucher.receipts == 2
        assert handed.voucher.voucher.amount == first.evidence[0].receipt.amount + answer.evidence[0].receipt.amount


async def test_what_an_executor_failed_in_the_middle_of_is_the_last_of_its_session() -> None:
    async with world([refuses(ErrorKind.BACKEND_FAILED, 2), honest], [honest]) as here:
        await here.call()
        await here.settled()
        await trio.sleep(10)
        here.executors[CAT].scripts = [busy(60)]
        await here.call()
        await here.settled()
        first, second = here.executors[BOB].requests
        assert first.session != second.session
        assert [signed.voucher.receipts for signed in here.executors[BOB].vouchers] == [1, 1]


async def test_an_answer_that_was_cut_where_it_had_to_end_is_complete() -> None:
    async with world([lost_after(3)]) as here:
        answer = await here.call(max_tokens=count_words(TEXT))
        assert (answer.text, answer.finish) == (TEXT, "length")
        assert [one.receipt.finish for one in answer.evidence] == [CUT]


async def test_a_call_that_fails_in_the_middle_costs_nothing() -> None:
    async with world([lost_after(2)], [refuses(ErrorKind.BACKEND_FAILED)]) as here:
        with pytest.raises(NoExecutor) as caught:
            await here.call()
        await here.settled()
        assert len(caught.value.tried) == 2
        assert not here.journal.entries


# ---- Bills that are wrong -------------------------------------------------------------------------------------------

LIES: dict[str, dict[str, Any]] = {
    "request": {"request": Hash(b"\x01" * 32)},
    "client": {"client": DAN.peer_id},
    "session": {"session": Hash(b"\x02" * 32)},
    "model": {"model": "large-model"},
    "tokenizer": {"tokenizer": "mine"},
    "prompt_tokens": {"prompt_tokens": 10_000},
    "completion_tokens": {"completion_tokens": 0},
    "prompt_digest": {"prompt_digest": Hash(b"\x03" * 32)},
    "output_digest": {"output_digest": Hash(b"\x04" * 32)},
    "amount": {"amount": 10**12},
    "finish": {"finish": "tired"},
    "time": {"time": 5},
}


@pytest.mark.parametrize("field", LIES)
async def test_a_wrong_bill_is_refused_by_name_and_the_answer_given_all_the_same(field: str) -> None:
    async with world([bills(**LIES[field])], [honest]) as here:
        answer = await here.call()
        await here.settled()
        assert answer.text == TEXT
        assert answer.executors == (BOB.peer_id,)
        assert answer.evidence == ()
        assert answer.usage.completion_tokens == count_words(TEXT)
        (warning,) = answer.warnings
        assert field in warning
        (entry,) = here.journal.entries
        assert isinstance(entry.fact, Dispute)
        assert (entry.fact.by, entry.fact.field) == (ANN.peer_id, field)
        assert entry.request == here.executors[BOB].requests[0].id
        await here.executors[BOB].wait(lambda: bool(here.executors[BOB].refusals))
        assert field in here.executors[BOB].refusals[0].reason
        assert not here.executors[BOB].vouchers
        assert (await here.call()).executors == (CAT.peer_id,)


async def test_a_session_whose_bill_was_refused_is_over() -> None:
    async with world([bills(completion_tokens=0), honest]) as here:
        await here.call()
        await here.settled()
        await here.call()
        await here.settled()
        first, second = here.executors[BOB].requests
        assert first.session != second.session
        assert [signed.voucher.receipts for signed in here.executors[BOB].vouchers] == [1]


async def test_a_price_above_the_accepted_one_is_refused() -> None:
    async with world([bills_more], [honest]) as here:
        answer = await here.call()
        await here.settled()
        assert "price" in answer.warnings[0]
        assert here.kinds() == [EntryKind.REFUSED]


async def bills_more(line: Line) -> None:
    tokens = 7 + 8
    await bills(price=PRICE + 100, amount=-(-tokens * (PRICE + 100) // 1000))(line)


async def test_pieces_after_the_end_cost_their_executor_its_reputation_and_not_the_caller() -> None:
    async with world([talks_on], [honest]) as here:
        answer = await here.call()
        await here.settled()
        assert (answer.text, answer.warnings) == (TEXT, ())
        assert (await here.call()).executors == (CAT.peer_id,)


async def test_a_piece_that_comes_twice_is_delivered_once() -> None:
    async with world([repeats], [honest]) as here:
        answer = await here.call()
        assert answer.text == TEXT
        assert answer.executors == (BOB.peer_id, CAT.peer_id)
