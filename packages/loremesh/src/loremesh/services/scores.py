"""The score service: who broke which rule, and who is kept out for it.

The rules are in `protocol/peer_score.py`; here they get a clock, the network's door and somebody to tell. Who the
operator denies and who is kept out for its faults are one list at the network's door.

Source: docs/threat-model.md.
"""

import logging
from typing import Final, Protocol

import trio

from loremesh.errors import ProtocolError, RequestRefused
from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.peer_score import (
    Standing,
    ban_time,
    banned,
    cost,
    is_banned,
    next_release,
    on_fault,
    score,
)
from loremesh.protocol.persistent import Map
from loremesh.services.happenings import Banned, Rejected, Tell

logger = logging.getLogger("loremesh.scores")

_A_MOMENT: Final = 0.01
"""Seconds added to a wait, so that it never ends just before what it waits for."""


class Network(Protocol):
    """What scoring needs of the network."""

    def deny(self, peers: frozenset[PeerId]) -> None:
        """Let nobody of these in; replaces the list before."""


class ScoreService:
    """Sole owner of the peers' scores and of the list of who is not let in.

    Args:
        me: Ourselves, who are never kept out.
        network: Keeps peers out.
        tell: Hears of every refusal and of every ban.
    """

    def __init__(self, me: PeerId, network: Network, tell: Tell) -> None:
        self._me = me
        self._network = network
        self._tell = tell
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
            self._close_doors()

    async def run(self) -> None:
        """Let peers in again when their time is over, until cancelled."""
        while True:
            before = self.banned
            release = next_release(self._standings, trio.current_time())
            changed = self._changed
            with trio.move_on_at(float("inf") if release is None else release + _A_MOMENT):
                await changed.wait()
            for peer in before - self.banned:
                logger.info("%s may come in again", peer_id_text(peer))
            if before - self.banned:
                self._close_doors()

    def _close_doors(self) -> None:
        self._network.deny(self._denied | self.banned)
        self._changed.set()
        self._changed = trio.Event()
