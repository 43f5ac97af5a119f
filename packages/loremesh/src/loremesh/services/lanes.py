"""Lanes: streams to executors that are kept open from call to call, each with a session of its own.

Source: docs/protocol/llm.md, "A call".
"""

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.llm import LLM_PROTOCOL
from loremesh.protocol.vouchers import SignedVoucher

logger = logging.getLogger("loremesh.calls")

MOST_LANES: Final = 32
"""To one executor."""
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
    is_over: bool = False
    """It takes no further call."""
    is_broken: bool = False
    """Nor has its stream any more use."""
    rests_since: float = 0
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
        self._places: dict[PeerId, trio.Semaphore] = {}
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
        return 0 if places is None else MOST_LANES - places.value

    def forget(self, executor: PeerId) -> None:
        """Close the lanes that rest: the executor's connection is gone."""
        for lane in self._resting.pop(executor, ()):
            lane.close()

    async def take(self, executor: PeerId) -> Lane:
        """Wait for a lane to an executor that nobody uses: one that rests, or a new one. `give_back` it.

        The deadline is the caller's.

        Raises:
            Unreachable: No connection, or no stream.
            DeadlinePassed: Likewise, not in time.
        """
        places = self._places.setdefault(executor, trio.Semaphore(MOST_LANES))
        await places.acquire()
        try:
            resting = self._resting.get(executor)
            if resting:
                return resting.pop()  # the one that rested least: the others may fall idle
            await self._reach(executor)
            assert self._nursery is not None  # noqa: S101 - lanes are taken while `run` runs
            lane: Lane = await self._nursery.start(self._hold, executor)
        except BaseException:
            places.release()
            raise
        return lane

    def give_back(self, lane: Lane) -> None:
        """End one's use of a lane; it rests, unless it is over."""
        self._places[lane.executor].release()
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
