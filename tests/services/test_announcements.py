"""Gossip: blocks and transactions spread, malformed ones go no further, and nothing anybody gossips holds a node up."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from loremesh.errors import Fault
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.codec import encode
from loremesh.protocol.identity import Identity
from loremesh.protocol.transaction import transaction_hash
from loremesh.protocol.wire import (
    INLINE_BODY,
    SYNC_PROTOCOL,
    BlockAnnouncement,
    MessageType,
    Nothing,
    seal,
    seal_bytes,
    topic,
)
from loremesh.services.happenings import Head, Rejected
from loremesh.services.sync import Puller
from loremesh.testing.builders import BOB, EASY, identity, resigned, small_genesis, suggestion
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
EVE = identity("eve")


def announcement(block: Block, *, inline: bool = True) -> BlockAnnouncement:
    header = block.header
    body = encode(block) if inline else b""
    proof = () if inline else (SignedHeader(header, block.signature),)
    return BlockAnnouncement(header.height, name_of(block), header.producer, header.time, body, proof)


@pytest.fixture
def orchard() -> Orchard:
    return Orchard(GENESIS)


class Gossip:
    """A line of nodes, EVE at its beginning: what the first does not relay, the second never sees."""

    def __init__(self, eve: MemoryNode, first: SmallNode, second: SmallNode) -> None:
        self.eve, self.first, self.second = eve, first, second
        self.story = first.chain.store.story

    async def say(self, name: str, data: bytes) -> None:
        await self.eve.publish(topic(self.story, name), data)

    async def announce(self, payload: object, kind: MessageType = MessageType.BLOCK_ANNOUNCEMENT) -> None:
        await self.say("blocks", seal(EVE, kind, payload, 0))

    async def was_refused(self, fault: Fault) -> None:
        rejected = await self.first.happened.wait(Rejected)
        assert (rejected.peer_id, rejected.fault, rejected.what) == (EVE.peer_id, fault, "gossip message")
        await trio.sleep(5)
        assert self.first.height == self.second.height == 0
        assert not self.second.happened.of(Rejected)
        assert not self.first.chain.store.orphans


@pytest.fixture
async def gossip(new_network: Callable[..., SmallNetwork], nursery: trio.Nursery) -> Gossip:
    network = new_network(GENESIS)
    first = await network.start("ann")
    second = await network.start("bob", first)
    await second.wait_joined(first.peer_id)
    eve = network.between.node(EVE)
    for name in ("blocks", "txs", "peers"):
        await eve.subscribe(topic(first.chain.store.story, name), lambda _signer, _data: None)
    eve.deny(frozenset({second.peer_id}))
    await nursery.start(eve.run)
    await eve.connect(first.address)
    await trio.sleep(10)
    return Gossip(eve, first, second)


async def test_a_block_told_inline_reaches_everybody(gossip: Gossip, orchard: Orchard) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    await gossip.announce(announcement(block))
    await gossip.second.wait_height(1)
    assert gossip.first.head == gossip.second.head == name_of(block)


async def test_a_block_told_by_name_is_fetched_at_once_from_whoever_told_of_it(
    gossip: Gossip, orchard: Orchard
) -> None:
    [block] = orchard.grow(orchard.root, 1, BOB)
    await gossip.second.chain.submit(block, None)
    began = trio.current_time()
    message = seal(BOB, MessageType.BLOCK_ANNOUNCEMENT, announcement(block, inline=False), 0)
    await gossip.second.network.publish(topic(gossip.story, "blocks"), message)
    await gossip.first.wait_height(1)
    assert trio.current_time() - began < 0.5


async def test_names_of_blocks_that_nobody_has_hold_no_gossip_up(gossip: Gossip, orchard: Orchard) -> None:
    blocks = orchard.grow(orchard.root, 40, EVE, identity("zoe"))

    async def hang(_stream: Stream) -> None:
        await trio.sleep_forever()

    gossip.eve.serve(SYNC_PROTOCOL, hang)
    for block in blocks:
        if block.header.producer == EVE.peer_id:
            await gossip.announce(announcement(block, inline=False))
    began = trio.current_time()
    await gossip.announce(announcement(blocks[0]))
    await gossip.first.wait_height(1)
    assert trio.current_time() - began < 1


async def test_a_block_with_an_unknown_parent_is_relayed_and_waits(gossip: Gossip, orchard: Orchard) -> None:
    _, orphan = orchard.grow(orchard.root, 2, BOB, EVE)
    await gossip.announce(announcement(orphan))
    await trio.sleep(1)
    assert name_of(orphan) in gossip.first.chain.store.orphans
    assert name_of(orphan) in gossip.second.chain.store.orphans
    assert not gossip.first.happened.of(Rejected)


async def test_a_block_announced_by_another_than_its_producer_is_refused(gossip: Gossip, orchard: Orchard) -> None:
    [block] = orchard.grow(orchard.root, 1, BOB)
    await gossip.announce(announcement(block))
    await gossip.was_refused(Fault.WRONG_SENDER)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"hash": Hash(b"\x05" * 32)}, Fault.NOT_AS_ASKED),
        ({"height": 7}, Fault.NOT_AS_ASKED),
        ({"timestamp": 7}, Fault.NOT_AS_ASKED),
        ({"body": b"\x00"}, Fault.WRONG_SHAPE),
        ({"body": b"\x95"}, Fault.TRUNCATED),
        ({"producer": PeerId(b"\x05" * 39)}, Fault.WRONG_SENDER),
        ({"body": b""}, Fault.NOT_AS_ASKED),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
async def test_an_announcement_that_is_not_of_its_block_is_refused(
    changes: dict[str, object], fault: Fault, gossip: Gossip, orchard: Orchard
) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    await gossip.announce(replace(announcement(block), **changes))  # type: ignore[arg-type]  # lies in every field
    await gossip.was_refused(fault)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"header": ()}, Fault.NOT_AS_ASKED),
        ({"body": b"\x00"}, Fault.NOT_AS_ASKED),
        ({"hash": Hash(b"\x05" * 32)}, Fault.NOT_AS_ASKED),
        ({"height": 7}, Fault.NOT_AS_ASKED),
        ({"timestamp": 7}, Fault.NOT_AS_ASKED),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
async def test_a_name_without_a_header_that_bears_it_out_is_refused(
    changes: dict[str, object], fault: Fault, gossip: Gossip, orchard: Orchard
) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    await gossip.announce(replace(announcement(block, inline=False), **changes))  # type: ignore[arg-type]  # as above
    await gossip.was_refused(fault)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"target": 1}, Fault.WORK_NOT_MET), ({"story": Hash(b"\x05" * 32)}, Fault.WRONG_STORY)],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
async def test_a_name_for_which_no_work_was_done_is_refused_before_it_is_relayed(
    changes: dict[str, Any], fault: Fault, gossip: Gossip, orchard: Orchard
) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    await gossip.announce(announcement(resigned(block, EVE, **changes), inline=False))
    await gossip.was_refused(fault)


async def test_a_name_that_its_producer_has_not_signed_is_refused(gossip: Gossip, orchard: Orchard) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    forged = replace(block, signature=resigned(block, BOB).signature)
    await gossip.announce(announcement(forged, inline=False))
    await gossip.was_refused(Fault.BAD_SIGNATURE)


async def test_of_the_names_of_one_piece_of_work_two_are_relayed(gossip: Gossip, orchard: Orchard) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    for number in range(2):
        twin = resigned(block, EVE, state_root=Hash(bytes([number]) * 32))
        for _ in range(2):  # and as often as anybody says them
            await gossip.announce(announcement(twin, inline=False))
    await trio.sleep(5)
    assert not gossip.first.happened.of(Rejected)
    await gossip.announce(announcement(resigned(block, EVE, state_root=Hash(b"\x05" * 32)), inline=False))
    await gossip.was_refused(Fault.EQUIVOCATION)


async def test_a_block_that_is_bad_in_itself_is_refused_before_it_is_relayed(gossip: Gossip, orchard: Orchard) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    forged = replace(block, signature=resigned(block, BOB).signature)
    await gossip.announce(announcement(forged))
    await gossip.was_refused(Fault.BAD_SIGNATURE)


async def test_a_block_whose_state_is_a_lie_is_relayed_by_nobody_who_knows_its_parent(
    gossip: Gossip, orchard: Orchard
) -> None:
    [block] = orchard.grow(orchard.root, 1, EVE)
    await gossip.announce(announcement(resigned(block, EVE, state_root=Hash(b"\x05" * 32))))
    rejected = await gossip.first.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault, rejected.what) == (EVE.peer_id, Fault.WRONG_STATE_ROOT, "block")
    assert gossip.first.height == 0


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", Fault.TRUNCATED),
        (b"\xff" * 64, Fault.TRAILING_BYTES),
        (seal(EVE, MessageType.BLOCK_ANNOUNCEMENT, Nothing(), 0), Fault.WRONG_SHAPE),
        (seal(EVE, MessageType.STATUS_REQUEST, Nothing(), 0), Fault.NOT_AS_ASKED),
        (seal(BOB, MessageType.BLOCK_ANNOUNCEMENT, Nothing(), 0), Fault.WRONG_SENDER),
    ],
    ids=["empty", "junk", "no announcement", "another message", "another sender"],
)
async def test_gossip_that_is_no_announcement_is_refused(data: bytes, fault: Fault, gossip: Gossip) -> None:
    await gossip.say("blocks", data)
    await gossip.was_refused(fault)


async def test_an_announcement_that_is_too_long_is_refused(gossip: Gossip) -> None:
    [block] = Orchard(GENESIS).grow(gossip.story, 1, EVE)
    payload = encode(announcement(block, inline=False))
    await gossip.say("blocks", seal_bytes(EVE, MessageType.BLOCK_ANNOUNCEMENT, payload + bytes(INLINE_BODY + 4096), 0))
    await gossip.was_refused(Fault.TOO_LARGE)


async def test_a_transaction_handed_to_one_node_waits_everywhere(gossip: Gossip) -> None:
    wish = suggestion(EVE, GENESIS, "The sea freezes overnight.")
    puller = Puller(gossip.eve, EVE, lambda: 0)
    name = await puller.hand_in(gossip.first.peer_id, wish)
    await trio.sleep(1)
    assert name == transaction_hash(gossip.story, wish.body)
    assert list(gossip.second.chain.pool.waiting) == [name]


async def test_a_transaction_that_is_badly_signed_goes_no_further(gossip: Gossip) -> None:
    wish = suggestion(EVE, GENESIS, "The sea freezes overnight.")
    forged = replace(wish, signature=suggestion(EVE, GENESIS, "The sea boils.").signature)
    await gossip.say("txs", seal(EVE, MessageType.TRANSACTION, forged, 0))
    await gossip.was_refused(Fault.BAD_SIGNATURE)
    assert not gossip.first.chain.pool.waiting


async def test_a_transaction_that_a_block_overtook_is_nobodys_fault(gossip: Gossip, orchard: Orchard) -> None:
    wish = suggestion(EVE, GENESIS, "The sea freezes overnight.")
    [block] = orchard.grow(orchard.root, 1, EVE, transactions=(wish,))
    await gossip.announce(announcement(block))
    await gossip.second.wait_height(1)
    await gossip.say("txs", seal(EVE, MessageType.TRANSACTION, wish, 0))
    await trio.sleep(1)
    assert not gossip.first.happened.of(Rejected)
    assert not gossip.first.chain.pool.waiting


async def test_requests_are_answered_at_once_and_from_the_current_state_while_the_node_mines(
    new_network: NewNetwork, nursery: trio.Nursery
) -> None:
    """S0-32."""
    network = new_network(latency=0.01)
    node = await network.start("ann", mines=True, thinks=(1, 3))
    rival = await network.start("bob", node, mines=True, thinks=(1, 3))
    eve = network.between.node(EVE)
    await nursery.start(eve.run)
    await eve.connect(node.address)
    puller = Puller(eve, EVE, network.clock)
    seen = set[int]()
    async with trio.open_nursery() as asking:

        async def ask(who: Identity) -> None:
            del who
            while node.height < 5:
                began = trio.current_time()
                before = node.height
                status = await puller.status(node.peer_id)
                assert trio.current_time() - began < 0.2
                assert before <= status.height <= node.height
                seen.add(status.height)
                await trio.sleep(0.2)

        for number in range(20):
            asking.start_soon(ask, identity(f"reader {number}"))
    assert seen >= set(range(5))
    assert len(node.happened.of(Head)) >= 5
    assert rival.height >= 4
