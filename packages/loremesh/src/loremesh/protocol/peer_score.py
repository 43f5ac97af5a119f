"""What breaking a rule costs a peer, and for how long one that breaks too many is kept out.

Every node keeps scores of its own and acts on them alone: nothing here is agreed on, or told to others. A score begins
at 0, every fault lowers it, and time heals it. At `WORST_SCORE` the peer is kept out for a while, each time for longer.

What can happen to an honest peer costs nothing: to be early, to know a block whose parent we lack, to send what another
block has overtaken, to refuse a request. Nor do failures of the world, which are no `ProtocolError` at all.

Source: docs/threat-model.md; the decay and the thresholds after gossipsub v1.1's peer scores.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from loremesh.errors import Fault, InvalidBlock, InvalidTransaction, ProtocolError, RequestRefused
from loremesh.primitives import PeerId
from loremesh.protocol.persistent import Map

WORST_SCORE: Final = -100.0
HALF_LIFE: Final = 600.0
"""Seconds in which half of what a peer has lost comes back."""
FIRST_BAN: Final = 600.0
LONGEST_BAN: Final = 86_400.0
MAX_PEERS: Final = 1024
"""Peers whose scores are kept; who has lost least makes room."""
_FORGOTTEN: Final = -0.5

FREE: Final = 0
SLIP: Final = 2
"""A crash, or another version, can look like this."""
FOUL: Final = 10
"""A broken rule: nobody who runs our programs breaks one."""
LIE: Final = 25
"""A claim to be somebody else, or something else than was asked for."""

COSTS: Final[dict[Fault, int]] = {
    **dict.fromkeys(Fault, FOUL),
    # Known too late, or too often: a block came first, or two peers had the same wish.
    Fault.DUPLICATE: FREE,
    Fault.QUOTA: FREE,
    # Of the parent's sender we know already.
    Fault.PARENT_REFUSED: FREE,
    Fault.UNFINISHED: SLIP,
    Fault.TOO_SLOW: SLIP,
    Fault.UNEXPECTED: SLIP,
    Fault.UNKNOWN_TYPE: SLIP,
    Fault.UNKNOWN_VERSION: SLIP,
    # Clocks differ, and a message may be long on its way.
    Fault.EXPIRED: FREE,
    Fault.FROM_THE_FUTURE: FREE,
    Fault.REPLAYED: SLIP,
    Fault.WRONG_RECEIPT: LIE,
    Fault.WRONG_VOUCHER: LIE,
    Fault.BAD_SIGNATURE: LIE,
    Fault.WRONG_SENDER: LIE,
    Fault.NOT_AS_ASKED: LIE,
    Fault.NOT_THE_TRACKER: LIE,
}
"""What each fault costs whoever answers for it."""

_OVERTAKEN: Final = frozenset({Fault.WRONG_NONCE, Fault.UNKNOWN_SUGGESTION})
"""Of a transaction these say only that a block was faster."""

SIGNERS_OWN: Final = frozenset({Fault.EQUIVOCATION, Fault.NOT_THE_TRACKER})
"""Faults that show only to those who know certain blocks: their signer answers for them, and no forwarder."""


class Standing(NamedTuple):
    """What is kept of one peer. Times are seconds of a clock that only runs forward."""

    score: float
    """As it was at `at`; 0 or less."""
    at: float
    bans: int = 0
    """One after the other; after a long good time they begin anew."""
    banned_until: float = 0.0


def cost(error: ProtocolError) -> int:
    """Tell what an error costs whoever answers for it."""
    if isinstance(error, RequestRefused):
        return FREE
    if isinstance(error, InvalidTransaction) and error.fault in _OVERTAKEN:
        return FREE
    if isinstance(error, InvalidBlock) and error.fault is not Fault.PARENT_REFUSED:
        return max(FOUL, COSTS[error.fault])
    return COSTS[error.fault]


def score(standings: Map[PeerId, Standing], peer: PeerId, now: float) -> float:
    """Tell a peer's score: 0 for a stranger, less for whoever broke a rule lately."""
    standing = standings.get(peer)
    return 0.0 if standing is None else _healed(standing, now)


def is_banned(standings: Map[PeerId, Standing], peer: PeerId, now: float) -> bool:
    """Tell whether a peer is kept out."""
    standing = standings.get(peer)
    return standing is not None and now < standing.banned_until


def banned(standings: Map[PeerId, Standing], now: float) -> frozenset[PeerId]:
    """Name the peers that are kept out."""
    return frozenset(peer for peer, standing in standings.items() if now < standing.banned_until)


def next_release(standings: Map[PeerId, Standing], now: float) -> float | None:
    """Tell when the next ban ends; None when nobody is kept out."""
    return min((one.banned_until for one in standings.values() if now < one.banned_until), default=None)


def on_fault(standings: Map[PeerId, Standing], peer: PeerId, points: int, now: float) -> Map[PeerId, Standing]:
    """Lower a peer's score, and keep it out once that has fallen to the worst.

    Whoever is kept out already loses nothing more: what still comes of it was sent before.

    Args:
        standings: Of everybody.
        peer: Who answers for the fault.
        points: Its cost.
        now: Seconds of a clock that only runs forward.
    """
    before = standings.get(peer) or Standing(0.0, now)
    if not points or now < before.banned_until:
        return standings
    fallen = _healed(before, now) - points
    if fallen > WORST_SCORE:
        after = before._replace(score=fallen, at=now)
    else:
        is_lately = before.bans > 0 and now - before.banned_until < LONGEST_BAN
        bans = before.bans + 1 if is_lately else 1
        after = Standing(0.0, now, bans, now + ban_time(bans))
    return _with_room(standings.insert(peer, after), peer, now)


def with_ban(
    standings: Map[PeerId, Standing], peer: PeerId, number: int, until: float, now: float
) -> Map[PeerId, Standing]:
    """Keep a peer out that was kept out before a restart.

    Args:
        standings: Of everybody.
        peer: Whom.
        number: The how-manieth ban in a row it is.
        until: When it ends, or has ended: the next one is longer for it. Never further away than the longest.
        now: Seconds of the same clock.
    """
    return _with_room(standings.insert(peer, Standing(0.0, now, number, min(until, now + LONGEST_BAN))), peer, now)


def ban_time(bans: int) -> float:
    """Tell how many seconds the `bans`-th ban in a row lasts: twice the last one, within a day."""
    return min(LONGEST_BAN, math.ldexp(FIRST_BAN, min(bans - 1, 32)))


def _healed(standing: Standing, now: float) -> float:
    healed = standing.score * math.exp2(-max(0.0, now - standing.at) / HALF_LIFE)
    return healed if healed < _FORGOTTEN else 0.0


def _with_room(standings: Map[PeerId, Standing], newest: PeerId, now: float) -> Map[PeerId, Standing]:
    """Let whoever has lost least go when there are too many; of the banned, whoever is free first."""
    if len(standings) <= MAX_PEERS:
        return standings

    def weight(peer: PeerId) -> tuple[float, int, float]:
        standing = standings[peer]
        return max(now, standing.banned_until), standing.bans, -_healed(standing, now)

    return standings.remove(min((peer for peer in standings if peer != newest), key=weight))
