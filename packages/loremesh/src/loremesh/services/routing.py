"""Which executor to ask: what calls have shown of each, and the order that follows from it. Pure.

An executor is worth what it surely is, not what it might be: the lower bound of its share of calls that went well,
times how soon it answers, how cheap it is and how much room it has. Whoever failed rests for a while, longer each time.

Source: docs/routing.md; Wilson, Probable Inference, JASA 1927.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loremesh.primitives import PeerId
from loremesh.protocol.cards import CapabilityCard, ModelOffer
from loremesh.protocol.identity import peer_id_text

EXPLORE: Final = 0.1
"""Share of calls that go to an executor nobody here has asked yet, while others have proved themselves."""
FIRST_REST: Final = 1.0
LONGEST_REST: Final = 300.0
"""Seconds that an executor is left alone after failures in a row: the first rest, doubled each time up to this."""
_SURE: Final = 1.0
"""Standard deviations of the lower bound: about five in six."""
_NEWEST_COUNTS: Final = 0.2
_MEMORY: Final = 200.0
"""Calls after which old ones are forgotten by half: an executor that was mended is found out."""
_FAULT_WEIGHT: Final = 5
"""Failures that a lie counts for."""
_USUAL_BYTES: Final = 1000
"""Of an answer: for comparing a quick start with a quick rate."""
_NO_MATTER_SECONDS: Final = 0.25
_NO_MATTER_PRICE: Final = 100
_LEAST: Final = 1e-9
_FULL: Final = 0.1
"""What is left of the score of an executor whose slots are all taken: one may fall free."""


@dataclass(frozen=True, slots=True)
class Track:
    """What calls have shown of one executor. Seconds are of one clock that only runs forward."""

    successes: float = 0
    failures: float = 0
    first: float | None = None
    """Seconds to the first piece, newest calls counting most; None: there was none yet."""
    rate: float | None = None
    """Bytes of UTF-8 a second after that."""
    in_a_row: int = 0
    """Failures since the last success."""
    rests_until: float = 0
    """After a failure: before, it is asked only if nobody else can be."""
    reason: str = ""
    """Why it rests."""
    busy_until: float = 0
    """It has asked us to wait: before, it is not asked."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What an executor must offer to be asked."""

    model: str
    max_price: int
    """Gwei per 1,000 tokens."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One executor that might serve a call."""

    executor: PeerId
    score: float
    """0: it is not asked."""
    why: str
    busy: float = 0
    """Seconds for which it has asked us to wait, where that is why it is not asked."""

    def __str__(self) -> str:
        verdict = f"score {self.score:.2f}" if self.score else "not asked"
        return f"{short_name(self.executor)}: {verdict}: {self.why}"


def short_name(executor: PeerId) -> str:
    """Give the end of a peer id: its beginning is the same for all."""
    return "…" + peer_id_text(executor)[-8:]


# ---- What a call shows ----------------------------------------------------------------------------------------------


def on_success(track: Track, first: float, rate: float | None) -> Track:
    """Take in a call that went well.

    Args:
        track: Before it.
        first: Seconds to the first piece.
        rate: Bytes a second after that; None where the answer was one piece.
    """
    older = _aged(track)
    return replace(
        older,
        successes=older.successes + 1,
        first=_blend(track.first, first),
        rate=track.rate if rate is None else _blend(track.rate, rate),
        in_a_row=0,
        rests_until=0,
        reason="",
        busy_until=0,
    )


def on_failure(track: Track, now: float, reason: str, weight: int = 1) -> Track:
    """Take in a call that failed: the executor rests, each time twice as long."""
    older = _aged(track)
    in_a_row = track.in_a_row + weight
    rest = min(FIRST_REST * 2.0 ** min(in_a_row - 1, 32), LONGEST_REST)
    return replace(older, failures=older.failures + weight, in_a_row=in_a_row, rests_until=now + rest, reason=reason)


def on_fault(track: Track, now: float, reason: str) -> Track:
    """Take in that an executor broke a rule, or counted wrongly."""
    return on_failure(track, now, reason, _FAULT_WEIGHT)


def on_busy(track: Track, now: float, retry_after: float) -> Track:
    """Take in that an executor asks us to wait, which is no failure."""
    return replace(track, busy_until=max(track.busy_until, now + min(max(retry_after, 0.0), LONGEST_REST)))


def _aged(track: Track) -> Track:
    keep = 1 - 1 / _MEMORY if track.successes + track.failures > _MEMORY / 2 else 1.0
    return replace(track, successes=track.successes * keep, failures=track.failures * keep)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _NEWEST_COUNTS * (new - old)


