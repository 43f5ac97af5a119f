"""Counting tokens beside everything else: short texts where one stands, long ones in a thread, few at a time."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from loremesh.primitives import KIB
from loremesh.protocol.metering import Count

T = TypeVar("T")

_SHORT: Final = 4 * KIB
"""Characters that are counted in milliseconds, whatever they are."""
_AT_ONCE: Final = 2
"""A text in a thread takes several times its own size while it is counted."""


class Counting:
    """Counts for everybody in one process.

    Args:
        count: Counts; None: by `o200k_base`, which is loaded when it is first needed.
        short: Most characters that are counted without a thread.
    """

    def __init__(self, count: Count | None = None, short: int = _SHORT) -> None:
        self._count = count
        self._short = short
        self._loading = trio.Lock()
        self._threads = trio.CapacityLimiter(_AT_ONCE)

    async def run(self, work: Callable[[Count], T], size: int) -> T:
        """Do work that counts about `size` characters.

        Raises:
            MachineError: The vocabulary is missing or damaged.
        """
        count = await self._counter()
        if size <= self._short:
            await trio.lowlevel.checkpoint()
            return work(count)
        return await trio.to_thread.run_sync(work, count, limiter=self._threads)

    async def _counter(self) -> Count:
        if self._count is None:
            async with self._loading:
                if self._count is None:
                    from loremesh.backends.tokens import load_counter  # noqa: PLC0415 - who never counts needs none

                    self._count = await trio.to_thread.run_sync(load_counter)
        return self._count
