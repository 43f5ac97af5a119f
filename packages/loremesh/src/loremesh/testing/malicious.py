"""A peer that breaks every rule there is, one after the other, and comes back under another name when it is shut out.

It finds the story of the node it is pointed at, grows a small valid branch beside it (the lies need something to stand
on), and then tells every bad block, sends every bad message and gives every bad answer of this package, each of them in
order but for the one rule it breaks. It ends by itself. What the node made of it, the node says: its `rejected` and
`banned` events.

Run it: python -m loremesh.testing.malicious MULTIADDR [--json]
"""

import argparse
import json
import secrets
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from loremesh.errors import Fault, InvalidBlock, InvalidMessage, LoremeshError, ProtocolError, ServiceError
from loremesh.network.addresses import Endpoint
from loremesh.network.behaviour import Behaviour
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB, Hash, Millis, PeerId
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import is_one_too_many, new_store, on_block
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.peer_score import WORST_SCORE, cost
from loremesh.protocol.validation import check_block_alone
from loremesh.protocol.wire import (
    INLINE_BODY,
    SYNC_PROTOCOL,
    BlockAnnouncement,
    BlocksRequest,
    HeadersRequest,
    MessageType,
    Status,
    topic,
    unseal,
)
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.sync import Puller
from loremesh.testing.bad_blocks import BAD_BLOCKS, THIRD_HEADER, WISH, Cast, Scene
from loremesh.testing.bad_bytes import BAD_BYTES
from loremesh.testing.bad_messages import (
    BAD_ANSWERS,
    BAD_MESSAGES,
    BadAnswer,
    Liar,
    honest_answer,
    told_by,
)
from loremesh.testing.builders import block_on, parent_of, suggestion

_SETTINGS: Final = NetworkSettings(listen_addresses=(), max_frame=16 * MIB, dht_server=False)
_PAUSE: Final = 0.05
"""Seconds between two lies, so that they arrive one after the other."""
_PATIENCE: Final = 20.0
_FAR: Final = Millis(2**53)
_GOSSIP: Final = "gossip message"

Say = Callable[[dict[str, object]], None]


@dataclass(frozen=True, slots=True)
class Lie:
    """Something to send, and what it must be refused for."""

    name: str
    what: str
    """As the node calls it in its event."""
    fault: Fault
    way: str
    """A topic, or the protocol of a call."""
    make: Callable[[Liar], bytes]

    @property
    def price(self) -> int:
        """What it costs."""
        return cost(InvalidBlock(self.fault, Hash(bytes(32))) if self.what == "block" else ProtocolError(self.fault))


def new_identity() -> Identity:
    """Make up a name."""
    return Identity.generate(secrets.token_bytes(32))


