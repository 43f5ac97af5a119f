"""How much is said and waited for on a stream: `libp2p.stream_muxer.yamux.yamux.YamuxStream`.

Symptoms: a WINDOW_UPDATE answers most reads, be they of one byte, and each is a noise packet of its own; a read and a
write each wait their turn behind every other task five or six times, for locks that are free, so that with many busy
connections one message costs thirty turns.
"""

import struct
from typing import Final

import trio
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import YamuxStream

_LARGEST: Final = yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE


class FluentStream(YamuxStream):
    """A yamux stream that gives the window back in large pieces, and waits only where it must."""

    @classmethod
    def adopt(cls, stream: YamuxStream) -> None:
        """Make a stream of the stock class one of ours: its connection makes no others."""
        stream.__class__ = cls

    async def read(self, n: int | None = -1) -> bytes:
        """Give what is there, at most `n` bytes; see upstream's for the rest."""
        if self.conn.stream_buffers.get(self.stream_id):
            await trio.lowlevel.checkpoint()  # else who reads many small pieces would hold up everybody else
        buffer = self.conn.stream_buffers.get(self.stream_id)
        if not buffer or self.closed or n is None or n < 1:
            return await super().read(n)
        data = bytes(buffer[:n])
        del buffer[: len(data)]
        await self._auto_tune_and_send_window_update(bytes_read=len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`; see upstream's for what does not go out in one frame."""
        if self.send_closed or self.closed or not 0 < len(data) <= min(self.send_window, _LARGEST):
            await super().write(data)
            return
        self.send_window -= len(data)
        header = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_DATA, 0, self.stream_id, len(data))
        await self.conn._write_frame(header + data)  # noqa: SLF001 - upstream's own streams do

    async def _auto_tune_and_send_window_update(self, *, bytes_read: int = 0) -> None:  # noqa: ARG002 - upstream's
        waiting = len(self.conn.stream_buffers.get(self.stream_id, b""))
        if self.recv_closed or self.target_recv_window - self.recv_window - waiting < self.target_recv_window // 2:
            return
        increment = self._grow_to_delta(waiting)
        await self.send_window_update(increment + self._apply_autotune_epoch(waiting))
