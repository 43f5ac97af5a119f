"""Sync: everything that gossip could have carried comes by asking, and whoever lies pays for it."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import DeadlinePassed, Fault, InvalidGenesis, InvalidMessage, ProtocolError, Unreachable
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, Height
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import Store, new_store, on_block
from loremesh.protocol.wire import (
    SYNC_PROTOCOL,
    AccountRequest,
    BlocksRequest,
    GenesisAnswer,
    Headers,
    HeadersRequest,
    MessageType,
    Nothing,
    Status,
    seal,
    unseal,
)
from loremesh.services.happenings import Head, Rejected
from loremesh.services.serving import names_after
from loremesh.services.sync import Puller, locator
from loremesh.testing.builders import BOB, CAT, DAN, EASY, block_on, identity, parent_of, resigned, small_genesis
from loremesh.testing.forests import FAR_FUTURE
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode, wait_agreement

pytestmark = pytest.mark.usefixtures("autojump_clock")

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
EVE = identity("eve")


class Liar:
    """A stranger on the network who answers sync requests from a list of blocks, and lies where told to."""

    def __init__(self, node: MemoryNode, orchard: Orchard, blocks: Sequence[Block]) -> None:
        self.node = node
        self.orchard = orchard
        self.blocks = {name_of(block): block for block in blocks}
        self.headers = [SignedHeader(block.header, block.signature) for block in blocks]
        self.claimed = name_of(blocks[-1])
        self.bodies: list[Block] | None = None
        """Sent whatever was asked for; None: those that were asked for."""
        self.pause = 0.0
        self.asked: list[MessageType] = []
        node.serve(SYNC_PROTOCOL, self.serve)

    async def serve(self, stream: Stream) -> None:
        frame = await stream.receive(10)
        assert frame is not None
        kind, payload = unseal(frame, stream.peer_id)
        self.asked.append(kind)
        await trio.sleep(self.pause)
        match kind:
            case MessageType.STATUS_REQUEST:
                status = Status((self.orchard.root,), Height(len(self.headers)), (self.claimed,), ())
                await self.send(stream, MessageType.STATUS, status)
            case MessageType.HEADERS_REQUEST:
                await self.send(stream, MessageType.HEADERS, Headers(tuple(self.headers)))
            case MessageType.BLOCKS_REQUEST:
                names = decode(BlocksRequest, payload).hashes
                for block in self.bodies if self.bodies is not None else [self.blocks[name] for name in names]:
                    await self.send(stream, MessageType.BLOCK, block)
                    await trio.sleep(self.pause)
        await stream.finish()

    async def send(self, stream: Stream, kind: MessageType, payload: object) -> None:
        await stream.send(seal(EVE, kind, payload, 0, stream.peer_id))


@pytest.fixture
def orchard() -> Orchard:
    return Orchard(GENESIS)


async def keeper(network: SmallNetwork, orchard: Orchard, *blocks: Block, name: str = "ann") -> SmallNode:
    """Start a node that has `blocks` already."""
    node = await network.start(name)
    await trio.sleep_until((max(block.header.time for block in blocks) - GENESIS.time) / 1000)
    await node.chain.submit_all(blocks, None)
    return node


async def meet_liar(network: SmallNetwork, nursery: trio.Nursery, node: SmallNode, liar: MemoryNode) -> None:
    await nursery.start(liar.run)
    await liar.connect(node.address)


def new_liar(network: SmallNetwork, orchard: Orchard, blocks: Sequence[Block]) -> Liar:
    return Liar(network.between.node(EVE), orchard, blocks)


async def test_a_late_joiner_gets_everything_without_gossip(new_network: NewNetwork, orchard: Orchard) -> None:
    network = new_network(GENESIS)
    trunk = orchard.grow(orchard.root, 300, BOB, CAT)
    lost = orchard.grow(name_of(trunk[200]), 3, CAT, DAN)
    first = await keeper(network, orchard, *trunk, *lost)
    joiner = await network.start("dan", first)
    await joiner.services.ready.wait()
    assert joiner.head == name_of(trunk[-1])
    assert name_of(lost[-1]) in joiner.chain.store.tips
    assert joiner.chain.parent() == first.chain.parent()


async def test_a_fork_longer_than_one_answer_is_passed(new_network: NewNetwork, orchard: Orchard) -> None:
    network = new_network(GENESIS)
    heavy, light = orchard.grow(orchard.root, 620, BOB, CAT), orchard.grow(orchard.root, 400, CAT, DAN)
    first = await keeper(network, orchard, *heavy)
    other = await network.start("dan", max_reorg=10_000)
    await other.chain.submit_all(light, None)
    await other.network.connect(first.address)
    assert await wait_agreement([first, other], 620) == name_of(heavy[-1])


async def test_a_side_branch_longer_than_one_answer_is_kept_too(new_network: NewNetwork, orchard: Orchard) -> None:
    network = new_network(GENESIS)
    heavy, light = orchard.grow(orchard.root, 620, BOB, CAT), orchard.grow(orchard.root, 400, CAT, DAN)
    first = await keeper(network, orchard, *heavy, *light)
    other = await network.start("dan", first)
    await wait_agreement([first, other], 620)
    await trio.sleep(60)
    assert name_of(light[-1]) in other.chain.store.tips


async def test_after_a_partition_both_branches_are_everywhere(new_network: NewNetwork) -> None:
    network = new_network()
    first = await network.start("ann", mines=True)
    others = [await network.start(name, first, mines=True) for name in ("bob", "cat", "dan")]
    nodes = [first, *others]
    await first.wait_height(3)
    network.between.partition([first.peer_id, others[0].peer_id], [one.peer_id for one in others[1:]])
    start = first.height
    await first.wait_height(start + 5)
    await others[1].wait_height(start + 5)
    assert first.head != others[1].head
    tips = {first.head, others[1].head}
    network.between.heal()
    head = await wait_agreement(nodes, start + 6)
    assert head not in tips
    await trio.sleep(30)
    for node in nodes:
        assert tips <= {*node.chain.store.entries}
        assert not node.happened.of(Rejected)
    assert any(node.happened.of(Head, lambda one: one.reorg_depth >= 5) for node in nodes)


@pytest.mark.parametrize("are_cut_off", [False, True])
async def test_nodes_that_were_shown_other_headers_of_a_liar_agree_once_somebody_builds(
    new_network: NewNetwork, orchard: Orchard, *, are_cut_off: bool
) -> None:
    network = new_network(GENESIS)
    twins = [orchard.grow(orchard.root, 1, EVE, salt=str(number))[0] for number in range(4)]
    ann = await keeper(network, orchard, *twins[:2])
    bob = await network.start("bob")
    await bob.chain.submit_all(twins[2:], None)
    if not are_cut_off:
        await ann.network.connect(bob.address)
        await trio.sleep(30)  # each has asked the other many times
        for node, own in ((ann, twins[:2]), (bob, twins[2:])):
            assert set(node.chain.store.entries) == {orchard.root, *map(name_of, own)}
    [child] = orchard.grow(name_of(twins[2]), 1, BOB)
    await bob.chain.submit(child, None)
    if are_cut_off:
        await ann.network.connect(bob.address)
    else:
        await bob.story.announcer.announce(child)
    await wait_agreement([ann, bob], 2)
    assert ann.head == name_of(child)
    for node, other in ((ann, bob), (bob, ann)):
        assert not node.happened.of(Rejected)
        assert node.services.scores.score(other.peer_id) == 0


async def test_a_surplus_tip_is_asked_for_once_and_its_body_never(
    new_network: NewNetwork, nursery: trio.Nursery, orchard: Orchard
) -> None:
    network = new_network(GENESIS)
    twins = [orchard.grow(orchard.root, 1, BOB, salt=str(number))[0] for number in range(3)]
    ann = await keeper(network, orchard, *twins[:2])
    stranger = new_liar(network, orchard, twins[2:])
    await meet_liar(network, nursery, ann, stranger.node)
    await trio.sleep(60)
    assert stranger.asked.count(MessageType.STATUS_REQUEST) > 10
    assert stranger.asked.count(MessageType.HEADERS_REQUEST) == 1
    assert MessageType.BLOCKS_REQUEST not in stranger.asked
    assert ann.services.scores.score(EVE.peer_id) == 0
    assert not ann.happened.of(Rejected)


async def test_headers_that_lie_cost_one_question_and_their_sender(
    new_network: NewNetwork, orchard: Orchard, nursery: trio.Nursery
) -> None:
    network = new_network(GENESIS)
    blocks = orchard.grow(orchard.root, 10, BOB, CAT)
    liar = new_liar(network, orchard, blocks)
    bad = resigned(blocks[5], CAT, height=99)
    liar.headers[5] = SignedHeader(bad.header, bad.signature)
    node = await network.start("ann")
    await meet_liar(network, nursery, node, liar.node)
    rejected = await node.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (EVE.peer_id, Fault.WRONG_HEIGHT)
    assert MessageType.BLOCKS_REQUEST not in liar.asked
    assert node.height == 0


@pytest.mark.parametrize("change", ["signature", "gap", "splice", "unknown start", "order", "target"])
async def test_no_body_is_asked_for_headers_that_make_no_chain(
    change: str, new_network: NewNetwork, orchard: Orchard, nursery: trio.Nursery
) -> None:
    network = new_network(GENESIS)
    blocks = orchard.grow(orchard.root, 6, BOB, CAT)
    liar = new_liar(network, orchard, blocks)
    match change:
        case "signature":
            liar.headers[3] = SignedHeader(blocks[3].header, blocks[2].signature)
        case "gap":
            del liar.headers[3]
        case "splice":
            other = orchard.grow(orchard.root, 6, BOB, CAT, salt="other")
            liar.headers[3:] = [SignedHeader(block.header, block.signature) for block in other[3:]]
        case "unknown start":
            del liar.headers[0]
        case "order":
            liar.headers.reverse()
        case "target":
            bad = resigned(blocks[3], CAT, target=blocks[3].header.target - 1)
            liar.headers[3] = SignedHeader(bad.header, bad.signature)
    node = await network.start("ann")
    await meet_liar(network, nursery, node, liar.node)
    rejected = await node.happened.wait(Rejected)
    assert rejected.peer_id == EVE.peer_id
    assert MessageType.BLOCKS_REQUEST not in liar.asked
    assert node.height == 0


@pytest.mark.parametrize("bodies", ["stranger", "twice", "out of order"])
async def test_bodies_that_were_not_asked_for_like_this_are_refused(
    bodies: str, new_network: NewNetwork, orchard: Orchard, nursery: trio.Nursery
) -> None:
    network = new_network(GENESIS)
    blocks = orchard.grow(orchard.root, 4, BOB, CAT)
    liar = new_liar(network, orchard, blocks)
    liar.bodies = {
        "stranger": [*blocks, *orchard.grow(orchard.root, 1, DAN)],
        "twice": [blocks[0], blocks[0]],
        "out of order": [blocks[1], blocks[0], *blocks[2:]],
    }[bodies]
    node = await network.start("ann")
    await meet_liar(network, nursery, node, liar.node)
    rejected = await node.happened.wait(Rejected)
    assert (rejected.peer_id, rejected.fault) == (EVE.peer_id, Fault.NOT_AS_ASKED)
    assert node.height == 0


async def test_a_peer_that_withholds_bodies_holds_nobody_up(
    new_network: NewNetwork, orchard: Orchard, nursery: trio.Nursery
) -> None:
    network = new_network(GENESIS)
    blocks = orchard.grow(orchard.root, 10, BOB, CAT)
    liar = new_liar(network, orchard, blocks)
    liar.bodies = blocks[:3]
    honest = await keeper(network, orchard, *blocks)
    node = await network.start("dan")
    await meet_liar(network, nursery, node, liar.node)
    await node.wait_height(3)
    await node.network.connect(honest.address)
    assert await wait_agreement([node, honest], 10)


@pytest.mark.parametrize("pause", [9.0, 11.0, 1e6])
async def test_a_slow_peer_meets_a_deadline_and_others_are_asked(
    pause: float, new_network: NewNetwork, orchard: Orchard, nursery: trio.Nursery
) -> None:
    network = new_network(GENESIS)
    blocks = orchard.grow(orchard.root, 40, BOB, CAT)
    honest = await keeper(network, orchard, *blocks)
    liar = new_liar(network, orchard, blocks)
    liar.pause = pause
    node = await network.start("dan")
    await meet_liar(network, nursery, node, liar.node)
    await trio.sleep(0.5)
    began = trio.current_time()
    await node.network.connect(honest.address)
    await node.wait_height(40)
    assert trio.current_time() - began < 90
    assert not node.happened.of(Rejected, lambda one: one.peer_id == honest.peer_id)


async def test_a_puller_gives_up_on_bodies_that_drip(nursery: trio.Nursery, orchard: Orchard) -> None:
    between = MemoryNetwork()
    blocks = orchard.grow(orchard.root, 40, BOB, CAT)
    liar = Liar(between.node(EVE), orchard, blocks)
    liar.pause = 9.0
    ours = between.node(DAN)
    await nursery.start(ours.run)
    await nursery.start(liar.node.run)
    await ours.connect(liar.node.addresses()[0])
    began = trio.current_time()
    with pytest.raises(DeadlinePassed):
        await Puller(ours, DAN, lambda: 0).blocks(EVE.peer_id, orchard.root, list(liar.blocks))
    assert trio.current_time() - began < 60


async def test_a_genesis_of_another_story_is_refused(nursery: trio.Nursery, new_network: NewNetwork) -> None:
    network = new_network(GENESIS)
    node = await network.start("ann")
    stranger = network.between.node(EVE)
    wrong = small_genesis(EASY, title="Another one")

    async def lie(stream: Stream) -> None:
        await stream.receive(10)
        await stream.send(seal(EVE, MessageType.GENESIS, GenesisAnswer(encode(wrong)), 0))
        await stream.finish()

    stranger.serve(SYNC_PROTOCOL, lie)
    await nursery.start(stranger.run)
    await node.network.connect(stranger.addresses()[0])
    puller = Puller(node.network, node.identity, network.clock)
    with pytest.raises(InvalidGenesis):
        await puller.genesis(EVE.peer_id, Orchard(GENESIS).root)


@pytest.fixture
async def asker(new_network: NewNetwork, nursery: trio.Nursery, orchard: Orchard) -> tuple[SmallNode, Puller]:
    """A node with five blocks, and a stranger's puller connected to it."""
    network = new_network(GENESIS)
    node = await keeper(network, orchard, *orchard.grow(orchard.root, 5, BOB, CAT))
    stranger = network.between.node(EVE)
    await nursery.start(stranger.run)
    await stranger.connect(node.address)
    return node, Puller(stranger, EVE, network.clock)