@dataclass(slots=True)
class Malice:
    """What is needed to lie about one story, and what has been done so far.

    Args:
        genesis: Of the story.
        address: Of the node that is lied to.
        say: Hears of every lie, and of every time we are shut out.
    """

    genesis: Genesis
    address: str
    say: Say
    cast: Cast = field(default_factory=lambda: Cast(*(new_identity() for _ in range(4))))
    sent: int = 0
    names: int = 0
    shut_out: int = 0
    _tellers: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Tell every lie there is."""
        for source in (_bad_blocks, _bad_bytes_and_messages):
            for teller in ("bob", "dan", "cat"):
                await self._tell_all(source, teller)
        scene = await trio.to_thread.run_sync(set_scene, self.genesis, self.cast)
        # One after the other: they tell of one branch, and a second liar could be asked for what the first tells of.
        for answer in BAD_ANSWERS:
            await self._answer_badly(answer, scene)
        self.say({"event": "done", "sent": self.sent, "names": self.names, "shut_out": self.shut_out})

    async def _tell_all(self, source: "Source", teller: str) -> None:
        """Tell the lies of one of the cast, under a new name whenever it is shut out."""
        while True:
            scene, lies = await trio.to_thread.run_sync(self._prepare, source, teller)
            if not lies:
                return
            await self._under_one_name(getattr(self.cast, teller), scene, lies)
            if teller == "bob":
                self.cast = replace(self.cast, bob=new_identity())

    def _prepare(self, source: "Source", teller: str) -> tuple[Scene, list[Lie]]:
        """Make up the next lies, as many as it takes to be shut out; doing the work they need takes a while."""
        scene = set_scene(self.genesis, self.cast)
        lies: list[Lie] = []
        for lie in source(scene, self._tellers, teller):
            self._tellers[lie.name] = "told"
            lies.append(lie)
            if _is_too_much(lies):
                break
        return scene, lies

    async def _under_one_name(self, identity: Identity, scene: Scene, lies: list[Lie]) -> None:
        """Tell a few lies, and see what comes of it."""
        async with self._visit(identity) as (network, victim):
            liar = Liar(identity, victim, scene, wall_clock())
            network.serve(SYNC_PROTOCOL, partial(_tell_branch, liar))
            await network.connect(self.address)
            await self._be_pulled(network, identity, victim, scene)
            for lie in lies:
                self._saying(lie.name, lie.what, lie.fault, identity)
                await _send(network, liar, lie)
            if _is_too_much(lies):
                await self._see_shut_out(network, identity, victim)

    async def _see_shut_out(self, network: Behaviour, identity: Identity, victim: PeerId) -> None:
        with trio.fail_after(_PATIENCE):
            while victim in network.connected():  # noqa: ASYNC110 - the network's own events may be behind
                await trio.sleep(_PAUSE)
        with suppress(ServiceError):
            await network.connect(self.address)
        await trio.sleep(2 * _PAUSE)  # the handshake ends on our side first
        came_back = victim in network.connected()
        self.shut_out += 1
        self.say({"event": "shut_out", "as": peer_id_text(identity.peer_id), "came_back": came_back})

    async def _answer_badly(self, answer: BadAnswer, scene: Scene) -> None:
        """Wait to be asked, and answer with a lie, once."""
        identity = new_identity()
        asked = trio.Event()
        async with self._visit(identity) as (network, victim):
            liar = Liar(identity, victim, scene, wall_clock())

            async def serve(stream: Stream) -> None:
                lie = None if asked.is_set() else answer
                if await _answer(stream, liar, scene.before if lie is None else told_by(liar), lie):
                    asked.set()

            network.serve(SYNC_PROTOCOL, serve)
            what = (
                "block"
                if answer.to is MessageType.BLOCKS_REQUEST and answer.fault is not Fault.NOT_AS_ASKED
                else "sync"
            )
            self._saying(answer.name, what, answer.fault, identity)
            await network.connect(self.address)
            with trio.fail_after(_PATIENCE):
                await asked.wait()
            await trio.sleep(10 * _PAUSE)

    def _saying(self, name: str, what: str, fault: Fault, identity: Identity) -> None:
        self.sent += 1
        said = {"name": name, "what": what, "fault": str(fault), "as": peer_id_text(identity.peer_id)}
        self.say({"event": "lie", **said})

    @asynccontextmanager
    async def _visit(self, identity: Identity) -> AsyncIterator[tuple[Behaviour, PeerId]]:
        """Run a network of ours; give it with the node's name."""
        self.names += 1
        story = story_id(self.genesis)
        async with running_network(identity, _SETTINGS) as network:
            for name in ("blocks", "txs", "peers"):
                await network.subscribe(topic(story, name), lambda _, __: None)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, network)
                yield network, _named(self.address)
                nursery.cancel_scope.cancel()

    async def _be_pulled(self, network: Behaviour, identity: Identity, victim: PeerId, scene: Scene) -> None:
        """Wait until the node has the branch that our lies stand on."""
        puller = Puller(network, identity, wall_clock)
        wanted = {header_hash(block.header) for block in scene.before[1:]}
        with trio.fail_after(_PATIENCE):
            while True:
                status = await puller.status(victim)
                known = {*status.head, *status.tips}
                if wanted <= known or len(known) > 60:  # noqa: PLR2004 - it names 64 tips at most
                    return
                await trio.sleep(5 * _PAUSE)


def set_scene(genesis: Genesis, cast: Cast) -> Scene:
    """Grow a small branch of a story from its genesis, valid and worked for, as in `bad_blocks`.

    Ann wrote block 1, which opened Dan's suggestion; Cat wrote block 2; Dan signed two headers beside block 1; Bob's
    `good` is the next block.
    """
    before = _branch(genesis, cast.ann, cast.cat, cast.dan)
    store = new_store(genesis, _FAR)
    for block in before:
        store = on_block(store, block)
    tip = header_hash(before[-1].header)
    good = block_on(genesis, parent_of(store, tip), cast.bob)
    store = store._replace(head=tip)
    return Scene(genesis, story_id(genesis), store, before, good, cast)


