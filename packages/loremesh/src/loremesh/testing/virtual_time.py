"""Time that jumps: hours of a story in seconds of a test."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
from trio.abc import Clock as TrioClock
from trio.abc import Instrument
from trio.testing import MockClock

from loremesh.primitives import Millis
from loremesh.services.happenings import Clock
from loremesh.testing.builders import START

T = TypeVar("T")


def run_jumping(
    main: Callable[[], Awaitable[T]], clock: TrioClock | None = None, instruments: Sequence[Instrument] = ()
) -> T:
    """Run `main` under a clock that jumps to the next deadline whenever all tasks wait."""
    return trio.run(main, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)


def virtual_clock(start: int = START) -> Clock:
    """Give a wall clock that shows `start` (Unix ms) when trio's shows 0, and jumps with it."""
    return lambda: Millis(start + int(trio.current_time() * 1000 + 1e-3))
