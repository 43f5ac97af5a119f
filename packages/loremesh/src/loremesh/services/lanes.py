"""Lanes: streams to executors that are kept open from call to call, each with a session of its own.

Source: docs/protocol/llm.md, "A call".
"""

import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import ExecutorBusy
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.llm import LLM_PROTOCOL
from loremesh.protocol.vouchers import SignedVoucher

logger = logging.getLogger("loremesh.calls")

MOST_LANES: Final = 32
"""To one executor."""
LOOK_FOR_ROOM: Final = 0.5
"""Seconds after which one call more than an executor had room for is tried; then two more, then four."""
IDLE: Final = 60.0
"""Seconds without a call after which a lane is closed: well before its executor would."""
_LOOK: Final = 5.0
_OPEN: Final = 5.0


class Network(Protocol):
    """What lanes need of the network."""

    def open(self, peer_id: PeerId, protocol: str, timeout: float = 5) -> AbstractAsyncContextManager[Stream]:
        """Open a stream to a connected peer."""


@dataclass(slots=True, eq=False)
class Lane:
    """One stream and its session. One call at a time."""

    stream: Stream
    session: Hash
    voucher: SignedVoucher | None = None
    """The newest that we signed in this session."""
    calls: int = 0
    """Made on it so far."""
    place: object = None
    """Whoever has it, of those that may call at once."""
    is_over: bool = False
    """It takes no further call."""
    is_broken: bool = False
    """Nor has its stream any more use."""
    rests_since: float = 0
    rests_until: float = 0
    """Its executor has asked for it."""
    _leave: trio.Event = field(default_factory=trio.Event)

    @property
    def executor(self) -> PeerId:
        """Who is at the other end."""
        return self.stream.peer_id

    def end(self) -> None:
        """Let it take no further call; what was sent still arrives."""
        self.is_over = True

    def give_up(self) -> None:
        """Let it take no further call, and its stream be reset, which cancels the call that runs on it."""
        self.is_over = self.is_broken = True

    def close(self) -> None:
        """Let its stream go."""
        self._leave.set()

    async def wait_closing(self) -> None:
        """Wait for `close`."""
        await self._leave.wait()


@dataclass(slots=True)
class _Places:
    """How many calls to one executor may run from here at once: as many as it had room for of late."""

    limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(MOST_LANES))
    changed: float = 0
    step: int = 1

    def shrink(self) -> None:
        """There was no room for the newest."""
        self.limiter.total_tokens = max(1, self.limiter.borrowed_tokens - 1)
        self.changed, self.step = trio.current_time(), 1

    def grow(self) -> None:
        """Something went well: there may be room for more, unless that was tried just before."""
        if self.limiter.total_tokens < MOST_LANES and trio.current_time() >= self.changed + LOOK_FOR_ROOM:
            self.limiter.total_tokens = min(self.limiter.total_tokens + self.step, MOST_LANES)
            self.changed, self.step = trio.current_time(), self.step * 2


class Lanes:
    """All lanes of one client. They live in `run`.

    Args:
        network: To open streams.
        reach: Sees to it that an executor is connected.
    """

    def __init__(self, network: Network, reach: Callable[[PeerId], Awaitable[None]]) -> None:
        self._network = network
        self._reach = reach
        self._resting: dict[PeerId, list[Lane]] = {}
        self._places: dict[PeerId, _Places] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the streams until cancelled, and close those that rest too long."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                while True:
                    await trio.sleep(_LOOK)
                    self._close_idle(trio.current_time() - IDLE)
        finally:
            self._nursery = None

    @property
    def resting(self) -> int:
        """How many wait for a call."""
        return sum(map(len, self._resting.values()))

    def in_use(self, executor: PeerId) -> int:
        """Count the calls to an executor that run here."""
        places = self._places.get(executor)
        return 0 if places is None else places.limiter.borrowed_tokens

    def has_room(self, executor: PeerId) -> bool:
        """Tell whether a call to an executor need not wait for another one from here."""
        places = self._places.get(executor)
        return places is None or places.limiter.available_tokens > 0

    def forget(self, executor: PeerId) -> None:
        """Close the lanes that rest: the executor's connection is gone."""
        for lane in self._resting.pop(executor, ()):
            lane.close()

    async def take(self, executor: PeerId, patience: float = math.inf) -> Lane:
        """Wait for a lane to an executor that nobody uses: one that rests, or a new one. `give_back` it.

        Whoever comes first is first, and gets its turn when a call from here ends.

        Args:
            executor: At the other end.
            patience: Seconds to wait for a turn; the deadline of the rest is the caller's.

        Raises:
            ExecutorBusy: As many calls as it has room for run from here.
            Unreachable: No connection, or no stream.
            DeadlinePassed: Likewise, not in time.
        """
        limiter, place = self._places.setdefault(executor, _Places()).limiter, object()
        with trio.move_on_after(patience) as waiting:
            await limiter.acquire_on_behalf_of(place)
        if waiting.cancelled_caught:
            raise ExecutorBusy("has no room for more calls from here", patience)
        try:
            lane = self._rested(executor)
            if lane is None:
                await self._reach(executor)
                assert self._nursery is not None  # noqa: S101 - lanes are taken while `run` runs
                lane = await self._nursery.start(self._hold, executor)
        except BaseException:
            limiter.release_on_behalf_of(place)
            raise
        lane.place = place
        return lane

    def _rested(self, executor: PeerId) -> Lane | None:
        """Take the lane that rested least, for the others may fall idle; none that was asked to rest on."""
        now, resting = trio.current_time(), self._resting.get(executor, [])
        for number in reversed(range(len(resting))):
            if resting[number].rests_until <= now:
                return resting.pop(number)
        return None

    def on_busy(self, lane: Lane, retry_after: float) -> None:
        """Take in that an executor has no room for the call on a lane, and asks for so many seconds of rest."""
        lane.rests_until = trio.current_time() + retry_after
        self._places[lane.executor].shrink()

    def give_back(self, lane: Lane) -> None:
        """End one's use of a lane; it rests, unless it is over."""
        places = self._places[lane.executor]
        places.grow()
        places.limiter.release_on_behalf_of(lane.place)
        if lane.is_over or self._nursery is None:
            lane.close()
        else:
            lane.rests_since = trio.current_time()
            self._resting.setdefault(lane.executor, []).append(lane)

    async def _hold(self, executor: PeerId, *, task_status: trio.TaskStatus[Lane]) -> None:
        async with self._network.open(executor, LLM_PROTOCOL, _OPEN) as stream:
            lane = Lane(stream, Hash(secrets.token_bytes(32)))
            task_status.started(lane)
            try:
                await lane.wait_closing()
            finally:
                if lane.is_broken:
                    await stream.reset()

    def _close_idle(self, before: float) -> None:
        for executor, lanes in list(self._resting.items()):
            for lane in lanes:
                if lane.rests_since < before:
                    lane.close()
            self._resting[executor] = [lane for lane in lanes if lane.rests_since >= before]
            if not self._resting[executor]:
                del self._resting[executor]
