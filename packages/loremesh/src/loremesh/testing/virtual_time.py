"""Time that jumps: hours of a story in seconds of a test."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio
import trio._core._run as trio_run
from trio.abc import Clock as TrioClock
from trio.abc import Instrument
from trio.testing import MockClock

from loremesh.primitives import Millis
from loremesh.services.happenings import Clock
from loremesh.testing.builders import START

T = TypeVar("T")
_DAY: Final = 86_400.0


def run_jumping(
    main: Callable[[], Awaitable[T]],
    clock: TrioClock | None = None,
    instruments: Sequence[Instrument] = (),
    *,
    seed: int = 0,
) -> T:
    """Run `main` under a clock that jumps to the next deadline whenever all tasks wait; every run is the same run.

    Tasks that wait for each other without an end fail at once, for nothing else keeps the clock from jumping a day.

    Args:
        main: What to run.
        clock: Another clock than one that starts at 0.
        instruments: As trio has them.
        seed: Another seed, another order of tasks that could run at the same time.

    Raises:
        trio.TooSlowError: After a day of virtual time.
    """
    # Trio shuffles such tasks on purpose. Its own switch, made for Hypothesis, lets the shuffle come from a seed.
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()  # noqa: SLF001 - no public way
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # noqa: SLF001 - declared final upstream
    trio_run._r.seed(seed)  # noqa: SLF001 - as above
    try:
        return trio.run(_within_a_day, main, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]  # noqa: SLF001 - as above
        trio_run._r.setstate(before[1])  # noqa: SLF001 - as above


async def _within_a_day(main: Callable[[], Awaitable[T]]) -> T:
    with trio.fail_after(_DAY):
        return await main()


def virtual_clock(start: int = START) -> Clock:
    """Give a wall clock that shows `start` (Unix ms) when trio's shows 0, and jumps with it."""
    return lambda: Millis(start + int(trio.current_time() * 1000 + 1e-3))
