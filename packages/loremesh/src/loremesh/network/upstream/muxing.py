"""What one connection may cost: `libp2p.stream_muxer.yamux.yamux.Yamux`.

Symptoms: the other side may open any number of streams, each with a task here; it may send on a stream nobody reads
without ever meeting the window (160 MB sent are 200 MB held); a task that is cancelled while it writes leaves half a
frame on the wire, after which nothing on that connection can be read; when the muxer's task is cancelled its socket
stays open as a zombie at the other side; closing takes a tenth of a second longer than it need.
"""

import logging
import struct
from typing import Final
from weakref import WeakSet

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.secure_session import SecureSession
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from loremesh.network.locks import EagerLock
from loremesh.network.muxed import Muxed, is_too_much
from loremesh.network.upstream.flow import FluentStream
from loremesh.network.upstream.negotiating import EagerClient
from loremesh.primitives import MIB

_log = logging.getLogger("loremesh.network")
_WRITE_DEADLINE: Final = 5.0
_WINDOW: Final = MIB
"""Most that may be on its way on one stream; upstream lets it grow to sixteen times that."""
_UNREAD_LIMIT: Final = 8 * _WINDOW
PROTOCOL: Final = TProtocol(yamux.PROTOCOL_ID)

yamux.MAX_WINDOW_SIZE = _WINDOW  # else who keeps to its windows could be taken for who does not


class BoundedYamux(Yamux, Muxed):
    """A yamux connection with a limit on streams and on unread bytes, whose frames are whole or end it."""

    def __init__(
        self, secured: ISecureConn, peer_id: ID, max_streams: int, all_of_node: WeakSet[Muxed] | None = None
    ) -> None:
        super().__init__(secured, peer_id, is_initiator=secured.is_initiator)
        self._write_lock = EagerLock()  # type: ignore[assignment]  # all that upstream does with it is to enter it
        self._max_streams = max_streams
        self._all_of_node: WeakSet[Muxed] = WeakSet() if all_of_node is None else all_of_node
        self._all_of_node.add(self)

    @property
    def open_streams(self) -> int:
        """Streams on which either side may still say something."""
        return len(self.streams)

    @property
    def unread(self) -> int:
        """Bytes that came and were not read yet."""
        return sum(map(len, self.stream_buffers.values()))

    async def start(self) -> None:
        """Serve the connection until it ends; its socket never outlives this task."""
        try:
            await super().start()
        finally:
            if not self.event_closed.is_set():
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await self._cleanup_on_error()
                self.event_closed.set()

    async def close(self, error_code: int = yamux.GO_AWAY_NORMAL) -> None:
        """Say goodbye and close the socket; the stock one then sleeps for a while."""
        on_close, self.on_close = self.on_close, None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super().close, error_code)
            await self.event_closed.wait()
            nursery.cancel_scope.cancel()
        if on_close is not None:
            await on_close()

    async def open_stream(self) -> YamuxStream:
        """Open a stream."""
        stream = await super().open_stream()
        FluentStream.adopt(stream)
        return stream

    async def accept_stream(self) -> IMuxedStream:
        """Give the next stream the other side opened; those over the limit are reset."""
        while True:
            stream = await super().accept_stream()
            theirs = sum(1 for known in self.streams.values() if not known.is_initiator)
            if theirs <= self._max_streams:
                assert isinstance(stream, YamuxStream)  # noqa: S101 - for the type checker: there are no others
                FluentStream.adopt(stream)
                return stream
            _log.debug("peer %s holds %d streams open", self.peer_id, theirs)
            await stream.reset()

    async def _read_data_body(self, length: int) -> bytes:
        held = length + self.unread
        # The one exception for which upstream ends the connection rather than the stream.
        if held > _UNREAD_LIMIT:
            raise trio.TooSlowError(f"more than {_UNREAD_LIMIT} unread bytes")
        if is_too_much(held, length, self._all_of_node):
            raise trio.TooSlowError("too many unread bytes on all connections")
        session = self.secured_conn
        if isinstance(session, SecureSession) and session.high_watermark - session.low_watermark >= length:
            return await session.read(length)  # it is here: no need of a deadline
        return await super()._read_data_body(length)

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            if self.event_closed.is_set():
                raise ConnectionClosedError("connection is closed")
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _WRITE_DEADLINE) as deadline:
                await self.secured_conn.write(data)
            if deadline.cancelled_caught:
                self.event_shutting_down.set()
                await self.secured_conn.close()
                raise ConnectionClosedError("the other side takes nothing any more")
        await trio.lowlevel.checkpoint_if_cancelled()

    async def cut(self) -> None:
        """Close the socket: a goodbye stuck in its full buffer gives up when that goes."""
        await self.secured_conn.close()

    async def is_answering(self, within: float) -> bool:
        """Ask the other side for a sign of life, for at most `within` seconds."""
        if self._ping_event.is_set():
            self._ping_event = trio.Event()
        answered = self._ping_event
        self._ping_id += 1
        ping = struct.pack(yamux.YAMUX_HEADER_FORMAT, 0, yamux.TYPE_PING, yamux.FLAG_SYN, 0, self._ping_id)
        try:
            with trio.move_on_after(within):
                await self._write_frame(ping)
                await answered.wait()
        except Exception as error:  # noqa: BLE001 - whatever upstream's write raises, the answer is no
            _log.debug("no sign of life from %s: %r", self.peer_id, error)
            return False
        # Upstream's own periodic ping may have put another event in the place of the one we waited for.
        return answered.is_set() or self._ping_event.is_set()


class BoundedMuxers(MuxerMultistream):
    """Offers yamux alone; stock code builds its own Yamux whatever class it was given."""

    def __init__(self, max_streams: int, timeout: float, all_of_node: WeakSet[Muxed]) -> None:
        super().__init__({PROTOCOL: BoundedYamux}, max(1, int(timeout)))
        self._selector.multiselect_client = EagerClient()
        self._max_streams = max_streams
        self._muxers = all_of_node

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on yamux and put it on the secured connection."""
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return self._annotate_connection(BoundedYamux(conn, peer_id, self._max_streams, self._muxers), conn, protocol)


def is_reset(stream: IMuxedStream) -> bool:
    """Tell a stream that broke from one that ended: upstream raises the same for both.

    Also true when the whole connection is going down, since then nobody can know what was still to come.
    """
    return isinstance(stream, YamuxStream) and (stream.reset_received or stream.conn.event_shutting_down.is_set())
