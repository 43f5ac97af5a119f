"""How a benchmark measures: rounds in ABAB order, a calibration before each, spreads and ratios.

A ratio is the median of the ratios of single rounds, never a quotient of figures from different minutes: the machine
may be shared. A round whose calibration (SHA-256 of 1 MB) is off by more than 15 % is thrown away and done again.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

Samples = Sequence[float]
"""Seconds per operation, one figure for each time it was done."""
Side = Callable[[], Samples]
"""One round of what is measured."""

ROUNDS: Final = 21
TOLERANCE: Final = 0.15
MOST_ATTEMPTS: Final = 4
"""A bench stops looking for quiet rounds after this many times the rounds it wants."""


class BenchError(Exception):
    """A bench cannot be run here; the message says what is missing, in one line."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of one side over all its rounds, in the row's unit."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be: `at_least` or `at_most` something."""

    sign: str
    value: float

    def is_met(self, figure: float) -> bool:
        """Tell whether `figure` is good enough."""
        return figure >= self.value if self.sign == "≥" else figure <= self.value


def at_least(value: float) -> Goal:
    """Give the goal of this much or more."""
    return Goal("≥", value)


def at_most(value: float) -> Goal:
    """Give the goal of this much or less."""
    return Goal("≤", value)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure with all that is needed to judge it."""

    what: str
    unit: str
    ours: Spread
    peer_name: str | None = None
    peer: Spread | None = None
    ratio: float | None = None
    goal: Goal | None = None
    """Of the ratio; of the median where there is no peer."""
    rounds: int = 1
    discarded: int = 0
    note: str = ""

    @property
    def verdict(self) -> str:
        """`ok`, `short` of the goal, or nothing where there is none."""
        if self.goal is None:
            return ""
        return "ok" if self.goal.is_met(self.ours.p50 if self.ratio is None else self.ratio) else "short"


_SCALES: Final = {"µs": 1e6, "ms": 1e3, "s": 1.0, "%": 1.0, "MiB": 1.0}


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody to be measured against, and the goal of that ratio."""

    name: str
    side: Side
    goal: Goal | None = None


def compare(
    what: str,
    unit: str,
    ours: Side,
    *,
    against: str,
    peer: Side,
    goal: Goal | None,
    rounds: int = ROUNDS,
    note: str = "",
) -> Row:
    """Measure two sides in turn.

    The ratio is the peer's time over ours for an `at_least` goal (we keep at least this share of its speed), and our
    time over the peer's otherwise.

    Args:
        what: The operation, for people.
        unit: In which the times are shown.
        ours: One round of ours.
        against: What we are measured against.
        peer: One round of it.
        goal: Of the ratio.
        rounds: Quiet rounds wanted.
        note: What a reader should know beside the figures.
    """
    ours(), peer()  # warm
    [row] = compare_all(what, unit, ours, [Peer(against, peer, goal)], rounds=rounds, note=note)
    return row


def compare_all(
    what: str,
    unit: str,
    ours: Side,
    peers: Sequence[Peer],
    *,
    rounds: int = ROUNDS,
    attempts: int = MOST_ATTEMPTS,
    note: str = "",
) -> list[Row]:
    """Measure any number of warm sides in turn, A B C A B C; give a row for each peer, as `compare` does.

    Args:
        what: As in `compare`.
        unit: As in `compare`.
        ours: As in `compare`.
        peers: All that we are measured against.
        rounds: Quiet rounds wanted.
        attempts: How many times as many rounds to do at most; 1 takes them as they come.
        note: As in `compare`.
    """
    kept, discarded = _quiet_rounds(lambda: (ours(), [peer.side() for peer in peers]), rounds, attempts)
    mine = [samples for samples, _ in kept]
    rows = []
    for place, peer in enumerate(peers):
        theirs = [samples[place] for _, samples in kept]
        inverse = peer.goal is not None and peer.goal.sign == "≥"
        ratios = [_ratio(one, other, inverse=inverse) for one, other in zip(mine, theirs, strict=True)]
        rows.append(
            Row(
                what,
                unit,
                spread([sample for samples in mine for sample in samples], unit),
                peer.name,
                spread([sample for samples in theirs for sample in samples], unit),
                statistics.median(ratios),
                peer.goal,
                len(kept),
                discarded,
                note,
            )
        )
    return rows


def measure(what: str, unit: str, side: Side, goal: Goal | None, *, rounds: int = ROUNDS, note: str = "") -> Row:
    """Measure one side by itself, against an absolute goal for its median."""
    side()  # warm
    kept, discarded = _quiet_rounds(side, rounds)
    samples = [sample for one in kept for sample in one]
    return Row(what, unit, spread(samples, unit), goal=goal, rounds=len(kept), discarded=discarded, note=note)


def timed(operation: Callable[[T], object], items: Iterable[T], batch: int = 1) -> list[float]:
    """Time an operation on each item; on `batch` items at once where one is too short for the clock."""
    samples = []
    items = list(items)
    clock = time.perf_counter
    for start in range(0, len(items), batch):
        several = items[start : start + batch]
        before = clock()
        for item in several:
            operation(item)
        samples.append((clock() - before) / len(several))
    return samples


def spread(samples: Samples, unit: str) -> Spread:
    """Give the percentiles of some samples in seconds (or already in the unit, for what is no time)."""
    scale, ordered = _SCALES[unit], sorted(samples)

    def percentile(share: float) -> float:
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] * scale

    return Spread(percentile(0.5), percentile(0.95), percentile(0.99))


def _ratio(mine: Samples, theirs: Samples, *, inverse: bool) -> float:
    ratio = statistics.median(mine) / statistics.median(theirs)
    return 1 / ratio if inverse else ratio


def _quiet_rounds(one_round: Callable[[], T], wanted: int, attempts: int = MOST_ATTEMPTS) -> tuple[list[T], int]:
    """Do rounds until `wanted` were quiet; after too many attempts the least disturbed ones must do."""
    usual = statistics.median(_calibration() for _ in range(15))
    done: list[tuple[float, T]] = []
    quiet = 0
    while quiet < wanted and len(done) < attempts * wanted:
        before = _calibration()
        result = one_round()
        off = max(abs(taken / usual - 1) for taken in (before, _calibration()))
        quiet += off <= TOLERANCE
        done.append((off, result))
    done.sort(key=lambda entry: entry[0])
    return [result for _, result in done[:wanted]], len(done) - quiet


_MEGABYTE: Final = bytes(1_000_000)


def _calibration() -> float:
    """Time a loop that has nothing to do with us; the better of two, to forgive a single interruption."""
    return min(timed(lambda data: hashlib.sha256(data).digest(), [_MEGABYTE, _MEGABYTE]))
