"""A node: storage, network and the services that both node programs share, in one nursery."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from loremesh.config import Settings
from loremesh.errors import MachineError, ProtocolError, ServiceError, UsageError
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import (
    CallServed,
    GossipReceived,
    GossipRefused,
    PeerConnected,
    PeerDisconnected,
)
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import GENESIS_HEIGHT, Genesis, genesis_from_bytes, story_id
from loremesh.protocol.identity import Identity, peer_id_from_text, peer_id_text
from loremesh.protocol.wire import PEERS_PROTOCOL, SYNC_PROTOCOL
from loremesh.roles.joining import Lookout, check_story, read_genesis
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.announcements import Announcer
from loremesh.services.chain import ChainService, Penalize
from loremesh.services.happenings import Ready, Rejected, Tell
from loremesh.services.peers import PeerService, Self
from loremesh.services.serving import SyncServer
from loremesh.services.sync import Puller, SyncService
from loremesh.storage.keys import load_or_create_key
from loremesh.storage.store import Store as Disk

logger = logging.getLogger("loremesh.node")

DENY_FILE: Final = "deny.txt"
VALIDATOR: Final = "validator"
EXECUTOR: Final = "executor"
_FIRST_PEER: Final = 5.0
"""Seconds to wait for a first connection before saying that we are ready alone."""
_UNVOTED_MAX_REORG: Final = 100
_ENOUGH_PEERS: Final = 4
_PROVIDE_EVERY: Final = 600.0
_LONELY: Final = 10.0


def identity_of(settings: Settings) -> Identity:
    """Load the node's key, or make it on the first run.

    Raises:
        UsageError: The key is malformed, or its file is open to others.
        MachineError: The file cannot be read or written.
    """
    if settings.private_key is not None:
        return Identity.from_str(settings.private_key.get_secret_value())
    path = settings.key_file or settings.data_dir / "key"
    return load_or_create_key(path, secrets.token_bytes(32))


def read_deny_file(directory: Path) -> frozenset[PeerId]:
    """Read the peers that the operator denies: one peer id a line, `#` starts a comment; no file denies nobody.

    Raises:
        UsageError: A line is no peer id.
    """
    try:
        text = (directory / DENY_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return frozenset()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{directory / DENY_FILE}: {error}") from error
    denied = set()
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("#")[0].strip()
        if name:
            try:
                denied.add(peer_id_from_text(name))
            except ProtocolError as error:
                raise UsageError(f"{directory / DENY_FILE}, line {number}: {error}") from error
    return frozenset(denied)


@dataclass(frozen=True, slots=True)
class Story:
    """The services that a node with a story runs."""

    chain: ChainService
    announcer: Announcer
    sync: SyncService
    wakeups: trio.MemorySendChannel[PeerId]
    """Peers for sync to ask next."""

    def ask(self, peer: PeerId) -> None:
        """Let sync ask `peer` soon; when many wait already, its turn comes anyway."""
        with suppress(trio.WouldBlock):
            self.wakeups.send_nowait(peer)


@dataclass(frozen=True, slots=True)
class Node:
    """A running node, as the roles see it."""

    settings: Settings
    role: str
    identity: Identity
    network: Behaviour
    disk: Disk
    peers: PeerService
    story: Story | None
    """None: a pure anchor."""
    tell: Tell
    penalize: Penalize
    met: trio.Event
    """Set once the first peer is connected."""
    ready: trio.Event

    def reload(self) -> None:
        """Read the deny file again and act on it; a mistake in it is logged and changes nothing."""
        try:
            self.network.deny(read_deny_file(self.settings.data_dir))
        except UsageError as error:
            logger.error("the deny file is not used: %s", error)  # noqa: TRY400 - the line is the whole story
        else:
            self.peers.look_again()


async def run_node(
    settings: Settings,
    role: str,
    tell: Tell,
    *,
    models: tuple[str, ...] = (),
    beside: Callable[[Node, Story], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node until cancelled.

    Args:
        settings: Of this node.
        role: `validator` or `executor`, as its peers hear it.
        tell: Hears of all that an operator may want to know; must return at once.
        models: What it serves, as its peers hear it.
        beside: Runs in the node's nursery once it has a story, a miner for example.
        task_status: Gets the node when it listens and has its story; `node.ready` says when it can be used.

    Raises:
        UsageError: The settings contradict each other or the data directory.
        MachineError: The directory is in use, the port is taken, the disk refuses.
        Unreachable: The story had to be fetched, and nobody has it.
    """
    make_directory(settings.data_dir)
    identity = identity_of(settings)
    async with Disk.open(settings.data_dir) as disk, _network_of(settings, identity) as network:
        puller = Puller(network, identity, wall_clock)
        genesis = await _find_genesis(settings, role, disk, Lookout(identity, network, puller, wall_clock))
        node = await _assemble(
            settings=settings,
            role=role,
            identity=identity,
            network=network,
            puller=puller,
            disk=disk,
            genesis=genesis,
            models=models,
            tell=tell,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.peers.run)
            nursery.start_soon(_dispatch, node, nursery)
            if node.story is not None:
                await node.story.announcer.subscribe()
                nursery.start_soon(node.story.chain.run)
                nursery.start_soon(node.story.sync.run)
                nursery.start_soon(_ask_senders_of_orphans, node.story)
                nursery.start_soon(_provide, node, node.story)
                if beside is not None:
                    nursery.start_soon(beside, node, node.story)
            node.reload()
            nursery.start_soon(_get_ready, node)
            task_status.started(node)


