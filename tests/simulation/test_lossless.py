"""Nobody ends without a block: not after a burst, nor late, nor beside peers that lie, withhold or dawdle."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import trio

from loremesh.errors import Fault
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import SYNC_PROTOCOL, BlocksRequest, MessageType, unseal
from loremesh.services.download import Download
from loremesh.services.happenings import Rejected
from loremesh.testing.builders import ANN, BOB, CAT, DAN, EASY, small_genesis
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of
from loremesh.testing.small_network import SmallNetwork, SmallNode, wait_agreement
from loremesh.testing.weather import STORM

NewNetwork = Callable[..., SmallNetwork]
GENESIS = small_genesis(EASY)
ROOT = Orchard(GENESIS).root


@cache
def story(length: int, *producers: Identity) -> tuple[Block, ...]:
    """Grow a chain once for all tests."""
    return tuple(Orchard(GENESIS).grow(ROOT, length, *(producers or (BOB, CAT, DAN))))


async def wait_until_written(blocks: Sequence[Block]) -> None:
    await trio.sleep_until((max(block.header.time for block in blocks) - GENESIS.time) / 1000)


async def keeper(network: SmallNetwork, name: str, blocks: Sequence[Block], *others: SmallNode) -> SmallNode:
    """Start a node that has `blocks` already."""
    node = await network.start(name, *others)
    await node.chain.submit_all(blocks, None)
    return node


def names(blocks: Sequence[Block]) -> set[Hash]:
    return {name_of(block) for block in blocks}


def bodies_given(node: SmallNode) -> Counter[Hash]:
    """Count what a node is asked for from now on."""
    asked = Counter[Hash]()
    serve = node.network._handlers[SYNC_PROTOCOL]

    async def counting(stream: Stream) -> None:
        receive = stream.receive

        async def and_count(*args: int) -> bytes | None:
            frame = await receive(*args)
            if frame is not None:
                kind, payload = unseal(frame, stream.peer_id)
                if kind is MessageType.BLOCKS_REQUEST:
                    asked.update(decode(BlocksRequest, payload).hashes)
            return frame

        stream.receive = and_count  # type: ignore[method-assign, assignment]  # a tap on one stream
        await serve(stream)

    node.network.serve(SYNC_PROTOCOL, counting)
    return asked


async def test_a_thousand_blocks_published_at_once_end_everywhere_though_a_storm_blows(
    new_network: NewNetwork,
) -> None:
    blocks = story(1000, ANN)
    network = new_network(GENESIS, seed=5)
    await wait_until_written(blocks)
    first = await network.start("ann")
    others = [await network.start(name, first) for name in ("bob", "cat", "dan", "eve", "fay")]
    await trio.sleep(10)
    network.between.set_weather(STORM)
    await first.chain.submit_all(blocks, None)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(first.story.announcer.announce, block)
    assert await wait_agreement([first, *others], 1000) == name_of(blocks[-1])
    assert trio.current_time() - began < 120
    for node in others:
        assert set(node.chain.store.entries) == names(blocks) | {ROOT}
        assert not node.happened.of(Rejected)


async def test_the_bodies_of_a_long_story_come_from_several_peers(new_network: NewNetwork) -> None:
    blocks = story(1000)
    network = new_network(GENESIS)
    await wait_until_written(blocks)
    first = await keeper(network, "ann", blocks)
    keepers = [first, *[await keeper(network, name, blocks, first) for name in ("bob", "cat", "dan")]]
    given = [bodies_given(node) for node in keepers]
    joiner = await network.start("eve", *keepers)
    await joiner.wait_height(1000)
    shares = [len(asked) for asked in given]
    assert sum(share > 0 for share in shares) >= 2
    assert max(shares) < 900
    assert sum(asked.total() for asked in given) < 1200  # hardly anything twice


class Taken:
    """A chain that takes everything."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:  # noqa: ARG002 - the surface
        await trio.lowlevel.checkpoint()
        self.blocks += blocks


