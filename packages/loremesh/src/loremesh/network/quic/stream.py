"""One stream of a QUIC connection: both directions end on their own, and neither holds more than its window."""

from abc import abstractmethod
from typing import Final, Self

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from loremesh.network.muxed import Muxed
from loremesh.network.quic.credit import SEND_BUFFER, CreditedConnection

_NO_FURTHER: Final = 0
"""The code of a reset: libp2p gives them no meaning."""


class Carrier(Muxed):
    """The connection, as its streams see it."""

    @property
    @abstractmethod
    def is_over(self) -> bool:
        """It ends, or has ended."""

    @abstractmethod
    def wake(self) -> None:
        """Send what there is to send."""

    @abstractmethod
    def settle(self, stream: "QuicStream") -> None:
        """Send what a stream has just ended with, and forget it if nothing more comes of it."""

    @abstractmethod
    def get_remote_address(self) -> tuple[str, int]:
        """Tell where the other end is."""


class QuicStream(IMuxedStream):
    """One stream: one task at a time reads, any number write, one after the other."""

    def __init__(self, muxed: Carrier, quic: CreditedConnection, stream_id: int) -> None:
        self.muxed_conn = muxed
        self._muxed = muxed
        self._quic = quic
        self.stream_id = stream_id
        self._unread = bytearray()
        self._read = 0
        self._has_all = False
        """What the other side had to say has all come."""
        self._is_reset = False
        self._is_deaf = False
        self._is_finished = False
        self._reader = trio.lowlevel.ParkingLot()
        self._writer = trio.lowlevel.ParkingLot()
        self._writing = trio.Lock()

    # reading

    async def read(self, n: int | None = None) -> bytes:
        """Give what is there, at most `n` bytes.

        Raises:
            MuxedStreamEOF: The other side has finished, and all it said was read.
            MuxedStreamReset: The stream broke.
        """
        await trio.lowlevel.checkpoint()
        while not self._unread and n != 0:
            if self._is_reset:
                raise MuxedStreamReset("the stream was reset")
            if self._has_all or self._is_deaf:
                raise MuxedStreamEOF("the stream has ended")
            if self._muxed.is_over:
                raise MuxedStreamReset("the connection is gone")
            await self._reader.park()
        piece = bytes(self._unread[:n])
        del self._unread[: len(piece)]
        self._let_more_come(len(piece))
        return piece

    def take(self, data: bytes, *, is_end: bool) -> None:
        """Take in what came, in order."""
        self._has_all = self._has_all or is_end
        if self._is_reset or self._is_deaf:
            self._let_more_come(len(data))
        else:
            self._unread += data
        self._reader.unpark_all()

    def break_off(self) -> None:
        """Take in that the other side gives the stream up, and takes back whatever was not read yet."""
        self._has_all = self._is_reset = self._is_finished = True
        self._unread.clear()
        self._quic.consumed(self._quic.length(self.stream_id) - self._read)
        self._quic.reset_stream(self.stream_id, _NO_FURTHER)
        self.wake()

    def _let_more_come(self, count: int) -> None:
        self._read += count
        is_news = self._quic.consumed(count)
        if not self._is_reset and self._quic.extend(self.stream_id, self._read):
            is_news = True
        if is_news:
            self._muxed.wake()

    # writing

    async def write(self, data: bytes) -> None:
        """Hand over all of `data`; waits while the other side does not take it.

        Raises:
            MuxedStreamClosed: This side has finished, or the other reads no more.
            MuxedStreamReset: The stream broke.
        """
        await trio.lowlevel.checkpoint()
        left = memoryview(data)
        async with self._writing:
            while left:
                self._check_writable()
                room = SEND_BUFFER - self._quic.buffered(self.stream_id)
                if room <= 0:
                    await self._writer.park()
                    continue
                self._quic.send_stream_data(self.stream_id, bytes(left[:room]))
                left = left[room:]
                self._muxed.wake()

    @property
    def _is_unwanted(self) -> bool:
        """The other side reads no more."""
        return not self._quic.may_send(self.stream_id)

    def _check_writable(self) -> None:
        if self._is_reset or self._muxed.is_over:
            raise MuxedStreamReset("the stream broke")
        if self._is_finished or self._is_unwanted:
            raise MuxedStreamClosed("nobody takes more on this stream")

    def let_write(self) -> None:
        """Let writers go on if enough of what was written has arrived."""
        if self._writer and self._quic.buffered(self.stream_id) <= SEND_BUFFER // 2:
            self._writer.unpark_all()

    def wake(self) -> None:
        """Let whoever waits look again."""
        self._reader.unpark_all()
        self._writer.unpark_all()

    # ending

    @property
    def is_done(self) -> bool:
        """Nothing more comes of it, nor goes."""
        return self._has_all and (self._is_finished or self._is_unwanted)

    async def close_write(self) -> None:
        """Tell the other side that no more follows; reading goes on."""
        await trio.lowlevel.checkpoint()
        async with self._writing:
            if self._is_finished or self._is_unwanted:
                return
            self._check_writable()
            self._is_finished = True
            self._quic.send_stream_data(self.stream_id, b"", end_stream=True)
            self._muxed.settle(self)

    async def close(self) -> None:
        """Be done with both directions: what the other side still says is dropped as it comes."""
        self._is_deaf = True
        self._drop()
        await self.close_write()

    async def reset(self) -> None:
        """Give both directions up, unless both have ended well."""
        await trio.lowlevel.checkpoint()
        if self._is_reset or self._muxed.is_over or (self._is_finished and self._has_all):
            return
        self._is_reset = self._is_finished = True
        self._drop()
        self._quic.reset_stream(self.stream_id, _NO_FURTHER)
        if not self._has_all:
            self._quic.stop_stream(self.stream_id, _NO_FURTHER)
        self.wake()
        self._muxed.settle(self)

    def _drop(self) -> None:
        count = len(self._unread)
        self._unread.clear()
        self._let_more_come(count)

    # what else upstream wants of a stream

    def set_deadline(self, ttl: int) -> None:
        """Refuse: deadlines sit at the caller.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"no deadline of {ttl} s here: put a cancel scope around the call")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Tell where the other end of the connection is."""
        return self._muxed.get_remote_address()

    async def __aenter__(self) -> Self:
        """Give the stream, which is closed at the end of the block."""
        return self
