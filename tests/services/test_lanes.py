"""Streams that are kept open: one call at a time on each, so many to one executor, none for ever."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from loremesh.errors import ExecutorBusy, Unreachable
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.llm import LLM_PROTOCOL
from loremesh.services.lanes import IDLE, MOST_LANES, Lanes
from loremesh.testing.builders import ANN, BOB
from loremesh.testing.memory_network import MemoryNetwork

pytestmark = pytest.mark.usefixtures("autojump_clock")

WHO = BOB.peer_id


class Far:
    """An executor's side: how its streams ended."""

    def __init__(self) -> None:
        self.open = 0
        self.finished = 0
        self.reset = 0

    async def serve(self, stream: Stream) -> None:
        self.open += 1
        try:
            while await stream.receive(1e6) is not None:
                pass
            self.finished += 1
        except Unreachable:
            self.reset += 1
            raise
        finally:
            self.open -= 1


@asynccontextmanager
async def lanes() -> AsyncIterator[tuple[Lanes, Far, list[PeerId]]]:
    between, far, reached = MemoryNetwork(), Far(), list[PeerId]()
    async with trio.open_nursery() as nursery:
        near, other = between.node(ANN, NetworkSettings(listen_addresses=())), between.node(BOB)
        other.serve(LLM_PROTOCOL, far.serve)
        await nursery.start(near.run)
        await nursery.start(other.run)

        async def reach(peer: PeerId) -> None:
            reached.append(peer)
            await near.connect(other.place)

        here = Lanes(near, reach)
        await nursery.start(here.run)
        yield here, far, reached
        nursery.cancel_scope.cancel()


async def test_a_lane_is_used_again_with_its_session_and_its_executor_reached_once() -> None:
    async with lanes() as (here, far, reached):
        first = await here.take(WHO)
        here.give_back(first)
        again = await here.take(WHO)
        assert again is first
        assert (reached, far.open) == ([WHO], 1)
        here.give_back(again)


async def test_two_at_a_time_have_a_lane_and_a_session_each() -> None:
    async with lanes() as (here, _, _):
        first, second = await here.take(WHO), await here.take(WHO)
        assert first.stream is not second.stream
        assert first.session != second.session
        here.give_back(first)
        here.give_back(second)
        assert here.resting == 2


async def test_whoever_finds_all_lanes_taken_waits_for_one_within_its_deadline() -> None:
    async with lanes() as (here, far, _):
        taken = [await here.take(WHO) for _ in range(MOST_LANES)]
        with trio.move_on_after(5) as deadline:
            await here.take(WHO)
        assert deadline.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.take, WHO)
            await trio.sleep(1)
            here.give_back(taken.pop())
        await trio.sleep(1)
        assert far.open == MOST_LANES


async def test_only_as_many_run_at_once_as_the_executor_had_room_for_and_the_others_take_turns() -> None:
    async with lanes() as (here, _, _):
        first, second, third = [await here.take(WHO) for _ in range(3)]
        here.on_busy(third, 60)
        here.give_back(third)
        with pytest.raises(ExecutorBusy) as caught:
            await here.take(WHO, 3)
        assert caught.value.retry_after == 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.take, WHO, 3)
            await trio.sleep(1)
            here.give_back(first)
        assert here.in_use(WHO) == 2
        here.give_back(second)


async def test_after_a_while_more_is_tried_each_time_twice_as_much() -> None:
    async with lanes() as (here, _, _):
        first, second = [await here.take(WHO) for _ in range(2)]
        here.on_busy(second, 60)
        here.give_back(second)
        for room in (2, 4, 8):
            await trio.sleep(1)
            here.give_back(first)
            taken = [await here.take(WHO, 1) for _ in range(room)]
            with pytest.raises(ExecutorBusy):
                await here.take(WHO, 0.1)
            first = taken.pop()
            for lane in taken:
                here.give_back(lane)
        here.give_back(first)


async def test_a_lane_that_was_asked_to_rest_does_so_while_others_are_used() -> None:
    async with lanes() as (here, _, _):
        first, second = [await here.take(WHO) for _ in range(2)]
        here.give_back(first)
        here.on_busy(second, 20)
        here.give_back(second)
        assert await here.take(WHO) is first
        await trio.sleep(19)
        here.give_back(first)
        assert await here.take(WHO) is first
        third = await here.take(WHO)
        assert third is not second
        await trio.sleep(1)
        here.give_back(first)
        here.give_back(third)
        taken = [await here.take(WHO) for _ in range(3)]
        assert set(map(id, taken)) == {id(first), id(second), id(third)}


async def test_a_lane_that_rests_too_long_is_closed_politely_and_one_in_use_is_not() -> None:
    async with lanes() as (here, far, _):
        first, second = await here.take(WHO), await here.take(WHO)
        here.give_back(first)
        await trio.sleep(IDLE - 1)
        assert far.open == 2
        await trio.sleep(10)
        assert (far.open, far.finished, far.reset, here.resting) == (1, 1, 0, 0)
        here.give_back(second)


async def test_a_lane_that_is_given_up_is_reset_and_never_used_again() -> None:
    async with lanes() as (here, far, _):
        first = await here.take(WHO)
        first.give_up()
        here.give_back(first)
        await trio.sleep(1)
        assert (far.open, far.reset, here.resting) == (0, 1, 0)
        assert await here.take(WHO) is not first


async def test_a_lane_whose_session_is_over_is_left_politely() -> None:
    async with lanes() as (here, far, _):
        first = await here.take(WHO)
        first.end()
        here.give_back(first)
        await trio.sleep(1)
        assert (far.open, far.finished, here.resting) == (0, 1, 0)


async def test_lanes_of_a_connection_that_has_ended_are_forgotten() -> None:
    async with lanes() as (here, _, _):
        here.give_back(await here.take(WHO))
        here.forget(WHO)
        assert here.resting == 0


async def test_an_executor_that_cannot_be_reached_takes_no_place() -> None:
    between = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        near = between.node(ANN, NetworkSettings(listen_addresses=()))
        await nursery.start(near.run)

        async def reach(peer: PeerId) -> None:
            del peer
            raise Unreachable("nobody there")

        here = Lanes(near, reach)
        await nursery.start(here.run)
        for _ in range(2 * MOST_LANES):
            with pytest.raises(Unreachable):
                await here.take(WHO)
        nursery.cancel_scope.cancel()