_branches: dict[PeerId, tuple[Block, ...]] = {}


def _branch(genesis: Genesis, ann: Identity, cat: Identity, dan: Identity) -> tuple[Block, ...]:
    """Give the branch of a cast; its work is done once."""
    if ann.peer_id not in _branches:
        store = new_store(genesis, _FAR)
        root = parent_of(store)
        first = block_on(genesis, root, ann, transactions=(suggestion(dan, genesis, WISH),))
        beside = block_on(genesis, root, dan)
        again = block_on(genesis, root, dan, salt="again", nonce=beside.header.nonce)
        for block in (first, beside, again):
            store = on_block(store, block)
        second = block_on(genesis, parent_of(store, header_hash(first.header)), cat)
        _branches[ann.peer_id] = (first, beside, again, second)
    return _branches[ann.peer_id]


Source = Callable[[Scene, dict[str, str], str], Iterator[Lie]]
"""Gives the lies that one of the cast must tell, but those that were told; notes who must tell the others."""


def _bad_blocks(where: Scene, tellers: dict[str, str], teller: str) -> Iterator[Lie]:
    """Give the lies about blocks that this story has room for, and that fit into an announcement."""
    for bad in (*BAD_BLOCKS, THIRD_HEADER):
        if tellers.get(bad.name, teller) != teller:
            continue
        block = bad.make(where)
        tellers[bad.name] = _teller(where, block)
        found = _refusal(where, block)
        if tellers[bad.name] == teller and found is not None and len(encode(block)) <= INLINE_BODY:
            yield Lie(bad.name, found[0], found[1], "blocks", partial(_announced, block))


def _refusal(where: Scene, block: Block) -> tuple[str, Fault] | None:
    """Tell what a node will refuse a block as, and why; None: this story allows it."""
    try:
        on_block(where.store, decode(Block, encode(block)))
    except InvalidBlock as error:
        return _GOSSIP if _is_refused_alone(where, block) else "block", error.fault
    except InvalidMessage as error:  # its bytes are not even a block
        return _GOSSIP, error.fault
    return (_GOSSIP, Fault.EQUIVOCATION) if is_one_too_many(where.store, block.header) else None


def _is_refused_alone(where: Scene, block: Block) -> bool:
    """Tell whether a block is refused before it is relayed, for what it is alone."""
    try:
        check_block_alone(where.genesis, where.story, block)
    except InvalidBlock:
        return True
    return False


def _announced(block: Block, liar: Liar) -> bytes:
    header = block.header
    producer = header.producer if header.producer == liar.identity.peer_id else liar.identity.peer_id
    announcement = BlockAnnouncement(header.height, header_hash(header), producer, header.time, encode(block))
    return liar.seal(MessageType.BLOCK_ANNOUNCEMENT, announcement)


def _bad_bytes_and_messages(where: Scene, tellers: dict[str, str], teller: str) -> Iterator[Lie]:
    lies = [*_bad_bytes(where), *_bad_messages()] if teller == "bob" else []
    yield from (lie for lie in lies if lie.name not in tellers)


def _bad_bytes(where: Scene) -> Iterator[Lie]:
    for bad in BAD_BYTES:
        body = bad.make(encode(where.good))
        if 0 < len(body) <= INLINE_BODY:
            yield Lie(bad.name, _GOSSIP, bad.fault, "blocks", partial(_announced_bytes, body))


def _announced_bytes(body: bytes, liar: Liar) -> bytes:
    header = liar.scene.good.header
    said = BlockAnnouncement(header.height, header_hash(header), liar.identity.peer_id, header.time, body)
    return liar.seal(MessageType.BLOCK_ANNOUNCEMENT, said)


def _bad_messages() -> Iterator[Lie]:
    for bad in BAD_MESSAGES:
        what = f"call of {bad.way}" if bad.way.startswith("/") else _GOSSIP
        yield Lie(bad.name, what, bad.fault, bad.way, bad.make)


def _teller(where: Scene, block: Block) -> str:
    """Say who must tell of a block: its producer, if we have that key."""
    named = {getattr(where.cast, name).peer_id: name for name in ("dan", "cat")}
    return named.get(block.header.producer, "bob")


