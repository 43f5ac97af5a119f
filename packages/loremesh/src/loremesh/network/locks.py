"""One lock for each key, kept only while somebody holds or wants it."""

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)


class KeyedLocks(Generic[Key]):
    """Lets one task at a time deal with each key."""

    def __init__(self) -> None:
        self._locks: dict[Key, trio.Lock] = {}

    @asynccontextmanager
    async def of(self, key: Key) -> AsyncIterator[None]:
        """Hold the lock of a key for as long as the block lasts."""
        lock = self._locks.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._locks.pop(key, None)
