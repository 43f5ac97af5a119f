"""The watch over simulated networks sees what it is there to see."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from loremesh.errors import Fault
from loremesh.protocol.block import Block
from loremesh.protocol.codec import encode
from loremesh.services.happenings import Evidence, Head, Rejected
from loremesh.storage.writes import SaveBlocks, StoredBlock, Write
from loremesh.testing.builders import BOB, CAT, EASY, identity, resigned, small_genesis, suggestion
from loremesh.testing.invariants import Invariants
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
EVE = identity("eve")


class Forgetful(MemoryDisk):
    """Says that it kept what it did not."""

    async def commit(self, *writes: Write) -> None:  # noqa: ARG002 - that is the point
        await trio.lowlevel.checkpoint()


class Watched:
    """A node with three blocks, and a watch over it that has seen nothing wrong."""

    def __init__(self, node: SmallNode, orchard: Orchard) -> None:
        self.node = node
        self.orchard = orchard
        self.said: list[str] = []
        self.watch = Invariants(Orchard(GENESIS), self.said.append)

    def saw(self, what: str) -> bool:
        self.watch.check(self.node)
        return any(what in said for said in self.said)

    async def write(self, block: Block) -> None:
        stored = StoredBlock(name_of(block), block.header.parent, block.header.height, encode(block))
        await self.node.disk.commit(SaveBlocks((stored,)))


@pytest.fixture
async def watched(new_network: NewNetwork) -> Watched:
    node = await new_network(GENESIS).start("ann")
    orchard = Orchard(GENESIS)
    await trio.sleep(60)
    await node.chain.submit_all(orchard.grow(orchard.root, 3, BOB, CAT), None)
    one = Watched(node, orchard)
    for happening in node.happened.all:
        one.watch.on_happening(node, happening)
    assert not one.said
    assert not one.watch.missing(node)
    return one


async def test_a_rejection_of_an_honest_peer(watched: Watched) -> None:
    rejected = Rejected("block", Fault.WRONG_HEIGHT, EVE.peer_id, "")
    watched.watch.liars = frozenset({EVE.peer_id})
    watched.watch.on_happening(watched.node, rejected)
    assert not watched.said
    watched.watch.liars = frozenset()
    watched.watch.on_happening(watched.node, rejected)
    assert watched.saw("penalised the honest")


async def test_evidence_against_an_honest_producer(watched: Watched) -> None:
    watched.watch.on_happening(watched.node, Evidence(BOB.peer_id, "two headers on one parent"))
    assert watched.saw("holds evidence against the honest")


async def test_two_headers_of_one_producer_on_one_parent(watched: Watched) -> None:
    tip = watched.node.head
    for salt in "ab":
        await watched.node.chain.submit_all(watched.orchard.grow(tip, 1, EVE, salt=salt), None)
    assert watched.saw("signed two headers on")


async def test_a_head_that_no_disk_keeps(new_network: NewNetwork) -> None:
    node = await new_network(GENESIS).start("ann", disk=Forgetful())
    watched = Watched(node, Orchard(GENESIS))
    await trio.sleep(60)
    await node.chain.submit_all(watched.orchard.grow(watched.orchard.root, 1, BOB), None)
    assert watched.saw("has a head that is not durable")
    for happening in node.happened.of(Head):
        watched.watch.on_happening(node, happening)
    assert watched.saw("which is not durable")


async def test_a_head_that_is_no_tip(watched: Watched) -> None:
    store = watched.node.chain.store
    watched.node.chain._store = store._replace(head=store.canon[1])
    assert watched.saw("has a head that is no tip of its tree")


async def test_a_lighter_head_than_there_is(watched: Watched) -> None:
    fork = watched.orchard.grow(watched.orchard.root, 1, EVE)
    await watched.node.chain.submit_all(fork, None)
    assert not watched.saw("heavier")
    store = watched.node.chain.store
    canon = store.canon.cut(1).append(name_of(fork[0]))
    light = store._replace(head=name_of(fork[0]), canon=canon)
    watched.node.chain._store = light._replace(max_reorg=0)
    assert not watched.saw("heavier")
    watched.node.chain._store = light
    assert watched.saw("has a heavier branch than its head's")


async def test_an_invalid_block_on_the_disk(watched: Watched) -> None:
    (block,) = watched.orchard.grow(watched.node.head, 1, EVE)
    await watched.write(resigned(block, EVE, height=99))
    assert watched.saw("keeps an invalid block")


async def test_a_block_without_its_parent(watched: Watched) -> None:
    _, block = watched.orchard.grow(watched.node.head, 2, BOB, CAT)
    await watched.write(block)
    assert watched.saw("without its parent")


async def test_a_block_before_its_time(watched: Watched) -> None:
    (block,) = watched.orchard.grow(watched.node.head, 1, EVE, time=watched.node.clock() + 5000)
    await watched.write(block)
    assert watched.saw("ms too early")


async def test_a_pool_that_grew_too_large(watched: Watched) -> None:
    chain = watched.node.chain
    await chain.add_transaction(suggestion(BOB, GENESIS, "The sea freezes."))
    assert not watched.saw("waiting transactions")
    chain._pool = replace(chain.pool, capacity=0)
    assert watched.saw("keeps 1 waiting transactions, more than 0")


async def test_a_block_that_a_node_lacks(watched: Watched, new_network: NewNetwork) -> None:
    other = await new_network(GENESIS).start("bob")
    assert len(watched.watch.missing(other)) == 3
