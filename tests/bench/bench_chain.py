"""The chain as it grows: links of headers, blocks on a long chain, and a branch that takes the head over.

Headers: from bytes to a checked link, signatures left out, as work and hashes already bind one header to the next. Fork
choice: `on_block` on a chain of 100,000 blocks, against one of 1,000. Reorganisation: as many blocks as are abandoned
go through the chain service to the disk, against a plain loop that checks the same blocks and inserts them with one
transaction.
"""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgpack
import trio

from durable import Fsyncs, plain_database
from harness import Row, Samples, at_least, at_most, compare, timed
from loremesh.errors import ProtocolError
from loremesh.primitives import Hash, Height, PeerId
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import STATE_EVERY, Entry, Store, new_store, on_block
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.path import path_of
from loremesh.protocol.persistent import Map
from loremesh.protocol.production import Parent
from loremesh.protocol.state import State
from loremesh.protocol.validation import (
    check_block_alone,
    check_header_link,
    check_work,
    genesis_link,
    good_signatures,
    link_of,
    state_after,
)
from loremesh.roles.networking import wall_clock
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Head
from loremesh.storage.store import Store as Disk
from loremesh.storage.writes import StoredBlock
from loremesh.testing.builders import ANN, BOB, CAT, block_on, small_genesis
from loremesh.testing.happened import Happened
from loremesh.testing.orchard import Orchard, name_of
from stories import LATER, Sample, chain

_SHORT, _LONG = 1000, 100_000
_GROWN = 512
_TRUNK = 32


def run() -> list[Row]:
    """Measure headers, fork choice, then reorganisations."""
    return [
        _header_links(chain(100, 0)),
        compare(
            f"take in a block on a chain of {_LONG}",
            "µs",
            partial(_take_in, _on_chain_of(_LONG)),
            against=f"on a chain of {_SHORT}",
            peer=partial(_take_in, _on_chain_of(_SHORT)),
            goal=at_most(1.2),
        ),
        _reorganisation(100, rounds=21, goal=True),
        _reorganisation(1000, rounds=5, goal=False),
    ]


def _header_links(samples: list[Sample]) -> Row:
    genesis, story = samples[0].before.genesis, samples[0].before.story
    wires = [encode(SignedHeader(sample.block.header, sample.block.signature)) for sample in samples]

    def bare(wire: bytes) -> None:
        msgpack.unpackb(wire)
        hashlib.sha256(wire).digest()

    def follow() -> Samples:
        link = genesis_link(genesis)

        def check(wire: bytes) -> None:
            nonlocal link
            header = decode(SignedHeader, wire).header
            name = check_work(genesis, story, header)
            assert header.parent == link.hash
            check_header_link(genesis, header, link, name)
            link = link_of(header, link, name)

        return timed(check, wires, batch=10)

    return compare(
        f"check the link of a signed header, {len(wires[0])} bytes, without its signature",
        "µs",
        follow,
        against="bare msgpack + sha256",
        peer=lambda: timed(bare, wires, batch=10),
        goal=at_least(0.4),
    )


def _on_chain_of(length: int) -> list[tuple[Store, Block]]:
    """Give blocks that follow on a chain of so many, each with the store before it.

    What is below is made up, names and all: to make and check as many blocks would take half a minute.
    """
    genesis = small_genesis()
    store = new_store(genesis, LATER)
    names = [Hash(hashlib.sha256(b"made up %d" % height).digest()) for height in range(length)]
    links = [store.tip.link._replace(hash=name, height=Height(height)) for height, name in enumerate(names)]
    link = links[-1]
    store = store._replace(
        head=link.hash,
        entries=Map({one.hash: Entry(one, names[max(0, one.height - 1)], one.height) for one in links}),
        states=Map(dict.fromkeys([*names[::STATE_EVERY], link.hash], State())),
        canon=path_of(names),
    )
    state, producers, pairs = State(), (ANN, BOB, CAT), []
    for number in range(STATE_EVERY + _GROWN):
        block = block_on(genesis, Parent(link, state), producers[number % len(producers)])
        pairs.append((store, block))
        store = on_block(store, block)
        link, state = store.tip.link, store.states[store.head]
    return pairs[STATE_EVERY:]  # by then the states are those that a real chain would have kept


def _take_in(pairs: list[tuple[Store, Block]]) -> Samples:
    good_signatures.clear()
    # Of as many blocks one has to look which states are still to be kept.
    return timed(lambda pair: on_block(*pair), pairs, batch=STATE_EVERY)


def _reorganisation(length: int, *, rounds: int, goal: bool) -> Row:
    orchard = Orchard(small_genesis())
    trunk = orchard.grow(orchard.root, _TRUNK, ANN, BOB, CAT)
    one, other = (orchard.grow(name_of(trunk[-1]), length, ANN, BOB, CAT, salt=salt) for salt in ("one", "other"))
    # Both take as much work: with its last block the one with the lower hash there wins.
    right, left = sorted((one, other), key=lambda branch: name_of(branch[-1]))
    fsyncs = Fsyncs()

    def plain() -> Samples:
        fsyncs.sample()
        return _validate_and_insert(orchard.genesis, trunk, right)

    row = compare(
        f"reorganise {length} blocks, durably",
        "ms",
        lambda: trio.run(_switch, orchard.genesis, [*trunk, *left], right),
        against="plain loop: validate, insert with one transaction",
        peer=plain,
        goal=at_most(2) if goal else None,
        rounds=rounds,
    )
    return fsyncs.noted(row)


async def _switch(genesis: Genesis, kept: Sequence[Block], branch: Sequence[Block]) -> Samples:
    happened = Happened()
    story = story_id(genesis)
    with tempfile.TemporaryDirectory() as folder:
        async with Disk.open(Path(folder)) as disk, trio.open_nursery() as nursery:
            await disk.save_genesis(story, encode(genesis))
            service = ChainService(genesis, disk, clock=wall_clock, tell=happened, penalize=_blame_nobody)
            nursery.start_soon(service.run)
            await service.submit_all(kept, None)
            told = len(happened.of(Head))
            good_signatures.clear()
            before = time.perf_counter()
            await service.submit_all(branch, None)
            taken = time.perf_counter() - before
            [moved] = happened.of(Head)[told:]  # from one tip to the other, and nothing in between
            assert (moved.hash, moved.reorg_depth) == (name_of(branch[-1]), len(branch))
            nursery.cancel_scope.cancel()
    return [taken]


def _blame_nobody(peer_id: PeerId, what: str, error: ProtocolError) -> None:
    raise AssertionError(f"{what} refused: {error}")


def _validate_and_insert(genesis: Genesis, trunk: Sequence[Block], branch: Sequence[Block]) -> Samples:
    """Do what nobody could leave out to take in a branch, were it the only one."""
    story, link, state = story_id(genesis), genesis_link(genesis), State()
    stored = []

    def check(block: Block) -> None:
        nonlocal link, state
        header = block.header
        name = check_block_alone(genesis, story, block)
        check_header_link(genesis, header, link, name)
        state = state_after(story, block, state, name)
        link = link_of(header, link, name)
        stored.append(StoredBlock(name, header.parent, header.height, encode(block)))

    with plain_database(story, encode(genesis)) as insert:
        for block in trunk:
            check(block)
        insert(stored)
        stored.clear()
        good_signatures.clear()
        before = time.perf_counter()
        for block in branch:
            check(block)
        insert(stored)
        return [time.perf_counter() - before]
