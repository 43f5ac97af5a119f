"""A conversation of length-prefixed frames: four bytes of length, big-endian, then the body; never half of one.

Source: docs/protocol/network.md.
"""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from loremesh.errors import DeadlinePassed, Fault, InvalidMessage
from loremesh.primitives import KIB, MIB, PeerId

HEADER_BYTES: Final = 4
_CHUNK: Final = 64 * KIB


class Pipe(Protocol):
    """The bytes under a conversation: a libp2p stream, or a pair of memory channels in tests."""

    async def write(self, data: bytes) -> None:
        """Hand over all of `data`, or raise Unreachable."""

    async def read(self, most: int) -> bytes:
        """Give 1 to `most` bytes, none once the other side has finished, or raise Unreachable."""

    async def finish(self) -> None:
        """Tell the other side that no more bytes follow."""

    async def reset(self) -> None:
        """Give the conversation up, in both directions; never raises."""


class Stream:
    """One conversation with an authenticated peer. One task at a time sends, one receives."""

    def __init__(self, pipe: Pipe, peer_id: PeerId, *, max_frame: int = MIB) -> None:
        self.peer_id = peer_id
        self.ended = False
        """The other side has finished, cleanly."""
        self._pipe = pipe
        self._max_frame = max_frame
        self._unread = bytearray()

    async def send(self, frame: bytes, timeout: float = 10) -> None:  # noqa: ASYNC109 - the surface takes seconds
        """Send one frame.

        Raises:
            InvalidMessage: FRAME_TOO_LONG, it is longer than anyone accepts.
            DeadlinePassed: The peer did not take it within `timeout` seconds; the stream is of no more use.
            Unreachable: The stream broke.
        """
        await self.send_all((frame,), timeout)

    async def send_all(self, frames: Iterable[bytes], timeout: float = 10) -> None:  # noqa: ASYNC109 - as above
        """Send frames in one write: of small ones the machinery below costs far more than their bytes.

        Raises:
            As `send`, whose timeout is here for all of them.
        """
        written = bytearray()
        for frame in frames:
            if len(frame) > self._max_frame:
                raise InvalidMessage(Fault.FRAME_TOO_LONG, f"{len(frame)} bytes, limit {self._max_frame}")
            written += len(frame).to_bytes(HEADER_BYTES, "big") + frame
        with trio.move_on_after(timeout) as deadline:
            await self._pipe.write(bytes(written))
        if deadline.cancelled_caught:
            raise DeadlinePassed(f"{len(written)} bytes were not taken within {timeout:g} s")

    async def receive(self, timeout: float, limit: int = MIB) -> bytes | None:  # noqa: ASYNC109 - as above
        """Receive one frame; None when the other side finished after a whole frame.

        Args:
            timeout: Seconds for the whole frame.
            limit: Most bytes of its body; a longer one is refused before anything is kept of it.

        Raises:
            InvalidMessage: FRAME_TOO_LONG, or UNFINISHED when the stream ended inside a frame.
            DeadlinePassed: The frame was not there in time.
            Unreachable: The stream broke.
        """
        limit = min(limit, self._max_frame)
        if len(self._unread) >= HEADER_BYTES + self._length(limit):
            return self._take(limit)  # it came with the one before: a deadline would cost more than the frame
        with trio.move_on_after(timeout) as deadline:
            return await self._receive(limit)
        assert deadline.cancelled_caught  # noqa: S101 - for the type checker: the block above returns or raises
        raise DeadlinePassed(f"no frame within {timeout:g} s")

    async def begins(self) -> bool:
        """Wait until the next frame begins; tell if one does, or the other side has finished instead.

        For conversations that may rest: a frame that has begun is soon there, or its sender is up to something.

        Raises:
            Unreachable: The stream broke.
        """
        return await self._fill(1)

    async def _receive(self, limit: int) -> bytes | None:
        if not await self._fill(HEADER_BYTES):
            if self._unread:
                raise InvalidMessage(Fault.UNFINISHED, "ended inside a length")
            return None
        length = self._length(limit)
        if not await self._fill(HEADER_BYTES + length):
            raise InvalidMessage(Fault.UNFINISHED, f"ended inside a frame of {length} bytes")
        return self._take(limit)

    def _length(self, limit: int) -> int:
        """Read the length of the next frame, as far as it has come."""
        length = int.from_bytes(self._unread[:HEADER_BYTES], "big")
        if length > limit:
            raise InvalidMessage(Fault.FRAME_TOO_LONG, f"{length} bytes, limit {limit}")
        return length

    def _take(self, limit: int) -> bytes:
        end = HEADER_BYTES + self._length(limit)
        frame = bytes(self._unread[HEADER_BYTES:end])
        del self._unread[:end]
        return frame

    async def _fill(self, wanted: int) -> bool:
        while len(self._unread) < wanted:
            # Reading ahead is cheap and saves a round of the machinery below for every length.
            piece = await self._pipe.read(max(_CHUNK, wanted - len(self._unread)))
            if not piece:
                self.ended = True
                return False
            self._unread += piece
        return True

    async def finish(self) -> None:
        """Say that no more frames come from us; receiving goes on."""
        await self._pipe.finish()

    async def reset(self) -> None:
        """Give the conversation up: the other side sees it break. Never raises."""
        await self._pipe.reset()


async def ask(opening: AbstractAsyncContextManager[Stream], what: str, frame: bytes, timeout: float) -> bytes:  # noqa: ASYNC109 - as above
    """Open a stream, send one frame on it and receive one, all within `timeout` seconds.

    Args:
        opening: Gives the stream.
        what: Names the question in errors.
        frame: To send.
        timeout: Seconds.

    Raises:
        InvalidMessage: A frame is too long, or UNFINISHED: there was no answer.
        DeadlinePassed: Not in time.
        Unreachable: The stream could not be opened, or it broke.
    """
    answer: bytes | None = None
    with trio.move_on_after(timeout) as deadline:
        async with opening as stream:
            await stream.send(frame, timeout)
            await stream.finish()
            answer = await stream.receive(timeout)
    if deadline.cancelled_caught:
        raise DeadlinePassed(f"no answer to {what} within {timeout:g} s")
    if answer is None:
        raise InvalidMessage(Fault.UNFINISHED, f"no answer to {what}")
    return answer