def make_directory(directory: Path) -> None:
    """Make the data directory, readable by its owner only.

    Raises:
        MachineError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MachineError(f"{directory}: {(error.strerror or str(error)).lower()}") from error


def _network_of(settings: Settings, identity: Identity) -> AbstractAsyncContextManager[Behaviour]:
    return running_network(
        identity,
        NetworkSettings(
            listen_addresses=settings.listen_addresses,
            announce_addresses=settings.announce_addresses,
            max_connections_per_address=settings.max_connections_per_address,
        ),
    )


async def _find_genesis(settings: Settings, role: str, disk: Disk, lookout: Lookout) -> Genesis | None:
    """Decide which story this node keeps: from the file, the directory or the bootstrap nodes, in this order."""
    kept = await disk.load_genesis()
    if settings.genesis is not None:
        genesis = read_genesis(settings.genesis)
    elif kept is not None:
        genesis = genesis_from_bytes(kept)
        check_story(genesis, settings.story, str(settings.data_dir))
        return genesis
    elif settings.bootstrap_nodes:
        await lookout.connect_any(settings.bootstrap_nodes)
        found = await lookout.find_genesis(settings.story)
        if found is None:
            _check_may_lack_story(role, "the bootstrap nodes keep none")
            return None
        genesis = found
    elif settings.story is not None:
        raise UsageError("--story needs --bootstrap-nodes to fetch it from; or give --genesis with its file")
    else:
        _check_may_lack_story(role, "there are no bootstrap nodes to ask")
        return None
    await disk.save_genesis(story_id(genesis), encode(genesis))
    return genesis


def _check_may_lack_story(role: str, reason: str) -> None:
    if role != VALIDATOR:
        raise UsageError(
            f"no story to write: {reason}; give --genesis FILE, or --bootstrap-nodes of a node that has one"
        )


async def _assemble(
    *,
    settings: Settings,
    role: str,
    identity: Identity,
    network: Behaviour,
    puller: Puller,
    disk: Disk,
    genesis: Genesis | None,
    models: tuple[str, ...],
    tell: Tell,
) -> Node:
    """Make the services and give each the doors it needs."""

    def penalize(peer_id: PeerId, what: str, error: ProtocolError) -> None:
        logger.warning("refused a %s of %s: %s", what, peer_id_text(peer_id), error)
        tell(Rejected(what, error.fault, peer_id, error.detail))

    story = None
    if genesis is not None:
        chain = ChainService(
            genesis,
            disk,
            clock=wall_clock,
            tell=tell,
            penalize=penalize,
            me=identity.peer_id,
            max_reorg=_max_reorg(settings, genesis),
        )
        await chain.restore()
        announcer = Announcer(
            identity=identity, chain=chain, network=network, puller=puller, penalize=penalize, clock=wall_clock
        )
        wakeups, to_ask = trio.open_memory_channel[PeerId](64)
        sync = SyncService(puller=puller, chain=chain, network=network, wakeups=to_ask, penalize=penalize)
        story = Story(chain, announcer, sync, wakeups)
    peers = PeerService(
        identity=identity,
        network=network,
        me=Self((role,), models, (story.chain.store.story,) if story else ()),
        height=lambda: story.chain.store.tip.link.height if story else GENESIS_HEIGHT,
        tracker=lambda: story.chain.store.tip.link.producer if story else None,
        bootstrap=settings.bootstrap_nodes,
        publish=story.announcer.beat if story else None,
        clock=wall_clock,
        tell=tell,
        penalize=penalize,
    )
    server = SyncServer(identity, story.chain if story else None, wall_clock, story.announcer.relay if story else None)
    network.serve(SYNC_PROTOCOL, server.serve)
    network.serve(PEERS_PROTOCOL, peers.serve)
    return Node(
        settings=settings,
        role=role,
        identity=identity,
        network=network,
        disk=disk,
        peers=peers,
        story=story,
        tell=tell,
        penalize=penalize,
        met=trio.Event(),
        ready=trio.Event(),
    )


def _max_reorg(settings: Settings, genesis: Genesis) -> int | None:
    """Without validators nothing else stops a long rewrite, so a deep one waits for the operator."""
    if settings.max_reorg is None and not genesis.validators:
        return _UNVOTED_MAX_REORG
    return settings.max_reorg


async def _dispatch(node: Node, nursery: trio.Nursery) -> None:
    """Hand each network event to the service it concerns."""
    async for event in node.network.events:
        match event:
            case PeerConnected(peer, _, _):
                node.met.set()
                node.peers.on_connected(peer)
                nursery.start_soon(node.peers.introduce, peer)
                if node.story is not None:
                    node.story.ask(peer)
            case PeerDisconnected(peer):
                node.peers.on_disconnected(peer)
            case GossipReceived() if node.story is not None:
                try:
                    await node.story.announcer.on_gossip(event, node.peers)
                except ProtocolError as error:
                    node.penalize(event.forwarder, "gossip message", error)
            case GossipRefused(_, fault, _, forwarder):
                node.penalize(forwarder, "gossip message", ProtocolError(fault))
            case CallServed(protocol, peer, fault) if fault is not None:
                node.penalize(peer, f"call of {protocol}", ProtocolError(fault))
            case _:
                pass


async def _ask_senders_of_orphans(story: Story) -> None:
    while True:
        sender = await story.chain.orphaned.wait_change()
        if sender is not None:
            story.ask(sender)


async def _provide(node: Node, story: Story) -> None:
    """Tell the DHT that we keep this story; while we are alone, look there for others who do."""
    key = f"story/{story.chain.store.story.hex()}"
    await node.ready.wait()
    while True:
        connected = node.network.connected()
        if connected:
            try:
                await node.network.provide(key)
                for record in await node.network.find_providers(key) if len(connected) < _ENOUGH_PEERS else ():
                    node.peers.hear_of(record.peer_id, record.addresses)
            except ServiceError as error:
                logger.info("the DHT does not answer: %s", error)
        await trio.sleep(_PROVIDE_EVERY if connected else _LONELY)


async def _get_ready(node: Node) -> None:
    """Say that the node can be used: it listens, has met somebody if it was told of anybody, and asked them once."""
    if node.settings.bootstrap_nodes:
        with trio.move_on_after(_FIRST_PEER):
            await node.met.wait()
            if node.story is not None:
                await node.story.sync.sync_with(node.network.connected()[0])
    story = node.story.chain.store.story if node.story else None
    node.tell(Ready(node.role, node.identity.peer_id, node.network.addresses(), story))
    node.ready.set()
