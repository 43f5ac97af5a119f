"""Gossip among a hundred nodes: everybody hears everything once, and nothing goes round for ever."""

from collections.abc import Callable

import trio

from loremesh.network.events import GossipReceived
from loremesh.testing.builders import ANN, EASY, small_genesis
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork
from loremesh.testing.weather import Weather

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
NODES = 100
LATENCY = 0.05


async def test_a_block_reaches_a_hundred_nodes_by_gossip_alone(new_network: NewNetwork) -> None:
    orchard = Orchard(GENESIS)
    (block,) = orchard.grow(orchard.root, 1, ANN)
    network = new_network(GENESIS, latency=LATENCY)
    await trio.sleep((block.header.time - GENESIS.time) / 1000)
    nodes = [await network.start("ann")]
    for number in range(1, NODES):
        nodes.append(await network.start(f"node {number}", nodes[number // 2]))
    await trio.sleep(3)
    await nodes[0].chain.submit(block, None)
    began = trio.current_time()
    await nodes[0].story.announcer.announce(block)
    for node in nodes:
        await node.wait_height(1)
    assert trio.current_time() - began < 10 * LATENCY
    assert sum(node.story.sync.pulled for node in nodes) == 0
    assert all(name_of(block) in node.chain.store.entries for node in nodes)


async def test_each_message_is_heard_once_and_then_forgotten(new_network: NewNetwork) -> None:
    network = new_network(GENESIS, latency=LATENCY)
    nodes = [await network.start("ann")]
    for number in range(1, 20):
        nodes.append(await network.start(f"node {number}", *nodes[:2]))
    await trio.sleep(3)
    before = [node.services.heard[GossipReceived] for node in nodes]
    heartbeats = trio.current_time()
    await trio.sleep(60)
    heard = [node.services.heard[GossipReceived] - earlier for node, earlier in zip(nodes, before, strict=True)]
    beats = (trio.current_time() - heartbeats) / 5
    assert all(abs(count / (beats * (len(nodes) - 1)) - 1) < 0.1 for count in heard)


async def test_what_comes_twice_changes_nothing(new_network: NewNetwork) -> None:
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, 5, ANN)
    network = new_network(GENESIS, latency=LATENCY)
    await trio.sleep((blocks[-1].header.time - GENESIS.time) / 1000)
    nodes = [await network.start("ann")]
    nodes += [await network.start(f"node {number}", nodes[0]) for number in range(5)]
    await trio.sleep(3)
    network.between.set_weather(Weather(duplication=1.0))
    await nodes[0].chain.submit_all(blocks, None)
    for block in blocks:
        await nodes[0].story.announcer.announce(block)
    for node in nodes:
        await node.wait_height(5)
    await trio.sleep(10)
    assert all(len(node.chain.store.entries) == 6 for node in nodes)
    assert not any(node.chain.store.orphans for node in nodes)
