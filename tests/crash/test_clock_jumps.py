"""A wall clock that is set back or forward by an hour holds nothing up for longer than it must, and breaks nothing."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from loremesh.errors import ProtocolError
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.fork_choice import MAX_HELD, MAX_ORPHANS, is_canonical
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Evidence, Head, PeerChanged, Rejected
from loremesh.services.liveness import DEAD_AFTER
from loremesh.testing.builders import BOB, CAT, DAN, EASY, small_genesis
from loremesh.testing.happened import Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, wait_agreement
from loremesh.testing.virtual_time import virtual_clock

HOUR = 3_600_000
SECOND = 1000
GENESIS = small_genesis()


@dataclass(slots=True)
class SetClock:
    """A wall clock that somebody sets."""

    off: int = 0

    def __call__(self) -> Millis:
        return Millis(virtual_clock(GENESIS.time)() + self.off)


def chain_on(disk: MemoryDisk, clock: Callable[[], Millis], happened: Happened) -> ChainService:
    def penalize(peer_id: PeerId, what: str, error: ProtocolError) -> None:
        raise AssertionError(f"nobody did anything wrong: {what}: {error}")

    return ChainService(GENESIS, disk, clock=clock, tell=happened, penalize=penalize)


async def test_what_was_kept_is_there_after_a_restart_with_the_clock_set_back(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    disk, orchard, clock = MemoryDisk(), Orchard(GENESIS), SetClock(HOUR)
    length = MAX_HELD + MAX_ORPHANS + 30
    blocks = orchard.grow(orchard.root, length, BOB, CAT)
    chain = chain_on(disk, clock, Happened())
    nursery.start_soon(chain.run)
    await chain.submit_all(blocks, None)

    clock.off = 0
    again = chain_on(disk, clock, Happened())
    await again.restore()

    assert again.store.head == name_of(blocks[-1])
    assert all(is_canonical(again.store, name_of(block)) for block in blocks)
    assert not again.store.held
    assert not again.store.orphans
    assert again.store.now == clock()


async def test_blocks_of_a_chain_that_is_ahead_wait_and_join_as_time_passes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    orchard, clock, happened = Orchard(GENESIS), SetClock(HOUR), Happened()
    chain = chain_on(MemoryDisk(), clock, happened)
    nursery.start_soon(chain.run)
    first, *rest = orchard.grow(orchard.root, 20, BOB, CAT)
    await chain.submit(first, DAN.peer_id)

    clock.off = -HOUR
    await chain.submit_all(rest, DAN.peer_id)
    await trio.sleep(HOUR / SECOND)
    assert chain.store.head == name_of(first)
    await happened.wait(Head, lambda head: head.hash == name_of(rest[-1]))
    assert clock() >= rest[-1].header.time - GENESIS.parameters.max_ahead


async def test_a_held_block_joins_within_seconds_of_the_clock_being_set_forward(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    orchard, clock, happened = Orchard(GENESIS), SetClock(-HOUR), Happened()
    chain = chain_on(MemoryDisk(), clock, happened)
    nursery.start_soon(chain.run)
    [block] = orchard.grow(orchard.root, 1, BOB)
    await chain.submit(block, DAN.peer_id)
    assert chain.store.held

    began = trio.current_time()
    clock.off = HOUR
    await happened.wait(Head)
    assert trio.current_time() - began <= 1


@pytest.mark.parametrize("jump", [-HOUR, HOUR])
async def test_the_story_goes_on_when_the_clock_of_every_node_jumps(
    nursery: trio.Nursery, autojump_clock: MockClock, jump: int
) -> None:
    clock = SetClock()
    network = SmallNetwork(nursery, seed=5)
    network.clock = clock
    ann = await network.start("ann", mines=True)
    bob = await network.start("bob", ann, mines=True)
    before = await wait_agreement([ann, bob], 5)
    began = trio.current_time()

    clock.off = jump
    await trio.sleep(max(0, -jump / SECOND))
    await wait_agreement([ann, bob], ann.height + 5)

    # Forward it goes on at once; back, once the time of the head has come again.
    assert trio.current_time() - began <= (HOUR / SECOND + 120 if jump < 0 else 120)
    for node in (ann, bob):
        assert is_canonical(node.chain.store, before)
        assert not node.happened.of(Rejected)
        assert not node.happened.of(Evidence)


async def test_a_miner_goes_on_within_seconds_once_its_clock_is_right_again(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    clock = SetClock()
    network = SmallNetwork(nursery, seed=6)
    network.clock = clock
    ann = await network.start("ann", mines=True)
    await ann.wait_height(3)

    clock.off = -HOUR
    await trio.sleep(60)
    height = ann.height
    assert height <= 4
    clock.off = 0
    began = trio.current_time()
    await ann.wait_height(height + 1)
    assert trio.current_time() - began <= 30


async def test_a_peer_whose_clock_is_set_back_is_not_taken_for_dead(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    clock = SetClock()
    network = SmallNetwork(nursery, small_genesis(EASY))
    ann = await network.start("ann")
    network.clock = clock
    bob = await network.start("bob", ann)
    await ann.wait_joined(bob.peer_id)
    await bob.wait_joined(ann.peer_id)

    for off in (-HOUR, HOUR, 0):
        clock.off = off
        await trio.sleep(4 * DEAD_AFTER)
    assert [one.change for one in ann.happened.of(PeerChanged)] == ["joined"]
    assert [one.change for one in bob.happened.of(PeerChanged)] == ["joined"]


async def test_one_node_with_a_wrong_clock_neither_splits_nor_stops_the_others(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = SmallNetwork(nursery, seed=7)
    ann = await network.start("ann", mines=True)
    bob = await network.start("bob", ann, mines=True)
    right, network.clock = network.clock, SetClock(HOUR)
    cat = await network.start("cat", ann, bob, mines=True)
    network.clock = right
    await wait_agreement([ann, bob], 12)
    assert {one.change for one in ann.happened.of(PeerChanged)} == {"joined"}
    assert not cat.happened.of(Rejected)
