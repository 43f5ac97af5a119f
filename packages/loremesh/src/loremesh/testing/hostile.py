"""Nodes of a simulated network that lie. Each keeps up with the story as any other node does, and breaks its own rules.

Source: docs/simulator.md; what each costs: docs/threat-model.md.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final, cast

import trio

from loremesh.network.frames import Stream
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.block import Block, SignedHeader, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import Store, on_block
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.validation import earliest_time
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    SYNC_PROTOCOL,
    BlockAnnouncement,
    Headers,
    ListedPeer,
    MessageType,
    PeerList,
    PeerRecord,
    Status,
    TrackerClaim,
    seal,
    sign_claim,
    topic,
    unseal,
)
from loremesh.services.chain import ChainService
from loremesh.services.serving import SyncServer
from loremesh.storage.store import ANY_BYTES
from loremesh.testing.builders import block_on, identity, resigned
from loremesh.testing.small_network import SmallNode

_PATIENCE: Final = 10.0
_NOWHERE: Final = Hash(b"\x99" * 32)
_FALSE_VIEW: Final = 9
_OPENLY: Final = 0.3
"""Share of the pairs that everybody is shown."""
_SHOWN: Final = 8
"""Blocks that one peer is shown at most; whoever took older ones serves them."""


@dataclass(frozen=True, slots=True)
class Villain:
    """A node that lies.

    Attributes:
        node: Runs as any other.
        genesis: Of the story.
        others: Whom it lies about.
        dice: For its pauses.
    """

    node: SmallNode
    genesis: Genesis
    others: Sequence[PeerId]
    dice: random.Random

    async def pause(self, least: float, most: float) -> None:
        """Wait a while."""
        await trio.sleep(self.dice.uniform(least, most))

    def next_block(self, salt: str = "") -> Block | None:
        """Give a valid block of its own on its head; None while it is too early for one."""
        parent = self.node.chain.parent()
        now = self.node.clock()
        if earliest_time(self.genesis, parent.link, self.node.peer_id) > now:
            return None
        return block_on(self.genesis, parent, self.node.identity, time=now, salt=salt)

    def seal(self, kind: MessageType, payload: object) -> bytes:
        """Put a payload into an envelope that is in order."""
        return seal(self.node.identity, kind, payload, self.node.clock())

    async def gossip(self, name: str, kind: MessageType, payload: object) -> None:
        """Tell everybody who listens."""
        await self.node.network.publish(topic(self.node.chain.store.story, name), self.seal(kind, payload))

    async def answer(self, stream: Stream, kind: MessageType, payload: object) -> None:
        """Answer whoever asks."""
        await stream.send(self.seal(kind, payload))


async def _forge(villain: Villain) -> None:
    """Announce blocks that break one rule each: some show it alone, some only to those who know the parent's state."""
    me = villain.node.identity
    forgeries: tuple[Callable[[Block], Block], ...] = (
        lambda block: resigned(block, me, state_root=_NOWHERE),
        lambda block: resigned(block, me, height=block.header.height + 1),
        lambda block: resigned(block, me, content_root=_NOWHERE),
        lambda block: replace(block, signature=me.sign(_NOWHERE)),
    )
    for forge in cycle(forgeries):
        await villain.pause(0.5, 1.5)
        if (block := villain.next_block()) is not None:
            await villain.node.story.announcer.announce(forge(block))


async def _equivocate(villain: Villain) -> None:
    """Sign many valid blocks on one parent: two for everybody, or for each who asks two that nobody else is shown."""
    node, used, faces = villain.node, set[Hash](), dict[PeerId, _Face]()

    async def serve(stream: Stream) -> None:
        face = faces.setdefault(stream.peer_id, _Face(node.chain))
        await SyncServer(node.identity, cast("ChainService", face), node.clock, None).serve(stream)

    node.network.serve(SYNC_PROTOCOL, serve)
    while True:
        await villain.pause(4, 8)
        pair = _signed_on_one_parent(villain, "")
        if not pair or pair[0].header.parent in used:
            continue
        used.add(pair[0].header.parent)
        if villain.dice.random() < _OPENLY:
            for block in pair:
                await node.story.announcer.announce(block)
        else:
            for number, face in enumerate(faces.values()):
                face.show(_signed_on_one_parent(villain, f" for {number}"))


def _signed_on_one_parent(villain: Villain, salt: str) -> list[Block]:
    blocks = (villain.next_block(word + salt) for word in ("one", "other"))
    return [block for block in blocks if block is not None]


class _Face:
    """A chain as one peer is shown it: with some blocks more."""

    def __init__(self, chain: ChainService) -> None:
        self._chain = chain
        self._shown: dict[Hash, Block] = {}

    def show(self, blocks: Sequence[Block]) -> None:
        """Let the peer see blocks, and no more those before the last few."""
        self._shown.update((header_hash(block.header), block) for block in blocks)
        while len(self._shown) > _SHOWN:
            del self._shown[next(iter(self._shown))]

    @property
    def store(self) -> Store:
        """What it seems to be now."""
        store = self._chain.store
        for block in self._shown.values():
            store = on_block(store, block, is_kept=True)
        return store

    async def load(self, names: Sequence[Hash], enough: int = ANY_BYTES) -> dict[Hash, bytes]:
        """Give blocks, the shown ones among them."""
        found = await self._chain.load(names, enough)
        return found | {name: encode(self._shown[name]) for name in names if name in self._shown}

    async def load_headers(self, names: Sequence[Hash]) -> tuple[SignedHeader, ...]:
        """Give headers, the shown ones among them."""
        found = await self.load(names)
        blocks = [decode(Block, found[name]) for name in names]
        return tuple(SignedHeader(block.header, block.signature) for block in blocks)


