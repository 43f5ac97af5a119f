"""Slots: the node's own writing takes the next one, a client is never queued and hears when there should be room."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import BackendBusy, BackendFailed
from loremesh.primitives import PeerId
from loremesh.services.slots import LATEST, SOONEST, MiningFirst, PerMinute, Slots, wait_for_slot
from loremesh.testing.builders import ANN, BOB, paragraph_request
from loremesh.testing.happened import PATIENCE
from loremesh.testing.pretending import PretendBackend

pytestmark = pytest.mark.usefixtures("autojump_clock")


REQUEST = paragraph_request()


async def hold(slots: Slots, peer: PeerId, seconds: float) -> None:
    with slots.client(peer):
        await trio.sleep(seconds)


def refused(slots: Slots, peer: PeerId) -> float:
    with pytest.raises(BackendBusy) as caught, slots.client(peer):
        pass
    assert caught.value.retry_after is not None
    return caught.value.retry_after


async def test_so_many_calls_run_at_once_and_one_more_is_refused_at_once(nursery: trio.Nursery) -> None:
    slots = Slots(2)
    for _ in range(2):
        nursery.start_soon(hold, slots, ANN.peer_id, 5)
    await trio.sleep(1)
    assert slots.running == 2
    assert refused(slots, BOB.peer_id) > 0
    await trio.sleep(5)
    assert slots.running == 0
    with slots.client(BOB.peer_id):
        assert slots.running == 1


async def test_a_call_that_fails_gives_its_slot_back() -> None:
    slots = Slots(1)
    with pytest.raises(BackendFailed), slots.client(ANN.peer_id):
        raise BackendFailed("500")
    assert slots.running == 0


async def test_the_nodes_own_writing_takes_the_next_free_slot_before_any_client(nursery: trio.Nursery) -> None:
    slots = Slots(1)
    wrote = trio.Event()

    async def mine() -> None:
        async with slots.mining():
            wrote.set()
            await trio.sleep(3)

    nursery.start_soon(hold, slots, ANN.peer_id, 5)
    await trio.sleep(1)
    nursery.start_soon(mine)
    await trio.sleep(1)
    refused(slots, BOB.peer_id)
    with trio.fail_after(PATIENCE):
        await wrote.wait()
    assert trio.current_time() == pytest.approx(5)
    refused(slots, BOB.peer_id)
    await trio.sleep(4)
    with slots.client(BOB.peer_id):
        pass


async def test_a_slot_that_falls_free_while_a_miner_waits_is_no_clients(nursery: trio.Nursery) -> None:
    slots = Slots(1)
    nursery.start_soon(hold, slots, ANN.peer_id, 5)
    await trio.sleep(1)

    async def mine() -> None:
        async with slots.mining():
            await trio.sleep(1)

    nursery.start_soon(mine)
    await trio.sleep(4)
    # At this very moment the slot is free, and the miner has not been woken yet, or has it already.
    refused(slots, BOB.peer_id)


async def test_a_miner_whose_round_is_lost_while_it_waits_leaves_no_trace(nursery: trio.Nursery) -> None:
    slots = Slots(1)
    nursery.start_soon(hold, slots, ANN.peer_id, 5)
    await trio.sleep(1)
    with trio.move_on_after(1):
        async with slots.mining():
            raise AssertionError
    await trio.sleep(4)
    with slots.client(BOB.peer_id):
        assert slots.running == 1


async def test_a_writer_behind_slots_writes_as_before_and_holds_one_meanwhile(nursery: trio.Nursery) -> None:
    slots = Slots(1)
    writer = MiningFirst(PretendBackend(0, 2.0, 2.0), slots)
    assert writer.model == "pretend"
    drafts = []

    async def write() -> None:
        drafts.append(await writer.write(REQUEST))

    nursery.start_soon(write)
    await trio.sleep(1)
    refused(slots, ANN.peer_id)
    await trio.sleep(2)
    assert len(drafts) == 1
    assert slots.running == 0
    await writer.aclose()


async def test_one_client_does_not_take_every_slot_where_that_is_wanted(nursery: trio.Nursery) -> None:
    slots = Slots(3, per_client=1)
    nursery.start_soon(hold, slots, ANN.peer_id, 5)
    await trio.sleep(1)
    refused(slots, ANN.peer_id)
    with slots.client(BOB.peer_id):
        pass


async def test_a_clients_calls_of_the_last_minute_are_counted_and_those_of_others_are_not() -> None:
    slots = Slots(9, requests_per_minute=2)
    for _ in range(2):
        with slots.client(ANN.peer_id):
            await trio.sleep(10)
    assert refused(slots, ANN.peer_id) == pytest.approx(40)
    with slots.client(BOB.peer_id):
        pass
    await trio.sleep(40)
    with slots.client(ANN.peer_id):
        pass
    assert refused(slots, ANN.peer_id) == pytest.approx(10)


async def test_what_is_refused_does_not_count_as_a_call() -> None:
    slots = Slots(1, requests_per_minute=2)
    with slots.client(BOB.peer_id):
        for _ in range(5):
            refused(slots, ANN.peer_id)
    with slots.client(ANN.peer_id):
        pass


async def test_of_the_last_minute_nothing_is_kept_once_it_is_over() -> None:
    rate = PerMinute(3)
    for number in range(1000):
        rate.note(PeerId(number.to_bytes(39, "big")))
    await trio.sleep(61)
    assert rate.wait(ANN.peer_id) == 0
    assert not rate._of
    assert not rate._all


async def test_the_wait_that_is_told_follows_how_long_calls_take(nursery: trio.Nursery) -> None:
    slots = Slots(1)
    for _ in range(30):
        await hold(slots, ANN.peer_id, 0.5)
    nursery.start_soon(hold, slots, ANN.peer_id, 20)
    await trio.sleep(0.1)
    assert refused(slots, BOB.peer_id) == pytest.approx(0.4, abs=0.05)


async def test_while_a_backend_asks_us_to_wait_no_client_is_let_in_but_the_miner_is() -> None:
    slots = Slots(4)
    slots.close_for(10)
    slots.close_for(5)
    assert refused(slots, ANN.peer_id) == pytest.approx(10)
    async with slots.mining():
        pass
    await trio.sleep(10)
    with slots.client(ANN.peer_id):
        pass


@given(
    st.lists(st.floats(0, 1000), max_size=8),
    st.floats(0, 1000),
    st.integers(0, 20),
)
def test_a_wait_is_always_within_its_bounds_and_more_ahead_never_make_it_shorter(
    started: list[float], usual: float, ahead: int
) -> None:
    wait = wait_for_slot(started, usual, ahead, 1000)
    assert SOONEST <= wait <= LATEST
    assert wait <= wait_for_slot(started, usual, ahead + 1, 1000)


def test_of_several_calls_the_one_that_began_first_makes_room_first() -> None:
    assert wait_for_slot([96, 98], 6, 0, 100) == pytest.approx(2)
    assert wait_for_slot([96, 98], 6, 1, 100) == pytest.approx(4)
    assert wait_for_slot([96, 98], 6, 2, 100) == pytest.approx(8)
    assert wait_for_slot([50], 6, 0, 100) == pytest.approx(1.5)