# ---- The order ------------------------------------------------------------------------------------------------------


def lower_bound(successes: float, failures: float) -> float:
    """Give the share of successes that is surely reached: Wilson's lower bound; 0 where nothing is known."""
    n = successes + failures
    if not n:
        return 0.0
    share, z2 = successes / n, _SURE * _SURE
    spread = _SURE * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, (share + z2 / (2 * n) - spread) / (1 + z2 / n))


def rank(
    cards: Sequence[CapabilityCard],
    tracks: Mapping[PeerId, Track],
    wish: Wish,
    now: float,
    draws: Sequence[float],
) -> list[Choice]:
    """Put executors in the order in which they are asked, best first; those that are not come last, with why.

    Args:
        cards: Fresh ones, one for each executor.
        tracks: What is known of them.
        wish: What is to be asked.
        now: Seconds of the tracks' clock.
        draws: Random numbers in [0, 1), one for each card and one more: strangers take their turns by them.
    """
    offers = {card.peer_id: offer for card in cards for offer in card.models if offer.id == wish.model}
    known = {card.peer_id: tracks.get(card.peer_id, Track()) for card in cards}
    usable, unusable = list[CapabilityCard](), list[Choice]()
    for card in cards:
        reason = _obstacle(card, offers.get(card.peer_id), known[card.peer_id], wish, now)
        if reason is None:
            usable.append(card)
        else:
            unusable.append(reason)
    cheapest = min((offers[card.peer_id].price for card in usable), default=0)
    times = sorted(time for card in usable if (time := _expected(known[card.peer_id])) is not None) or [0.0]
    ordered = list[tuple[tuple[bool, float], Choice]]()
    for card, draw in zip(usable, draws, strict=False):
        track, offer = known[card.peer_id], offers[card.peer_id]
        is_stranger = not track.successes and not track.failures
        # A stranger is taken for somebody with one success: less than whoever has proved itself.
        success = lower_bound(1, 0) if is_stranger else lower_bound(track.successes, track.failures)
        expected = _expected(track)
        seconds = times[len(times) // 2] if expected is None else expected
        speed = (times[0] + _NO_MATTER_SECONDS) / (seconds + _NO_MATTER_SECONDS)
        price = (cheapest + _NO_MATTER_PRICE) / (offer.price + _NO_MATTER_PRICE)
        room = max(1 - card.running / card.slots, _FULL)
        score = max(success * speed * price * room, _LEAST)
        turn = score * (1 - draw / 2) if is_stranger else score
        goes_first = is_stranger and draws[-1] < EXPLORE
        rests = max(track.rests_until - now, 0.0)
        why = _described(card, offer, track) + (f", rests for {rests:.1f} s more: {track.reason}" if rests else "")
        place = (not rests, 1 + turn if goes_first else turn - rests)
        ordered.append((place, Choice(card.peer_id, score, why)))
    ordered.sort(key=lambda one: one[0], reverse=True)
    return [*(choice for _, choice in ordered), *unusable]


def _expected(track: Track) -> float | None:
    """Tell how many seconds a usual answer takes; None where nothing is known."""
    if track.first is None:
        return None
    return track.first + (_USUAL_BYTES / max(track.rate, 1.0) if track.rate is not None else 0.0)


def _described(card: CapabilityCard, offer: ModelOffer, track: Track) -> str:
    calls = track.successes + track.failures
    facts = [f"{track.successes:.0f} of {calls:.0f} calls went well" if calls else "not asked before"]
    if track.first is not None:
        facts.append(f"first piece after {track.first:.2f} s")
    if track.rate is not None:
        facts.append(f"{track.rate:.0f} bytes/s")
    facts += [f"{offer.price} gwei per 1,000 tokens", f"{card.running} of {card.slots} slots taken"]
    return ", ".join(facts)


def _obstacle(card: CapabilityCard, offer: ModelOffer | None, track: Track, wish: Wish, now: float) -> Choice | None:
    busy = max(track.busy_until - now, 0.0)
    if offer is None:
        why, busy = f"does not serve {wish.model}", 0.0
    elif offer.price > wish.max_price:
        why, busy = f"asks {offer.price} gwei per 1,000 tokens, above {wish.max_price}", 0.0
    elif not card.slots:
        why, busy = "takes no calls", 0.0
    elif busy:
        why = f"busy for {busy:.1f} s more, as it says"
    else:
        return None
    return Choice(card.peer_id, 0, why, busy)
