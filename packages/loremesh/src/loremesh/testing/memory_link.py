"""The way between two nodes of a `MemoryNetwork`: delayed, ordered, and cut when a test says so."""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Generic, TypeVar

import trio

from loremesh.errors import Unreachable
from loremesh.primitives import KIB, PeerId

T = TypeVar("T")

WINDOW: Final = 256 * KIB
"""Bytes that one direction of a stream holds before its writer waits: yamux's first window."""
_PIECE: Final = 64 * KIB
_JITTER: Final = 0.1


class Passage(Enum):
    """What a link does with what is sent."""

    OPEN = auto()
    SILENT = auto()
    """Nothing arrives and nothing breaks, as behind a router that drops packets; later it arrives after all."""
    CUT = auto()
    """Connections break, and new ones find no way."""


class Link:
    """Two nodes, whether connected or not. Its delays come from the seed, so they are the same in every run."""

    def __init__(self, latency: float, seed: str) -> None:
        self.latency = latency
        self.passage = Passage.OPEN
        self.connection: Connection | None = None
        self._seed = seed
        self._wires = 0
        self._bell = Bell()

    def delays(self) -> Callable[[], float]:
        """Give the delays of one more direction of one more conversation: the latency and up to a tenth of it."""
        # Each direction draws its own numbers: who draws first would otherwise depend on the scheduler.
        self._wires += 1
        draw = random.Random(f"{self._seed}/{self._wires}").random  # noqa: S311 - repeatable is the point
        return lambda: self.latency * (1 + _JITTER * draw())

    def turn(self, passage: Passage) -> None:
        """Let things pass, or not."""
        self.passage = passage
        if self.connection is not None:
            if passage is Passage.CUT:
                self.connection.close()
            else:
                self.connection.bell.ring()
        self._bell.ring()

    async def go_there_and_back(self) -> None:
        """Take the time of one question and answer between nodes that need not be connected.

        Raises:
            Unreachable: The link is cut.
        """
        await trio.sleep(2 * self.latency)
        while self.passage is Passage.SILENT:
            await self._bell.wait()
        if self.passage is Passage.CUT:
            raise Unreachable("no way there: the link is cut")


class Bell:
    """Wakes everybody who waits for it, any number of times."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake them."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Wait for the next ring."""
        await self._event.wait()


@dataclass(frozen=True, slots=True)
class Gossip:
    """A message on its way; signer and number name it."""

    signer: PeerId
    number: int
    topic: str
    data: bytes


class Connection:
    """Two connected nodes. `on_close` is called once, by whoever closes it first."""

    def __init__(self, link: Link, dialler: PeerId, listener: PeerId, on_close: Callable[[], None]) -> None:
        self.dialler = dialler
        self.listener = listener
        self.closed = trio.Event()
        self.bell = Bell()
        self.is_usable = False
        """Gossip and lookups work: both sides have introduced themselves."""
        self.streams = dict.fromkeys((dialler, listener), 0)
        """How many are being served, by whoever serves them."""
        self._on_close = on_close
        self.link = link
        link.connection = self
        self.gossip = {sender: Wire[Gossip](self) for sender in (dialler, listener)}

    def other(self, peer_id: PeerId) -> PeerId:
        """Tell who is at the other end."""
        return self.listener if peer_id == self.dialler else self.dialler

    def close(self) -> None:
        """End it for both sides at once: what was on its way is lost."""
        if not self.closed.is_set():
            self.closed.set()
            self.link.connection = None
            self._on_close()
            self.bell.ring()

    async def go_there_and_back(self) -> None:
        """Take the time of one question and answer.

        Raises:
            Unreachable: The connection is closed, or closes meanwhile.
        """
        question, answer = Wire[None](self), Wire[None](self)
        question.put(None)
        await question.take()
        answer.put(None)
        await answer.take()


