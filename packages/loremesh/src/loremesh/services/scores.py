"""The score service: who broke which rule, and who is kept out for it.

The rules are in `protocol/peer_score.py`; here they get a clock, the network's door and somebody to tell. Who the
operator denies and who is kept out for its faults are one list at the network's door.

Source: docs/threat-model.md.
"""

import logging
from typing import Final, Protocol

import trio

from loremesh.errors import ProtocolError, RequestRefused, StorageError
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.peer_score import (
    LONGEST_BAN,
    Standing,
    ban_time,
    banned,
    cost,
    is_banned,
    next_release,
    on_fault,
    score,
    with_ban,
)
from loremesh.protocol.persistent import Map
from loremesh.services.happenings import Banned, Clock, Rejected, Tell
from loremesh.storage.writes import Ban, SaveBan, Write

logger = logging.getLogger("loremesh.scores")

_A_MOMENT: Final = 0.01
"""Seconds added to a wait, so that it never ends just before what it waits for."""


class Network(Protocol):
    """What scoring needs of the network."""

    def deny(self, peers: frozenset[PeerId]) -> None:
        """Let nobody of these in; replaces the list before."""


class Disk(Protocol):
    """What scoring needs of storage."""

    async def commit(self, *writes: Write) -> None:
        """Make all of `writes` durable."""

    async def bans(self) -> list[Ban]:
        """Give the bans that are remembered."""


class ScoreService:
    """Sole owner of the peers' scores and of the list of who is not let in.

    Args:
        me: Ourselves, who are never kept out.
        network: Keeps peers out.
        disk: Remembers bans over a restart; what was lost short of one is forgiven by it.
        clock: Unix milliseconds.
        tell: Hears of every refusal and of every ban.
    """

    def __init__(self, me: PeerId, network: Network, disk: Disk, *, clock: Clock, tell: Tell) -> None:
        self._me = me
        self._network = network
        self._disk = disk
        self._clock = clock
        self._tell = tell
        self._unsaved: dict[PeerId, Ban] = {}
        self._denied = frozenset[PeerId]()
        self._standings: Map[PeerId, Standing] = Map()
        self._changed = trio.Event()

    @property
    def denied(self) -> frozenset[PeerId]:
        """Whom the operator denies."""
        return self._denied

    @property
    def banned(self) -> frozenset[PeerId]:
        """Who is kept out for a while."""
        return banned(self._standings, trio.current_time())

    def score(self, peer: PeerId) -> float:
        """Tell a peer's score: 0 at best."""
        return score(self._standings, peer, trio.current_time())

    def deny(self, peers: frozenset[PeerId]) -> None:
        """Replace the operator's list; whoever is kept out for faults stays out."""
        self._denied = peers
        self._close_doors()

    def penalize(self, peer_id: PeerId, what: str, error: ProtocolError) -> None:
        """Take in that a peer broke a rule; tell of it, and keep the peer out if it was one too many."""
        now = trio.current_time()
        if isinstance(error, RequestRefused):
            logger.debug("%s does not answer with a %s: %s", peer_id_text(peer_id), what, error)
            return
        if is_banned(self._standings, peer_id, now):
            logger.debug("one more %s of %s, sent before it was shut out: %s", what, peer_id_text(peer_id), error)
            return
        logger.warning("refused a %s of %s: %s", what, peer_id_text(peer_id), error)
        self._tell(Rejected(what, error.fault, peer_id, error.detail))
        if peer_id == self._me:
            return
        self._standings = on_fault(self._standings, peer_id, cost(error), now)
        if is_banned(self._standings, peer_id, now):
            seconds = ban_time(self._standings[peer_id].bans)
            logger.warning("%s is kept out for %.0f s: it broke too many rules", peer_id_text(peer_id), seconds)
            self._tell(Banned(peer_id, seconds))
            ends = Millis(self._clock() + round(1000 * seconds))
            self._unsaved[peer_id] = Ban(peer_id, ends, self._standings[peer_id].bans)
            self._close_doors()

    async def restore(self) -> None:
        """Keep out whoever was kept out before a restart; call once, before `run`."""
        now = trio.current_time()
        for ban in await self._disk.bans():
            until = now + (ban.ends - self._clock()) / 1000
            if until > now - LONGEST_BAN:
                self._standings = with_ban(self._standings, ban.peer_id, ban.number, until, now)
        self._close_doors()

    async def run(self) -> None:
        """Remember bans, and let peers in again when their time is over, until cancelled."""
        while True:
            before, changed = self.banned, self._changed
            release = next_release(self._standings, trio.current_time())
            await self._save()
            with trio.move_on_at(float("inf") if release is None else release + _A_MOMENT):
                await changed.wait()
            for peer in before - self.banned:
                logger.info("%s may come in again", peer_id_text(peer))
            if before - self.banned:
                self._close_doors()

    async def _save(self) -> None:
        forget_before = Millis(max(0, self._clock() - round(1000 * LONGEST_BAN)))
        writes = [SaveBan(ban, forget_before) for ban in self._unsaved.values()]
        self._unsaved = {}
        try:
            await self._disk.commit(*writes)
        except StorageError as error:  # they hold until this node ends
            logger.warning("%d bans will not outlive this node: %s", len(writes), error)

    def _close_doors(self) -> None:
        self._network.deny(self._denied | self.banned)
        self._changed.set()
        self._changed = trio.Event()