async def _lie_in_sync(villain: Villain) -> None:
    """Claim a head that does not exist, and answer with headers that make no chain and blocks nobody asked for."""
    chain = villain.node.chain

    async def serve(stream: Stream) -> None:
        kind = await _read(stream)
        store = chain.store
        if kind is MessageType.STATUS_REQUEST:
            status = Status((store.story,), Height(store.tip.link.height + 9), (_NOWHERE,), ())
            await villain.answer(stream, MessageType.STATUS, status)
        elif kind is MessageType.HEADERS_REQUEST:
            names = [store.canon[height] for height in range(store.tip.link.height, 0, -1)][:9]
            found = await chain.load(names)
            blocks = [decode(Block, found[name]) for name in names]
            headers = tuple(SignedHeader(block.header, block.signature) for block in blocks)
            await villain.answer(stream, MessageType.HEADERS, Headers(headers))
        elif (block := villain.next_block()) is not None:
            await villain.answer(stream, MessageType.BLOCK, block)
        await stream.finish()

    villain.node.network.serve(SYNC_PROTOCOL, serve)
    await trio.sleep_forever()


async def _withhold(villain: Villain) -> None:
    """Announce blocks by name, serve headers, and give nobody a body."""
    node = villain.node
    chain = cast("ChainService", _Bodiless(node.chain))
    node.network.serve(SYNC_PROTOCOL, SyncServer(node.identity, chain, node.clock, None).serve)
    used = set[Hash]()
    while True:
        await villain.pause(2, 4)
        block = villain.next_block()
        if block is not None and block.header.parent not in used:
            header = block.header
            used.add(header.parent)
            shown = (SignedHeader(header, block.signature),)
            said = BlockAnnouncement(header.height, header_hash(header), header.producer, header.time, b"", shown)
            await villain.gossip("blocks", MessageType.BLOCK_ANNOUNCEMENT, said)


class _Bodiless:
    """A chain of which only the headers are there."""

    def __init__(self, chain: ChainService) -> None:
        self._chain = chain

    async def load(self, *_: object) -> dict[Hash, bytes]:
        """Give nothing."""
        await trio.lowlevel.checkpoint()
        return {}

    def __getattr__(self, name: str) -> object:
        """Be the chain in all else."""
        return getattr(self._chain, name)


async def _usurp(villain: Villain) -> None:
    """Claim the tracker's office, which is never its turn by that view."""
    node = villain.node
    while True:
        await villain.pause(1, 2)
        claim = TrackerClaim(node.chain.store.story, node.head, _FALSE_VIEW, node.peer_id, Millis(node.clock()))
        await villain.gossip("peers", MessageType.TRACKER_CLAIM, sign_claim(node.identity, claim))


async def _slander(villain: Villain) -> None:
    """Pass on cards that nobody signed: on lists, and as heartbeats of others."""
    node = villain.node

    def forged() -> PeerRecord:
        mine = node.services.peers.record()
        return replace(mine, card=replace(mine.card, peer_id=villain.dice.choice(villain.others)))

    async def serve(stream: Stream) -> None:
        await _read(stream)
        invented = identity(f"invented {villain.dice.random()}").peer_id
        mine = node.services.peers.record()
        junk = ListedPeer(replace(mine, card=replace(mine.card, peer_id=invented)), ())
        await villain.answer(stream, MessageType.NOT_THE_TRACKER, PeerList((), 0, (ListedPeer(mine, ()), junk)))
        await stream.finish()

    node.network.serve(PEERS_PROTOCOL, serve)
    while True:
        await villain.pause(2, 3)
        await villain.gossip("peers", MessageType.HEARTBEAT, forged())


async def _read(stream: Stream) -> MessageType:
    frame = await stream.receive(_PATIENCE) or b""
    return unseal(frame, stream.peer_id)[0]


@dataclass(frozen=True, slots=True)
class Malice:
    """A way to be hostile.

    Attributes:
        name: For people.
        act: Does it until cancelled.
        is_provable: Whether it breaks rules, so that whoever meets it shuts it out; what is merely unkind or is kept as
            evidence does not.
    """

    name: str
    act: Callable[[Villain], Awaitable[None]]
    is_provable: bool


MALICES: Final = (
    Malice("forges blocks", _forge, is_provable=True),
    Malice("lies in sync", _lie_in_sync, is_provable=True),
    Malice("signs many headers on one parent", _equivocate, is_provable=False),
    Malice("claims to be the tracker", _usurp, is_provable=True),
    Malice("withholds bodies", _withhold, is_provable=False),
    Malice("passes on forged cards", _slander, is_provable=True),
)
"""What the hostile nodes of a scenario are, in turn."""