class Wire(Generic[T]):
    """One direction of a conversation: what is put in comes out in order, none before the link's delay."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._delay = connection.link.delays()
        self._items = deque[tuple[float, T]]()
        self._broken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Send `item` on its way."""
        self._items.append((trio.current_time() + self._delay(), item))
        self._connection.bell.ring()

    def break_off(self) -> None:
        """Lose what is on its way; whoever waits for it is told."""
        self._broken = True
        self._items.clear()
        self._connection.bell.ring()

    @property
    def is_broken(self) -> bool:
        """Nothing passes any more."""
        return self._broken or self._connection.closed.is_set()

    async def take(self) -> T:
        """Wait for what comes out next.

        Raises:
            Unreachable: The wire or its connection broke.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self.is_broken:
                raise Unreachable("the connection broke")
            due = self._items[0][0] if self._items else math.inf
            is_silent = self._connection.link.passage is Passage.SILENT
            if due <= trio.current_time() and not is_silent:
                return self._items.popleft()[1]
            with trio.move_on_at(math.inf if is_silent else due):
                await self._connection.bell.wait()


class MemoryPipe:
    """One end of a stream, as `loremesh.network.frames.Pipe`."""

    def __init__(self, connection: Connection, out: "Flow", into: "Flow") -> None:
        self._bell = connection.bell
        self._out = out
        self._into = into
        self._rest = b""

    async def write(self, data: bytes) -> None:
        """Hand over all of `data`, waiting for the reader where it is far behind, or raise Unreachable."""
        await trio.lowlevel.checkpoint()
        for start in range(0, len(data), _PIECE):
            while self._out.is_full and not self._out.wire.is_broken:
                await self._bell.wait()
            if self._out.wire.is_broken or self._out.is_finished:
                raise Unreachable("the stream broke while sending")
            self._out.put(data[start : start + _PIECE])

    async def read(self, most: int) -> bytes:
        """Give 1 to `most` bytes, none once the other side has finished, or raise Unreachable."""
        data = self._rest or await self._into.take()
        self._rest = data[most:]
        return data[:most]

    async def finish(self) -> None:
        """Tell the other side that no more bytes follow."""
        await trio.lowlevel.checkpoint()
        if self._out.wire.is_broken:
            raise Unreachable("the stream broke while finishing")
        self._out.finish()

    async def reset(self) -> None:
        """Give the stream up, in both directions; never raises."""
        self._out.wire.break_off()
        self._into.wire.break_off()

    def leave(self) -> None:
        """Finish, and let what still comes fall to the floor, so that its writer is not held up."""
        self._out.finish()
        self._into.ignore()


class Flow:
    """The bytes of one direction of a stream."""

    def __init__(self, connection: Connection) -> None:
        self.wire = Wire[bytes](connection)
        self.is_finished = False
        self._bell = connection.bell
        self._held = 0
        self._ignored = False
        self._ended = False

    @property
    def is_full(self) -> bool:
        """The writer must wait."""
        return self._held >= WINDOW and not self._ignored

    def put(self, data: bytes) -> None:
        """Send bytes on their way."""
        self._held += len(data)
        self.wire.put(data)

    def finish(self) -> None:
        """Send the end, once."""
        if not self.is_finished:
            self.is_finished = True
            self.wire.put(b"")

    def ignore(self) -> None:
        """Nobody reads any more, and the writer need not know."""
        self._ignored = True
        self._bell.ring()

    async def take(self) -> bytes:
        """Wait for the next bytes; none at the end, however often asked."""
        if self._ended:
            return b""
        data = await self.wire.take()
        self._held -= len(data)
        self._ended = not data
        self._bell.ring()
        return data


def stream_between(connection: Connection) -> tuple[MemoryPipe, MemoryPipe]:
    """Make the two ends of a stream."""
    there, back = Flow(connection), Flow(connection)
    return MemoryPipe(connection, there, back), MemoryPipe(connection, back, there)