async def test_a_node_says_where_it_stands_and_gives_what_is_asked(
    asker: tuple[SmallNode, Puller], orchard: Orchard
) -> None:
    node, puller = asker
    status = await puller.status(node.peer_id)
    assert (status.story, status.height, status.head) == ((orchard.root,), 5, (node.head,))
    assert await puller.genesis(node.peer_id, orchard.root) == GENESIS
    headers = await puller.headers(node.peer_id, HeadersRequest(orchard.root, (orchard.root,), (), 3))
    assert [one.header.height for one in headers] == [1, 2, 3]
    names = [name_of(block) for block in await node.canon()]
    unknown = Hash(b"\x05" * 32)
    assert await puller.blocks(node.peer_id, orchard.root, [names[1], unknown, names[3]]) == [
        orchard.blocks[names[1]],
        orchard.blocks[names[3]],
    ]
    assert await puller.next_nonce(node.peer_id, orchard.root, EVE.peer_id) == 0


async def test_what_a_node_does_not_keep_is_refused_with_what_it_does(
    asker: tuple[SmallNode, Puller], orchard: Orchard
) -> None:
    node, puller = asker
    other = Hash(b"\x05" * 32)
    for ask in (
        puller.genesis(node.peer_id, other),
        puller.headers(node.peer_id, HeadersRequest(other, (other,), (), 3)),
        puller.blocks(node.peer_id, other, [other]),
        puller.next_nonce(node.peer_id, other, EVE.peer_id),
    ):
        with pytest.raises(InvalidMessage, match=orchard.root.hex()[:40]):
            await ask


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x00" * 100,
        b"\xc1",
        seal(EVE, MessageType.HEARTBEAT, Nothing(), 0),
        seal(BOB, MessageType.STATUS_REQUEST, Nothing(), 0),
        seal(EVE, MessageType.STATUS_REQUEST, Nothing(), 0, BOB.peer_id),
        seal(EVE, MessageType.STATUS_REQUEST, AccountRequest(Hash(bytes(32)), EVE.peer_id), 0),
        seal(EVE, MessageType.BLOCKS_REQUEST, Nothing(), 0),
    ],
    ids=[
        "empty",
        "zeroes",
        "never used byte",
        "wrong type",
        "other sender",
        "other recipient",
        "surplus",
        "no payload",
    ],
)
async def test_a_request_that_breaks_a_rule_is_named_and_the_next_one_is_answered(
    frame: bytes, asker: tuple[SmallNode, Puller]
) -> None:
    node, puller = asker
    with pytest.raises((ProtocolError, Unreachable)):
        await puller.ask(node.peer_id, SYNC_PROTOCOL, frame)
    rejected = await node.happened.wait(Rejected)
    assert rejected.peer_id == EVE.peer_id
    assert (await puller.status(node.peer_id)).height == 5


