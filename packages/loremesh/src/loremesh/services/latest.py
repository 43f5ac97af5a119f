"""A slot that keeps only the newest value: a slow watcher never holds its owner up, and never sees stale news."""

from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Latest(Generic[T]):
    """One writer sets, any number of watchers look or wait for a change."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._changed = trio.Event()

    @property
    def value(self) -> T:
        """The newest value."""
        return self._value

    def set(self, value: T) -> None:
        """Put a new value in place and wake whoever waits."""
        self._value = value
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self) -> T:
        """Wait for the next `set`; give the newest value by then."""
        await self._changed.wait()
        return self._value