async def test_a_peer_that_dawdles_costs_some_seconds_and_its_batches() -> None:
    blocks = {name_of(block): block for block in story(1000)}
    asked = Counter[PeerId]()

    async def fetch(peer: PeerId, wanted: Sequence[Hash], into: list[Block]) -> None:
        asked[peer] += 1
        await trio.sleep(25 if peer == BOB.peer_id else 0.1)
        into.extend(blocks[name] for name in wanted)

    chain = Taken()
    download = Download(fetch, chain, [BOB.peer_id, CAT.peer_id])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(download.run)
        await download.add(list(blocks))
        download.finish()
    assert chain.blocks == list(blocks.values())
    assert trio.current_time() < 15
    assert asked[BOB.peer_id] == 2


async def test_a_peer_that_withholds_bodies_is_passed_over(new_network: NewNetwork) -> None:
    blocks = story(1000)
    network = new_network(GENESIS)
    await wait_until_written(blocks)
    miser = await keeper(network, "bob", blocks)

    async def load_nothing(_: Sequence[Hash], enough: int) -> dict[Hash, bytes]:
        await trio.lowlevel.checkpoint()
        return {}

    miser.chain.load = load_nothing  # type: ignore[method-assign, assignment]  # it gives headers and no bodies
    honest = await keeper(network, "ann", blocks)
    joiner = await network.start("eve", miser)
    await joiner.services.ready.wait()
    assert joiner.height == 0
    await joiner.network.connect(honest.address)
    began = trio.current_time()
    await joiner.wait_height(1000)
    assert trio.current_time() - began < 30
    assert not joiner.happened.of(Rejected)


async def test_a_peer_that_lies_about_a_body_costs_one_batch_and_is_named(new_network: NewNetwork) -> None:
    blocks = story(300)
    network = new_network(GENESIS)
    await wait_until_written(blocks)
    liar = await keeper(network, "bob", blocks)
    forged = Orchard(GENESIS).grow(ROOT, 1, BOB, text="Another text under an old header.")[0].content
    load = liar.chain.load

    async def load_forged(wanted: Sequence[Hash], enough: int) -> dict[Hash, bytes]:
        found = await load(wanted, enough)
        return {
            name: encode(replace(decode(Block, data), content=forged)) if name == name_of(blocks[100]) else data
            for name, data in found.items()
        }

    liar.chain.load = load_forged  # type: ignore[method-assign, assignment]  # one of its bodies is forged
    honest = await keeper(network, "ann", blocks, liar)
    given = bodies_given(honest)
    joiner = await network.start("eve", liar, honest)
    await joiner.wait_height(300)
    rejected = joiner.happened.of(Rejected)
    assert {one.peer_id for one in rejected} <= {liar.peer_id}
    assert {one.fault for one in rejected} <= {Fault.WRONG_CONTENT_ROOT}
    assert name_of(blocks[100]) in given


async def test_a_node_that_is_killed_while_it_syncs_goes_on_from_where_it_was(new_network: NewNetwork) -> None:
    blocks = story(1000)
    network = new_network(GENESIS, latency=0.2)
    await wait_until_written(blocks)
    first = await keeper(network, "ann", blocks)
    second = await keeper(network, "bob", blocks, first)
    joiner = await network.start("eve", first, second)
    await joiner.wait_height(300)
    await joiner.kill()
    assert isinstance(joiner.disk, MemoryDisk)
    had = {stored.hash async for batch in joiner.disk.blocks() for stored in batch}
    assert 300 <= len(had) < 900
    given = [bodies_given(node) for node in (first, second)]
    again = await network.start("eve", first, second, disk=joiner.disk)
    assert again.height >= 300
    await again.wait_height(1000)
    assert not had & {*given[0], *given[1]}


async def test_more_branches_than_fit_one_answer_reach_a_late_joiner(new_network: NewNetwork) -> None:
    orchard = Orchard(GENESIS)
    trunk = orchard.grow(ROOT, 120, BOB, CAT)
    branches = [orchard.grow(name_of(block), 1, DAN)[0] for block in trunk[:110]]
    network = new_network(GENESIS)
    await wait_until_written([*trunk, *branches])
    first = await keeper(network, "ann", [*trunk, *branches])
    joiner = await network.start("eve", first)
    await joiner.wait_height(120)
    await trio.sleep(60)
    assert set(joiner.chain.store.entries) == names([*trunk, *branches]) | {ROOT}
