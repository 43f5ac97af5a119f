"""The services that both node programs share, put together: who hands what to whom.

Knows the network and the disk only by what it needs of them, so a test puts the same services on a network in memory.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import ProtocolError, ServiceError
from loremesh.network.events import (
    CallServed,
    GossipReceived,
    GossipRefused,
    NetworkEvent,
    PeerConnected,
    PeerDisconnected,
    PeerNearby,
    ProviderRecord,
)
from loremesh.network.frames import Stream
from loremesh.primitives import PeerId
from loremesh.protocol.cards import CARD_PROTOCOL, CARDS_TOPIC
from loremesh.protocol.genesis import GENESIS_HEIGHT, Genesis
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import LLM_PROTOCOL
from loremesh.protocol.peer_score import SIGNERS_OWN
from loremesh.protocol.wire import PEERS_PROTOCOL, SYNC_PROTOCOL
from loremesh.services import announcements, cards, peers, scores, sync
from loremesh.services.announcements import Announcer
from loremesh.services.cards import CardService
from loremesh.services.chain import ChainService, Penalize
from loremesh.services.chain import Disk as ChainDisk
from loremesh.services.happenings import Clock, Ready, Tell
from loremesh.services.llm_server import LlmServer
from loremesh.services.peers import PeerService, Self
from loremesh.services.scores import ScoreService
from loremesh.services.serving import SyncServer
from loremesh.services.sync import Puller, SyncService
from loremesh.services.tracker import TrackerService

logger = logging.getLogger("loremesh.node")

_FIRST_PEER: Final = 5.0
"""Seconds to wait for a first connection before saying that we are ready alone."""
_UNVOTED_MAX_REORG: Final = 100
_ENOUGH_PEERS: Final = 4
_PROVIDE_EVERY: Final = 600.0
_LONELY: Final = 10.0
_WAKEUPS: Final = 64


class Network(peers.Network, announcements.Network, sync.Network, scores.Network, cards.Network, Protocol):
    """What a node needs of the network: `Behaviour`, or a `MemoryNode`."""

    @property
    def events(self) -> trio.MemoryReceiveChannel[NetworkEvent]:
        """What happens, in order."""

    @property
    def dropped_events(self) -> int:
        """How many events there was no room for."""

    def serve(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None:
        """Answer streams of a protocol."""

    async def provide(self, key: str) -> None:
        """Say in the DHT that we provide `key`."""

    async def find_providers(self, key: str) -> tuple[ProviderRecord, ...]:
        """Ask the DHT who provides `key`."""


class Disk(ChainDisk, scores.Disk, Protocol):
    """What a node needs of storage: `Store`, or a `MemoryDisk`."""


@dataclass(frozen=True, slots=True)
class Story:
    """The services that a node with a story runs."""

    chain: ChainService
    announcer: Announcer
    sync: SyncService
    tracker: TrackerService
    ask: Callable[[PeerId], None]
    """Lets sync ask a peer soon."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one node."""

    role: str
    identity: Identity
    network: Network
    bootstrap: tuple[str, ...]
    peers: PeerService
    story: Story | None
    """None: an anchor, or an executor that only serves."""
    scores: ScoreService
    cards: CardService
    tell: Tell
    met: trio.Event = field(default_factory=trio.Event)
    """Set once the first peer is connected."""
    ready: trio.Event = field(default_factory=trio.Event)
    heard: Counter[type[NetworkEvent]] = field(default_factory=Counter)
    """Network events handled so far, by type."""
    servers: list[LlmServer] = field(default_factory=list)
    """What answers calls to models, once it does: one at most."""

    async def serve_calls(self, server: LlmServer) -> None:
        """Answer calls to models, and tell the network of them, until cancelled."""
        self.network.serve(LLM_PROTOCOL, server.serve)
        self.servers.append(server)
        await self.ready.wait()
        await self.cards.announce(server)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports when all have started, `ready` says when the node can be used."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.scores.run)
            nursery.start_soon(self.peers.run)
            nursery.start_soon(self._dispatch, nursery)
            await self.cards.subscribe()
            if self.story is not None:
                await self.story.announcer.subscribe()
                await self.story.tracker.subscribe()
                nursery.start_soon(self.story.chain.run)
                nursery.start_soon(self.story.tracker.run, self.peers)
                nursery.start_soon(self.story.sync.run)
                nursery.start_soon(_ask_senders_of_orphans, self.story)
                nursery.start_soon(self._provide, self.story)
            nursery.start_soon(self._get_ready)
            task_status.started()

    async def _dispatch(self, nursery: trio.Nursery) -> None:
        """Hand each network event to the service it concerns."""
        async for event in self.network.events:
            self.heard[type(event)] += 1
            match event:
                case PeerConnected(peer, _, _):
                    self.met.set()
                    self.peers.on_connected(peer)
                    self.cards.on_connected()
                    nursery.start_soon(self.peers.introduce, peer)
                    if self.story is not None:
                        self.story.ask(peer)
                case PeerDisconnected(peer):
                    self.peers.on_disconnected(peer)
                case GossipReceived():
                    await self._take_gossip(event)
                case GossipRefused(_, fault, signer, forwarder):
                    culprit = signer if fault in SIGNERS_OWN else forwarder
                    self.scores.penalize(culprit, "gossip message", ProtocolError(fault))
                case CallServed(protocol, peer, fault) if fault is not None:
                    self.scores.penalize(peer, f"call of {protocol}", ProtocolError(fault))
                case PeerNearby(peer, addresses):
                    self.peers.hear_of(peer, addresses)
                case _:
                    pass

    async def _take_gossip(self, event: GossipReceived) -> None:
        if event.topic == CARDS_TOPIC:
            self.cards.on_gossip(event)
        elif self.story is not None:
            try:
                self.story.tracker.on_gossip(event, self.peers)
                await self.story.announcer.on_gossip(event)
            except ProtocolError as error:
                self.scores.penalize(event.forwarder, "gossip message", error)

    async def _provide(self, story: Story) -> None:
        """Tell the DHT that we keep this story; while we are alone, look there for others who do."""
        key = f"story/{story.chain.store.story.hex()}"
        await self.ready.wait()
        while True:
            connected = self.network.connected()
            if connected:
                try:
                    await self.network.provide(key)
                    for record in await self.network.find_providers(key) if len(connected) < _ENOUGH_PEERS else ():
                        self.peers.hear_of(record.peer_id, record.addresses)
                except ServiceError as error:
                    logger.info("the DHT does not answer: %s", error)
            await trio.sleep(_PROVIDE_EVERY if connected else _LONELY)

    async def _get_ready(self) -> None:
        """Say that the node can be used: it listens, and has met and asked somebody if it was told of anybody."""
        if self.bootstrap:
            with trio.move_on_after(_FIRST_PEER):
                await self.met.wait()
                for peer in self.network.connected()[:1]:
                    if self.story is not None:
                        await self.story.sync.sync_with(peer)
            if not self.met.is_set():
                logger.warning(
                    "no bootstrap node answers: going on alone, and trying them again; loremesh doctor says why"
                )
        story = self.story.chain.store.story if self.story else None
        self.tell(Ready(self.role, self.identity.peer_id, self.network.addresses(), story))
        self.ready.set()


