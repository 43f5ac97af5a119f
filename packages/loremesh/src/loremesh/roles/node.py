"""A node as a program runs it: a data directory, the real network and the services, in one nursery."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from loremesh.config import Settings
from loremesh.errors import MachineError, ProtocolError, UsageError
from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import Genesis, genesis_from_bytes, story_id
from loremesh.protocol.identity import Identity, peer_id_from_text, peer_id_text
from loremesh.roles.assembly import Services, assemble
from loremesh.roles.desk import desk_of
from loremesh.roles.joining import Lookout, check_story, read_genesis
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.happenings import Tell
from loremesh.services.sync import Puller
from loremesh.storage.keys import load_or_create_key
from loremesh.storage.store import Store as Disk

logger = logging.getLogger("loremesh.node")

DENY_FILE: Final = "deny.txt"
VALIDATOR: Final = "validator"
EXECUTOR: Final = "executor"
_IDENTITY_NOTE: Final = "identity"
_BOOTSTRAP_PATIENCE: Final = 5.0
"""Seconds for a bootstrap node that is started at the same time to begin to listen."""


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


async def _identity_for(settings: Settings, disk: Disk) -> Identity:
    """Load the node's key, which must be the one that this data directory has always been used with.

    A directory under another key would make a node that contradicts its own past; and a forgotten `--key-file` must
    not silently make a new key.
    """
    before = await disk.note(_IDENTITY_NOTE)
    path = settings.key_file or settings.data_dir / "key"
    if before is not None and settings.private_key is None and not path.exists():
        raise UsageError(f"{_belongs(settings, before)}, and there is no key in {path}: give its --key-file")
    identity = identity_of(settings)
    if before is None:
        await disk.set_note(_IDENTITY_NOTE, identity.peer_id)
    elif before != identity.peer_id:
        raise UsageError(f"{_belongs(settings, before)}, not to {identity}: give its key, or another --data-dir")
    return identity


def _belongs(settings: Settings, peer_id: bytes) -> str:
    return f"{settings.data_dir} belongs to {peer_id_text(PeerId(peer_id))}"


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
class Node:
    """A running node, as the roles see it."""

    settings: Settings
    disk: Disk
    network: Behaviour
    services: Services
    leaving: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """What there is to do before the node is ended."""

    async def leave(self) -> None:
        """Do what there is to do before the node is ended, for at most `settings.drain` seconds and a little."""
        async with trio.open_nursery() as nursery:
            for step in self.leaving:
                nursery.start_soon(step)

    def reload(self) -> None:
        """Read the deny file again and act on it; a mistake in it is logged and changes nothing."""
        try:
            self.services.scores.deny(read_deny_file(self.settings.data_dir))
        except UsageError as error:
            logger.error("the deny file is not used: %s", error)  # noqa: TRY400 - the line is the whole story
        else:
            self.services.peers.look_again()


class Beside(Protocol):
    """Something that runs beside a node's services, and says when it has started."""

    async def __call__(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        """Run until cancelled."""


async def run_node(
    settings: Settings,
    role: str,
    tell: Tell,
    *,
    models: tuple[str, ...] = (),
    beside: Beside | None = None,
    task_status: trio.TaskStatus[Node] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node until cancelled.

    Args:
        settings: Of this node.
        role: `validator` or `executor`, as its peers hear it.
        tell: Hears of all that an operator may want to know; must return at once.
        models: What it serves, as its peers hear it.
        beside: Runs in the node's nursery: a miner for example. The node waits with all else until it has started.
        task_status: Gets the node when it listens and has its story; `node.services.ready` says when it can be used.

    Raises:
        UsageError: The settings contradict each other or the data directory.
        MachineError: The directory is in use, the port is taken, the disk refuses.
        Unreachable: The story had to be fetched, and nobody has it.
    """
    make_directory(settings.data_dir)
    async with desk_of(settings) as desk, Disk.open(settings.data_dir) as disk:
        identity = await _identity_for(settings, disk)
        async with _network_of(settings, identity) as network:
            puller = Puller(network, identity, wall_clock)
            genesis = await _find_genesis(settings, role, disk, Lookout(identity, network, puller, wall_clock))
            services = await assemble(
                role=role,
                identity=identity,
                network=network,
                disk=disk,
                genesis=genesis,
                clock=wall_clock,
                tell=desk.hearing(tell),
                bootstrap=settings.bootstrap_nodes,
                models=models,
                max_reorg=settings.max_reorg,
            )
            desk.open(services)
            node = Node(settings, disk, network, services)
            async with trio.open_nursery() as nursery:
                if beside is not None:
                    await nursery.start(beside, node)
                await nursery.start(services.run)
                node.reload()
                task_status.started(node)


def make_directory(directory: Path) -> None:
    """Make the data directory, readable by its owner only.

    Raises:
        MachineError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MachineError(f"cannot make {directory}: {reason}; choose another --data-dir") from error


def _network_of(settings: Settings, identity: Identity) -> AbstractAsyncContextManager[Behaviour]:
    return running_network(
        identity,
        NetworkSettings(
            listen_addresses=settings.listen_addresses,
            announce_addresses=settings.announce_addresses,
            relay=settings.relay,
            mdns=settings.mdns,
            max_connections_per_address=settings.max_connections_per_address,
        ),
    )


async def _find_genesis(settings: Settings, role: str, disk: Disk, lookout: Lookout) -> Genesis | None:
    """Decide which story this node keeps: from the file, the directory or the bootstrap nodes, in this order."""
    kept = await disk.load_genesis()
    if settings.genesis is not None:
        genesis = read_genesis(settings.genesis)
    elif kept is not None:
        try:
            genesis = genesis_from_bytes(kept)
        except ProtocolError as error:
            raise MachineError(
                f"the genesis in {settings.data_dir} is damaged ({error}): move the directory away, keep its key, "
                "and start again with --genesis or --bootstrap-nodes"
            ) from error
        check_story(genesis, settings.story, str(settings.data_dir))
        return genesis
    elif settings.bootstrap_nodes:
        await lookout.connect_any(settings.bootstrap_nodes, _BOOTSTRAP_PATIENCE)
        found = await lookout.find_genesis(settings.story)
        if found is None:
            _check_may_lack_story(settings, role, "the bootstrap nodes keep none")
            return None
        genesis = found
    elif settings.story is not None:
        raise UsageError("--story needs --bootstrap-nodes to fetch it from; or give --genesis with its file")
    else:
        _check_may_lack_story(settings, role, "there are no bootstrap nodes to ask")
        return None
    await disk.save_genesis(story_id(genesis), encode(genesis))
    return genesis


def _check_may_lack_story(settings: Settings, role: str, reason: str) -> None:
    if role == VALIDATOR:
        return
    if not settings.serve:
        raise UsageError(
            f"no story to write: {reason}; give --genesis FILE, or --bootstrap-nodes of a node that has one"
        )
    logger.warning("no story: %s; this executor serves calls to its models, and writes nothing", reason)
