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


class EagerLock:
    """A lock that costs no pause while it is free: trio's own lets every other task run first, each time.

    Whoever holds it in a loop must pause somewhere else.
    """

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
