"""How much of a node one peer may take up: what it sends is worked off piece by piece, with pauses in between.

A node runs on one core, and its tasks take turns: whoever sends without end would have every second turn, and an answer
takes dozens. What has not been read yet waits with its sender, whose window is full.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

_REST: Final = 4.0
"""Seconds of pause for each second of work: only the checking is measured, and twice as much follows from it."""
_OWED: Final = 0.001
"""Seconds of pause that may add up before they are taken: shorter ones cannot be slept."""
_LULL: Final = 0.1
"""Seconds without work after which no pause is owed."""
_LONGEST: Final = 0.25
"""Seconds of a pause, however long one piece of work took: it may be that the machine was busy."""


class Pace:
    """The work that one peer makes here, and the pauses it owes for it, until it is silent for a while."""

    def __init__(self) -> None:
        self._owed = 0.0
        self._since = trio.current_time()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Measure a piece of work that has no pause in it."""
        began = time.perf_counter()
        try:
            yield
        finally:
            now = trio.current_time()
            if now - self._since > _LULL:
                self._owed = 0.0
            self._owed += _REST * (time.perf_counter() - began)
            self._since = now

    async def rest(self) -> None:
        """Let others run: for as long as is owed, once that is worth a pause."""
        if self._owed > _OWED:
            pause, self._owed = min(self._owed, _LONGEST), 0.0
            await trio.sleep(pause)
            self._since = trio.current_time()
        else:
            await trio.lowlevel.checkpoint()


class Allowance:
    """So many of something at once, and so many more each second.

    Args:
        most: At once, after a while without any.
        each_second: That come back.
    """

    def __init__(self, most: float, each_second: float) -> None:
        self._most = most
        self._each_second = each_second
        self._left = most
        self._since = trio.current_time()

    def take(self, wanted: int) -> bool:
        """Take some if there are as many."""
        now = trio.current_time()
        self._left = min(self._most, self._left + (now - self._since) * self._each_second)
        self._since = now
        if wanted > self._left:
            return False
        self._left -= wanted
        return True