def _is_too_much(lies: Sequence[Lie]) -> bool:
    """Tell whether these lies get whoever tells them shut out: time heals a little while they are told."""
    return sum(lie.price for lie in lies) > -WORST_SCORE


async def _send(network: Behaviour, liar: Liar, lie: Lie) -> None:
    data = lie.make(liar)
    if not lie.way.startswith("/"):
        await network.publish(topic(liar.scene.story, lie.way), data)
    else:
        try:
            async with network.open(liar.victim, lie.way) as stream:
                await stream.send(data)
                await stream.finish()
                await stream.receive(_PATIENCE)
        except LoremeshError:
            pass  # it was refused: that is the point
    await trio.sleep(_PAUSE)


async def _tell_branch(liar: Liar, stream: Stream) -> None:
    """Serve the valid branch and nothing else."""
    await _answer(stream, liar, liar.scene.before, None)


async def _answer(stream: Stream, liar: Liar, blocks: Iterable[Block], lie: BadAnswer | None) -> bool:
    """Answer one request, with a lie if it is time for that; tell whether it was."""
    told = {header_hash(block.header): block for block in blocks}
    frame = await stream.receive(_PATIENCE)
    if frame is None:
        return False
    kind, payload = unseal(frame, stream.peer_id)
    is_time = lie is not None and kind is lie.to
    frames: list[bytes] = []
    if lie is not None and is_time:
        frames = lie.make(liar, list(told.values()))
    elif kind is MessageType.STATUS_REQUEST:
        frames = [liar.seal(MessageType.STATUS, _status(liar, list(told.values())), liar.victim)]
    elif kind is MessageType.HEADERS_REQUEST:
        frames = honest_answer(liar, kind, _path(told, decode(HeadersRequest, payload).until), ())
    elif kind is MessageType.BLOCKS_REQUEST:
        frames = honest_answer(liar, kind, list(told.values()), decode(BlocksRequest, payload).hashes)
    for one in frames:
        await stream.send(one)
    await stream.finish()
    return is_time


def _path(told: dict[Hash, Block], until: tuple[Hash, ...]) -> list[Block]:
    """Give the blocks that lead to `until`, or to the last one told."""
    path: deque[Block] = deque()
    name = until[0] if until else next(reversed(told))
    while name in told:
        path.appendleft(told[name])
        name = told[name].header.parent
    return list(path)


def _status(liar: Liar, blocks: list[Block]) -> Status:
    parents = {block.header.parent for block in blocks}
    tips = [header_hash(block.header) for block in blocks if header_hash(block.header) not in parents]
    return Status((liar.scene.story,), blocks[-1].header.height, (tips[-1],), tuple(tips[:-1]))


def _named(address: str) -> PeerId:
    peer_id = Endpoint.from_str(address).peer_id
    if peer_id is None:
        raise SystemExit(f"{address} names no peer: give the address that the node prints, ending in /p2p/…")
    return peer_id


async def _drain(network: Behaviour) -> None:
    async for _ in network.events:
        pass


async def attack(address: str, say: Say) -> None:
    """Lie to the node at `address` in every way there is.

    Raises:
        ServiceError: It cannot be reached.
        trio.TooSlowError: It did not shut us out in time.
    """
    guest = new_identity()
    async with running_network(guest, _SETTINGS) as network:
        victim = await network.connect(address)
        puller = Puller(network, guest, wall_clock)
        (story,) = (await puller.status(victim)).story
        genesis = await puller.genesis(victim, story)
    await Malice(genesis, address, say).run()


def say_json(event: dict[str, object]) -> None:
    """Print an event for programs."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def say_text(event: dict[str, object]) -> None:
    """Print an event for people."""
    match event["event"]:
        case "lie":
            line = f"  {event['name']}: to be refused as “{event['fault']}”"
        case "shut_out":
            back = "and came back at once!" if event["came_back"] else "and not let in again"
            line = f"…{str(event['as'])[-8:]} was disconnected, {back}"
        case _:
            line = f"{event['sent']} lies under {event['names']} names, shut out {event['shut_out']} times"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Attack one node, and end."""
    parser = argparse.ArgumentParser(description="Break every rule towards one node, of your own.")
    parser.add_argument("address", help="multiaddr of the node, ending in /p2p/<peer id>")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    trio.run(attack, arguments.address, say_json if arguments.json else say_text)


if __name__ == "__main__":
    main()