async def assemble(
    *,
    role: str,
    identity: Identity,
    network: Network,
    disk: Disk,
    genesis: Genesis | None,
    clock: Clock,
    tell: Tell,
    bootstrap: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    max_reorg: int | None = None,
) -> Services:
    """Make the services of a node and give each the doors it needs; what the disk keeps is taken in.

    Args:
        role: `validator` or `executor`, as its peers hear it.
        identity: Ours.
        network: Not used before `Services.run`, but for what it serves.
        disk: Keeps the story, and who is kept out.
        genesis: Of the story; None: none is kept.
        clock: Unix milliseconds.
        tell: Hears of all that an operator may want to know; must return at once.
        bootstrap: Addresses that are always dialled again.
        models: What it serves, as its peers hear it.
        max_reorg: Deepest automatic reorganisation; None: what the protocol recommends.
    """
    judge = ScoreService(identity.peer_id, network, disk, clock=clock, tell=tell)
    await judge.restore()
    story = None
    if genesis is not None:
        chain = ChainService(
            genesis,
            disk,
            clock=clock,
            tell=tell,
            penalize=judge.penalize,
            max_reorg=_max_reorg(max_reorg, genesis),
        )
        await chain.restore()
        story = _story_of(chain, identity, network, clock, tell=tell, penalize=judge.penalize)
    known = CardService(identity, network, clock)
    table = PeerService(
        identity=identity,
        network=network,
        me=Self((role,), models, (story.chain.store.story,) if story else ()),
        height=lambda: story.chain.store.tip.link.height if story else GENESIS_HEIGHT,
        office=story.tracker if story else None,
        bootstrap=bootstrap,
        clock=clock,
        tell=known.hearing(tell),
        penalize=judge.penalize,
    )
    server = SyncServer(identity, story.chain if story else None, clock, story.announcer.relay if story else None)
    network.serve(SYNC_PROTOCOL, server.serve)
    network.serve(PEERS_PROTOCOL, table.serve)
    network.serve(CARD_PROTOCOL, known.serve)
    return Services(
        role=role,
        identity=identity,
        network=network,
        bootstrap=bootstrap,
        peers=table,
        story=story,
        scores=judge,
        cards=known,
        tell=tell,
    )


def _story_of(
    chain: ChainService, identity: Identity, network: Network, clock: Clock, *, tell: Tell, penalize: Penalize
) -> Story:
    wakeups, to_ask = trio.open_memory_channel[PeerId](_WAKEUPS)

    def ask(peer: PeerId) -> None:
        with suppress(trio.WouldBlock):  # when many wait already, its turn comes anyway
            wakeups.send_nowait(peer)

    announcer = Announcer(identity=identity, chain=chain, network=network, ask=ask, clock=clock)
    tracking = TrackerService(identity=identity, chain=chain, network=network, ask=ask, clock=clock, tell=tell)
    puller = Puller(network, identity, clock)
    syncing = SyncService(puller=puller, chain=chain, network=network, wakeups=to_ask, penalize=penalize)
    return Story(chain, announcer, syncing, tracking, ask)


def _max_reorg(wanted: int | None, genesis: Genesis) -> int | None:
    """Without validators nothing else stops a long rewrite, so a deep one waits for the operator."""
    if wanted is None and not genesis.validators:
        return _UNVOTED_MAX_REORG
    return wanted


async def _ask_senders_of_orphans(story: Story) -> None:
    while True:
        sender = await story.chain.orphaned.wait_change()
        if sender is not None:
            story.ask(sender)
