"""Slots: how many calls a backend answers at once, and whose turn it is.

The node's own mining goes first: it takes the next slot that falls free. A client never waits in a queue; where there
is no room it is told when there should be.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from loremesh.backends.base import Backend, Draft
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import BackendBusy
from loremesh.primitives import PeerId

MINUTE: Final = 60.0
SOONEST: Final = 0.1
"""Least seconds that anybody is asked to wait."""
LATEST: Final = 60.0
"""Most seconds that we dare to foretell."""
_FIRST_GUESS: Final = 5.0
_NEWEST_COUNTS: Final = 0.2
_OVERDUE: Final = 0.25


def wait_for_slot(started: Iterable[float], usual: float, ahead: int, now: float) -> float:
    """Estimate in how many seconds a slot falls free for somebody.

    Args:
        started: When each call that runs began, in seconds of the clock of `now`.
        usual: Seconds that a call takes.
        ahead: How many others get a slot before.
        now: The clock.
    """
    # A call that takes longer than usual is a long one: it may take a while yet.
    left = sorted(max(start + usual - now, usual * _OVERDUE) for start in started)
    if not left:
        return SOONEST
    rounds, place = divmod(ahead, len(left))
    return min(max(left[place] + rounds * usual, SOONEST), LATEST)


class PerMinute:
    """Counts what each peer did in the last minute; it holds no more than all of them did in it.

    Args:
        limit: Most of it that one peer may do; None: any number.
        now: Seconds of a clock that only runs forward.
    """

    def __init__(self, limit: int | None, now: Callable[[], float] = trio.current_time) -> None:
        self._limit = limit
        self._now = now
        self._all = deque[tuple[float, PeerId]]()
        self._of: dict[PeerId, deque[float]] = {}

    def wait(self, peer: PeerId) -> float:
        """Tell in how many seconds a peer may do it once more; 0: now."""
        limit = self._limit
        if limit is None or self.count(peer) < limit:
            return 0.0
        return self._of[peer][-limit] + MINUTE - self._now()

    def count(self, peer: PeerId) -> int:
        """Tell how often a peer did it in the last minute."""
        now = self._now()
        while self._all and self._all[0][0] <= now - MINUTE:
            _, forgotten = self._all.popleft()
            self._of[forgotten].popleft()
            if not self._of[forgotten]:
                del self._of[forgotten]
        return len(self._of.get(peer, ()))

    def note(self, peer: PeerId) -> None:
        """Take in that a peer did it."""
        if self._limit is not None:
            self._all.append((self._now(), peer))
            self._of.setdefault(peer, deque()).append(self._now())


class Slots:
    """The slots of one backend.

    Args:
        size: Most calls at once.
        requests_per_minute: Most calls of one client in a minute; None: any number.
        per_client: Most calls of one client at once; None: any number.
        now: Seconds of a clock that only runs forward.
    """

    def __init__(
        self,
        size: int,
        *,
        requests_per_minute: int | None = None,
        per_client: int | None = None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.size = size
        self._per_client = per_client
        self._rate = PerMinute(requests_per_minute, now)
        self._now = now
        self._running: dict[object, tuple[float, PeerId | None]] = {}
        self._miners = 0
        self._freed = trio.Event()
        self._usual = _FIRST_GUESS
        self._closed_until = 0.0

    @property
    def running(self) -> int:
        """Calls now, mining among them."""
        return len(self._running)

    @contextmanager
    def client(self, peer: PeerId) -> Iterator[None]:
        """Hold a slot for a client's call.

        Raises:
            BackendBusy: There is none for it now; with the seconds after which there should be.
        """
        now = self._now()
        if now < self._closed_until:
            raise BackendBusy("the model is busy elsewhere", max(SOONEST, self._closed_until - now))
        if self.running + self._miners >= self.size:
            started = [start for start, _ in self._running.values()]
            raise BackendBusy("every slot is taken", wait_for_slot(started, self._usual, self._miners, now))
        own = [start for start, holder in self._running.values() if holder == peer]
        if self._per_client is not None and len(own) >= self._per_client:
            reason = f"one client may make {self._per_client} calls at once"
            raise BackendBusy(reason, wait_for_slot(own, self._usual, 0, now))
        if (wait := self._rate.wait(peer)) > 0:
            raise BackendBusy("that were many calls in one minute", max(SOONEST, wait))
        self._rate.note(peer)
        with self._held(peer):
            yield

    @asynccontextmanager
    async def mining(self) -> AsyncIterator[None]:
        """Wait for the next slot that falls free, and hold it for the node's own paragraph."""
        self._miners += 1
        try:
            await trio.lowlevel.checkpoint()
            while self.running >= self.size:
                await self._freed.wait()
        finally:
            self._miners -= 1
        with self._held(None):
            yield

    def close_for(self, seconds: float) -> None:
        """Send clients away for a while: the backend has asked us to wait."""
        self._closed_until = max(self._closed_until, self._now() + min(seconds, LATEST))

    @contextmanager
    def _held(self, holder: PeerId | None) -> Iterator[None]:
        name, started = object(), self._now()
        self._running[name] = started, holder
        try:
            yield
        finally:
            del self._running[name]
            self._usual += _NEWEST_COUNTS * (self._now() - started - self._usual)
            self._freed.set()
            self._freed = trio.Event()


class MiningFirst:
    """A miner's backend that holds a slot while it writes.

    Args:
        backend: Writes; stays its owner's to close.
        slots: Of what is behind it.
    """

    def __init__(self, backend: Backend, slots: Slots) -> None:
        self.model = backend.model
        self._backend = backend
        self._slots = slots

    async def write(self, request: ParagraphRequest) -> Draft:
        """Write once a slot is free.

        Raises:
            BackendError: As the backend.
        """
        async with self._slots.mining():
            return await self._backend.write(request)

    async def aclose(self) -> None:
        """Nothing is held."""
        await trio.lowlevel.checkpoint()