async def test_a_stream_that_ends_without_a_request_is_named(asker: tuple[SmallNode, Puller]) -> None:
    node, puller = asker
    async with puller._network.open(node.peer_id, SYNC_PROTOCOL) as stream:
        await stream.finish()
        with pytest.raises((Unreachable, DeadlinePassed)):
            await stream.receive(10)
    assert (await node.happened.wait(Rejected)).fault is Fault.UNFINISHED


def forest(lengths: Sequence[int]) -> tuple[Store, list[list[Hash]]]:
    """A trunk of `lengths[0]`, and branches that fork off at each tenth of it."""
    store, names = new_store(GENESIS, FAR_FUTURE), list[list[Hash]]()
    for number, length in enumerate(lengths):
        at = store.story if not names else names[0][min(len(names[0]) - 1, number * 3)]
        branch = []
        for step in range(length):
            producer = (BOB, CAT, DAN)[(step + number) % 3]
            block = block_on(GENESIS, parent_of(store, at), producer, salt=str(number))
            store = on_block(store, block)
            at = name_of(block)
            branch.append(at)
        names.append(branch)
    return store, names


TREE, BRANCHES = forest([90, 4, 12, 30])


def test_a_locator_names_the_head_first_the_story_last_and_stays_short() -> None:
    names = locator(TREE)
    heights = [TREE.entries[name].link.height for name in names]
    assert heights[:10] == list(range(90, 80, -1))
    assert heights == sorted(set(heights), reverse=True)
    assert names[-1] == TREE.story
    assert len(names) < 20
    assert locator(new_store(GENESIS, FAR_FUTURE)) == (TREE.story,)


