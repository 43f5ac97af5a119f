"""The way between two nodes of a `MemoryNetwork`: delayed, ordered, and cut when a test says so."""

import math
import random
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Generic, TypeVar

import trio

from loremesh.errors import Unreachable
from loremesh.primitives import KIB, PeerId
from loremesh.testing.memory_gossip import GossipWay
from loremesh.testing.weather import Chance, Weather

T = TypeVar("T")

WINDOW: Final = 256 * KIB
"""Bytes that one direction of a stream holds before its writer waits: yamux's first window."""
_PIECE: Final = 64 * KIB


class Passage(Enum):
    """What a link does with what is sent."""

    OPEN = auto()
    SILENT = auto()
    """Nothing arrives and nothing breaks, as behind a router that drops packets; later it arrives after all."""
    CUT = auto()
    """Connections break, and new ones find no way."""


class Link:
    """Two nodes, whether connected or not. Its delays come from the seed, so they are the same in every run."""

    def __init__(self, latency: float, seed: str, weather: Weather) -> None:
        self.latency = latency
        self.weather = weather
        self.rank = random.Random(f"{seed}/rank").random()  # noqa: S311 - repeatable is the point
        """Gossip prefers links of a low rank: a mesh that is the same in every run."""
        self.connection: Connection | None = None
        self._passage = Passage.OPEN
        self._mute = frozenset[PeerId]()
        self._seed = seed
        self._wires = 0
        self._bell = Bell()

    @property
    def is_open(self) -> bool:
        """Everything passes, both ways."""
        return self._passage is Passage.OPEN and not self._mute

    def is_silent(self, sender: PeerId) -> bool:
        """What `sender` sends does not arrive for now."""
        return self._passage is Passage.SILENT or sender in self._mute

    def chance(self) -> Chance:
        """Give the delays and mishaps of one more direction of one more conversation."""
        # Each direction draws its own numbers: who draws first would otherwise depend on the scheduler.
        self._wires += 1
        return Chance(self, f"{self._seed}/{self._wires}")

    def turn(self, passage: Passage) -> None:
        """Let things pass, or not, both ways."""
        self._passage = passage
        self._mute = frozenset()
        if self.connection is not None:
            if passage is Passage.CUT:
                self.connection.close()
            else:
                self.connection.wake()
        self._bell.ring()

    def mute(self, sender: PeerId) -> None:
        """Let nothing arrive that `sender` sends; what is sent to it still does."""
        self._mute |= {sender}

    async def go_there_and_back(self) -> None:
        """Take the time of one question and answer between nodes that need not be connected.

        Raises:
            Unreachable: The link is cut.
        """
        await trio.sleep(2 * self.latency)
        while self._passage is Passage.SILENT or self._mute:
            await self._bell.wait()
        if self._passage is Passage.CUT:
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


class Connection:
    """Two connected nodes. `on_close` is called once, by whoever closes it first."""

    def __init__(self, link: Link, dialler: PeerId, listener: PeerId, on_close: Callable[[], None]) -> None:
        self.dialler = dialler
        self.listener = listener
        self.closed = trio.Event()
        self.bell = Bell()
        self.turned = Bell()
        """Rings when the link turns or the connection ends; `bell` rings with every piece of a stream as well."""
        self.is_usable = False
        """Gossip and lookups work: both sides have introduced themselves."""
        self.streams = dict.fromkeys((dialler, listener), 0)
        """How many are being served, by whoever serves them."""
        self._on_close = on_close
        self.link = link
        link.connection = self
        self.gossip = {sender: GossipWay(link, sender) for sender in (dialler, listener)}

    def other(self, peer_id: PeerId) -> PeerId:
        """Tell who is at the other end."""
        return self.listener if peer_id == self.dialler else self.dialler

    def close(self) -> None:
        """End it for both sides at once: what was on its way is lost."""
        if not self.closed.is_set():
            self.closed.set()
            self.link.connection = None
            self._on_close()
            for way in self.gossip.values():
                way.close()
            self.bell.ring()
            self.turned.ring()

    def wake(self) -> None:
        """Let what was held up go on, where it may."""
        for way in self.gossip.values():
            way.go_on()
        self.bell.ring()
        self.turned.ring()

    async def go_there_and_back(self) -> None:
        """Take the time of one question and one answer.

        Raises:
            Unreachable: The connection is closed, or closes meanwhile.
        """
        there_and_back = self.link.chance(), self.link.chance()
        due = trio.current_time() + sum(chance.delay_of_what_is_repeated() for chance in there_and_back)
        await trio.lowlevel.checkpoint()
        while True:
            if self.closed.is_set():
                raise Unreachable("the connection broke")
            is_silent = self.link.is_silent(self.dialler) or self.link.is_silent(self.listener)
            if due <= trio.current_time() and not is_silent:
                return
            with trio.move_on_at(math.inf if is_silent else due):
                await self.turned.wait()


class Wire(Generic[T]):
    """One direction of a conversation: what is put in comes out in order, none before the link's delay."""

    def __init__(self, connection: Connection, sender: PeerId) -> None:
        self._connection = connection
        self._sender = sender
        self._chance = connection.link.chance()
        self._items = deque[tuple[float, T]]()
        self._broken = False

    def put(self, item: T) -> None:
        """Send `item` on its way; in bad weather it takes longer, or the wire breaks."""
        if self._chance.breaks():
            self.break_off()
            return
        self._items.append((trio.current_time() + self._chance.delay_of_what_is_repeated(), item))
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
            is_silent = self._connection.link.is_silent(self._sender)
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

    def __init__(self, connection: Connection, sender: PeerId) -> None:
        self.wire = Wire[bytes](connection, sender)
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


def stream_between(connection: Connection, opener: PeerId) -> tuple[MemoryPipe, MemoryPipe]:
    """Make the two ends of a stream, the opener's first."""
    there, back = Flow(connection, opener), Flow(connection, connection.other(opener))
    return MemoryPipe(connection, there, back), MemoryPipe(connection, back, there)
