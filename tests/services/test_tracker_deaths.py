"""A hundred trackers die, one after the other: each is followed by exactly one, and soon. Nobody mines."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest
import trio

from loremesh.protocol.genesis import Validator
from loremesh.services.happenings import Rejected
from loremesh.services.liveness import DEAD_AFTER, HEARTBEAT
from loremesh.testing.builders import EASY, identity, small_genesis
from loremesh.testing.orchard import Orchard
from loremesh.testing.small_network import SmallNetwork, SmallNode, tracker_of, trackers

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
NAMES = ("ann", "bob", "cat", "dan", "fay")
FIRST, *OTHERS = map(identity, NAMES)
GENESIS = replace(small_genesis(EASY, tracker=FIRST), validators=tuple(Validator(one.peer_id) for one in OTHERS))


async def wait_until(is_so: Callable[[], bool], patience: float) -> None:
    """Wait until something is so."""
    with trio.fail_after(patience):
        while not is_so():  # noqa: ASYNC110 - it concerns several nodes, and to look often costs no real time
            await trio.sleep(0.05)


@pytest.mark.parametrize("seed", range(2))
async def test_fifty_deaths_are_each_followed_by_exactly_one_and_soon(new_network: NewNetwork, seed: int) -> None:
    chance = random.Random(seed)
    network = new_network(GENESIS, seed=seed)
    living: dict[str, SmallNode] = {}
    for name in NAMES:
        living[name] = await network.start(name, *living.values())
    orchard = Orchard(network.genesis)
    await trio.sleep(30)
    for _ in range(50):
        [dead] = [name for name, node in living.items() if node.peer_id in trackers(living.values())]
        gone, is_frozen = living.pop(dead), chance.random() < 0.3
        await end(network, gone, living.values(), frozen=is_frozen)
        await wait_until(partial(is_followed, living.values(), gone), DEAD_AFTER + 3 if is_frozen else 3)
        await trio.sleep(chance.uniform(0, 20))
        assert is_followed(living.values(), gone)
        living[dead] = await bring_back(network, dead, gone, living.values(), frozen=is_frozen)
        if chance.random() < 0.7:
            await next_block(network, orchard, living, chance)
    assert not any(node.happened.of(Rejected) for node in living.values())


def is_followed(living: Iterable[SmallNode], gone: SmallNode) -> bool:
    """Tell whether all have accepted one view of one head, and exactly its candidate has the office."""
    living = list(living)
    accepted = {(one.head, one.story.tracker.office.view, tracker_of(one)) for one in living}
    return len(accepted) == 1 and trackers(living) == {tracker_of(living[0])} and tracker_of(living[0]) != gone.peer_id


async def end(network: SmallNetwork, node: SmallNode, others: Iterable[SmallNode], *, frozen: bool) -> None:
    """Freeze a node, or end it as kill -9 would."""
    if frozen:
        for other in others:
            network.between.cut(node.peer_id, other.peer_id, silently=True)
    else:
        node.network.deny(frozenset(node.network.connected()))
        await node.stop()


async def bring_back(
    network: SmallNetwork, name: str, gone: SmallNode, others: Iterable[SmallNode], *, frozen: bool
) -> SmallNode:
    """Thaw or restart a node, and wait until it agrees with the others on a tracker."""
    others = list(others)
    if frozen:
        network.between.heal()
    back = gone if frozen else await network.start(name, *others, disk=gone.disk)
    await trio.sleep(3 * HEARTBEAT)
    await wait_until(lambda: {tracker_of(one) for one in others} == {tracker_of(back)} == trackers([back, *others]), 60)
    return back


async def next_block(
    network: SmallNetwork, orchard: Orchard, living: dict[str, SmallNode], chance: random.Random
) -> None:
    """Let any living node that may find the next block."""
    node = living[chance.choice(sorted(living))]
    if node.chain.store.tip.link.producer == node.peer_id:
        return
    block = orchard.grow(node.head, 1, node.identity, time=network.clock())[0]
    await node.chain.submit(block, None)
    await node.story.announcer.announce(block)
    await wait_until(lambda: {tracker_of(one) for one in living.values()} == {node.peer_id}, 10)
    await trio.sleep(2 * HEARTBEAT)