@given(st.sampled_from([name for branch in BRANCHES for name in branch]), st.integers(0, 90), st.integers(1, 512))
def test_whatever_the_asker_knows_it_gets_a_chain_from_there_towards_what_it_wants(
    until: Hash, known: int, limit: int
) -> None:
    start = (TREE.canon[known],) if known else ()
    request = HeadersRequest(TREE.story, (*start, TREE.story), (until,), limit)
    names = names_after(TREE, request)
    assert len(names) <= limit
    entries = [TREE.entries[name] for name in names]
    for earlier, later in pairwise(entries):
        assert later.parent == earlier.link.hash
    if entries:
        first = TREE.entries[entries[0].parent]
        assert TREE.canon.get(first.link.height) == first.link.hash
        assert first.link.height <= known or first.link.hash == TREE.story
    if len(names) < limit and entries:
        assert names[-1] == until


def test_headers_go_on_after_a_side_branch_block_that_the_asker_names() -> None:
    side = BRANCHES[3]
    request = HeadersRequest(TREE.story, (side[9], TREE.story), (side[-1],), 512)
    assert names_after(TREE, request) == side[10:]


def test_nobody_gets_headers_towards_a_block_that_is_not_there() -> None:
    assert names_after(TREE, HeadersRequest(TREE.story, (TREE.story,), (Hash(b"\x05" * 32),), 10)) == []


async def test_a_peer_that_fails_a_thousand_times_is_asked_now_and_then_and_ends_nobody(
    new_network: NewNetwork,
) -> None:
    network = new_network(GENESIS)
    node = await network.start("ann")
    mute = network.between.node(EVE)
    async with trio.open_nursery() as nursery:
        await nursery.start(mute.run)
        await mute.connect(node.address)
        for _ in range(1100):
            await node.story.sync.sync_with(EVE.peer_id)
        before = node.story.sync.rounds
        for _ in range(1000):
            node.story.ask(EVE.peer_id)
            await trio.sleep(0.01)
        assert node.story.sync.rounds - before < 10
        nursery.cancel_scope.cancel()
