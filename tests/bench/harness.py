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
    kept, discarded = _quiet_rounds(lambda: (ours(), peer()), rounds)
    inverse = goal is not None and goal.sign == "≥"
    ratios = [_ratio(mine, theirs, inverse=inverse) for mine, theirs in kept]
    return Row(
        what,
        unit,
        spread([sample for mine, _ in kept for sample in mine], unit),
        against,
        spread([sample for _, theirs in kept for sample in theirs], unit),
        statistics.median(ratios),
        goal,
        len(kept),
        discarded,
        note,
    )


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


def _quiet_rounds(one_round: Callable[[], T], wanted: int) -> tuple[list[T], int]:
    """Do rounds until `wanted` were quiet; after too many attempts the least disturbed ones must do."""
    usual = statistics.median(_calibration() for _ in range(15))
    done: list[tuple[float, T]] = []
    quiet = 0
    while quiet < wanted and len(done) < MOST_ATTEMPTS * wanted:
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
