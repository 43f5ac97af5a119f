"""A stream that somebody attends to all the time: that its client leaves is noticed in the middle of an answer too."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio

from loremesh.errors import Fault, InvalidMessage, ProtocolError, ServiceError, Unreachable
from loremesh.network.frames import Stream
from loremesh.primitives import PeerId

_FRAME_SECONDS: Final = 10.0
"""For a frame that has begun."""


class AttendedStream:
    """The serving side of a stream whose client speaks only when it is its turn.

    It has one reader for as long as it lives, which is never interrupted: a read that is cancelled may lose what it has
    just taken off the stream.
    """

    def __init__(self, stream: Stream, limit: int) -> None:
        self.stream = stream
        self._limit = limit
        self._held: list[bytes] = []
        self._put, self._frames = trio.open_memory_channel[bytes](0)
        self._block: trio.CancelScope | None = None
        self._has_left = False
        self._reason: ProtocolError | ServiceError | None = None

    @property
    def peer_id(self) -> PeerId:
        """The client."""
        return self.stream.peer_id

    async def next(self, seconds: float) -> bytes | None:
        """Give the next frame; None when the client has finished, or has said nothing for `seconds`.

        Raises:
            ProtocolError: The client broke a rule of frames.
            ServiceError: The stream broke.
        """
        with trio.move_on_after(seconds):
            try:
                return await self._frames.receive()
            except trio.EndOfChannel:
                if self._reason is not None:
                    raise self._reason from None
        return None

    def hold(self, frame: bytes) -> None:
        """Keep a frame until something is sent, and let it go with that."""
        self._held.append(frame)

    @property
    def holds(self) -> bool:
        """Something waits to be sent."""
        return bool(self._held)

    async def send(self, seconds: float, *frames: bytes) -> None:
        """Send what is held, and then `frames`, in one write.

        Raises:
            ServiceError: The client took it not in so many seconds, or has left.
        """
        held, self._held = self._held, []
        await self.stream.send_all((*held, *frames), seconds)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Cancel the block when the client leaves.

        Raises:
            ServiceError: It has left; whatever the block came to.
            ProtocolError: It spoke although it was not its turn.
        """
        try:
            with trio.CancelScope() as self._block:
                if self._has_left:
                    self._block.cancel()
                yield
        except ServiceError:
            if not self._has_left:  # else it is how the block took its being cancelled
                raise
        finally:
            self._block = None
        if self._has_left:
            raise self._reason or Unreachable("the client has left")

    async def run(self) -> None:
        """Read until the client has left."""
        try:
            while await self.stream.begins():
                if self._block is not None:
                    raise InvalidMessage(Fault.UNEXPECTED, "something in the middle of an answer")
                frame = await self.stream.receive(_FRAME_SECONDS, self._limit)
                if frame is not None:
                    await self._put.send(frame)
        except (ProtocolError, ServiceError) as error:
            self._reason = error
        self._has_left = True
        if self._block is not None:
            self._block.cancel()
        self._put.close()


@asynccontextmanager
async def attended(stream: Stream, limit: int) -> AsyncIterator[AttendedStream]:
    """Attend to a stream; of what its client sends, frames of at most `limit` bytes are taken."""
    line = AttendedStream(stream, limit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.run)
        yield line
        nursery.cancel_scope.cancel()
