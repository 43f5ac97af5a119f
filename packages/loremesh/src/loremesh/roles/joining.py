"""Finding the story to join: from a file, from the data directory, or from the nodes we were told to ask."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from loremesh.errors import (
    InvalidGenesis,
    ProtocolError,
    ServiceError,
    Unreachable,
    UsageError,
)
from loremesh.primitives import PeerId, StoryId
from loremesh.protocol.genesis import Genesis, genesis_from_toml, story_id
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    MessageType,
    Nothing,
    PeerList,
    read_peer_list,
    seal,
    unseal,
)
from loremesh.services.happenings import Clock
from loremesh.services.sync import Puller

logger = logging.getLogger("loremesh.joining")

T = TypeVar("T")
_MAX_ASKED: Final = 32
_TRY_AGAIN: Final = 1.0
_MAX_NEIGHBOURS: Final = 16
_NEIGHBOURS_TIMEOUT: Final = 10.0
"""Seconds for dialling what one peer list names: a list of dead addresses holds nobody up."""


class Network(Protocol):
    """What joining needs of the network."""

    def connected(self) -> tuple[PeerId, ...]:
        """Give the peers we have a connection to."""

    async def connect(self, address: str) -> PeerId:
        """Dial."""


def read_genesis(path: Path) -> Genesis:
    """Read a genesis file.

    Raises:
        UsageError: It cannot be read, or describes no story.
    """
    try:
        return genesis_from_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text") from error
    except InvalidGenesis as error:
        raise InvalidGenesis(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True)
class Lookout:
    """Asks nodes which stories they keep, and where others are.

    Args:
        identity: Ours.
        network: To dial.
        puller: To ask.
        clock: For the envelopes' log timestamps.
    """

    identity: Identity
    network: Network
    puller: Puller
    clock: Clock

    async def connect_any(self, addresses: tuple[str, ...], patience: float = 0) -> tuple[PeerId, ...]:
        """Connect to all of `addresses` at once; give those that answered.

        Args:
            addresses: Multiaddrs.
            patience: Seconds to try again for while none answers: nodes that start together find each other.

        Raises:
            Unreachable: None did; the message says why each failed.
        """
        until = trio.current_time() + patience
        while True:
            reached, failures = await self._connect_all(addresses)
            if reached:
                return tuple(reached)
            message = "no bootstrap node can be reached: " + "; ".join(failures)
            if trio.current_time() >= until:
                raise Unreachable(message)
            logger.debug("%s; trying again", message)
            await trio.sleep(_TRY_AGAIN)

    async def _connect_all(self, addresses: tuple[str, ...]) -> tuple[list[PeerId], list[str]]:
        reached: list[PeerId] = []
        failures: list[str] = []

        async def try_one(address: str) -> None:
            try:
                reached.append(await self.network.connect(address))
            except (ServiceError, ProtocolError) as error:
                failures.append(str(error) if address in str(error) else f"{address}: {error}")

        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(try_one, address)
        return reached, failures

    async def find_genesis(self, wanted: StoryId | None) -> Genesis | None:
        """Look for a story among the connected nodes and those on their peer lists.

        Args:
            wanted: The story to join; None: the only one there is.

        Returns:
            The genesis; None when no story was asked for and nobody keeps one.

        Raises:
            UsageError: Several stories are kept, and none was asked for.
            Unreachable: Nobody keeps the story that was asked for.
        """
        keepers = await self._keepers(wanted)
        if wanted is None and len(keepers) > 1:
            names = ", ".join(sorted(story.hex() for story in keepers))
            raise UsageError(f"there are several stories here: choose one with --story: {names}")
        if wanted is None and not keepers:
            return None
        story = wanted if wanted is not None else next(iter(keepers))
        for peer in keepers.get(story, []):
            try:
                return await self.puller.genesis(peer, story)
            except (ServiceError, ProtocolError, InvalidGenesis) as error:
                logger.warning("%s did not give the genesis: %s", peer_id_text(peer), error)
        raise Unreachable(f"nobody reachable keeps story {story.hex()}")

    async def _keepers(self, wanted: StoryId | None) -> dict[StoryId, list[PeerId]]:
        """Ask breadth-first, following the peer lists of nodes that keep no story themselves."""
        keepers: dict[StoryId, list[PeerId]] = {}
        queue = list(self.network.connected())
        asked: set[PeerId] = set()
        while queue and len(asked) < _MAX_ASKED:
            peer = queue.pop(0)
            if peer in asked:
                continue
            asked.add(peer)
            kept = await self._tolerant(self._story_of, peer)
            if kept is not None:
                keepers.setdefault(kept, []).append(peer)
            if kept is None or (wanted is not None and wanted != kept):
                queue += await self._tolerant(self._neighbours_of, peer) or ()
        return keepers

    async def _tolerant(self, ask: Callable[[PeerId], Awaitable[T]], peer: PeerId) -> T | None:
        """Ask one of many: what it does wrong is a reason to ask the next."""
        try:
            return await ask(peer)
        except (ServiceError, ProtocolError) as error:
            logger.info("%s does not answer: %s", peer_id_text(peer), error)
            return None

    async def _story_of(self, peer: PeerId) -> StoryId | None:
        status = await self.puller.status(peer)
        return StoryId(status.story[0]) if status.story else None

    async def _neighbours_of(self, peer: PeerId) -> tuple[PeerId, ...]:
        listed = (await self.peer_list(peer)).peers[:_MAX_NEIGHBOURS]
        found = []
        with trio.move_on_after(_NEIGHBOURS_TIMEOUT):
            for address in [address for one in listed for address in one.reached[:1]]:
                try:
                    found.append(await self.network.connect(address))
                except (ServiceError, ProtocolError, UsageError) as error:
                    logger.debug("a listed peer is not there: %s", error)
        return tuple(found)

    async def peer_list(self, peer: PeerId) -> PeerList:
        """Ask a node who is here; from any node but the tracker the list is second-hand, and says so."""
        frame = seal(self.identity, MessageType.PEER_LIST_REQUEST, Nothing(), self.clock(), peer)
        kind, payload = unseal(await self.puller.ask(peer, PEERS_PROTOCOL, frame), peer, self.identity.peer_id)
        return read_peer_list(kind, payload, peer)


def check_story(genesis: Genesis, wanted: StoryId | None, where: str) -> None:
    """Check that `genesis` begins the story that was asked for.

    Raises:
        UsageError: It begins another one.
    """
    if wanted is not None and story_id(genesis) != wanted:
        raise UsageError(f"{where} holds story {story_id(genesis).hex()}, not {wanted.hex()}: use another --data-dir")
