"""Credit that follows what was read: `aioquic.quic.connection.QuicConnection`.

Symptoms: it doubles every limit as soon as half of it has been used, whether anybody has read that or not, so that a
sender never has to wait; it takes 128 streams each way, and data to send without end; a server cannot ask for the
certificate of a client.

Only this file touches what aioquic keeps to itself.
"""

from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamSender
from cryptography.x509 import Certificate

from loremesh.primitives import KIB, MIB

STREAM_WINDOW: Final = 256 * KIB
"""Most that may be unread on one stream."""
CONNECTION_WINDOW: Final = 8 * MIB
"""Most that may be unread on all streams of a connection."""
SEND_BUFFER: Final = 256 * KIB
"""Most that one stream keeps until the other side has it."""


class CreditedConnection(QuicConnection):
    """aioquic's connection, whose limits rise with `consumed` and `extend` alone."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        max_streams: int,
        *,
        first_destination: bytes | None = None,
        retried: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=first_destination,
            retry_source_connection_id=retried,
        )
        self._consumed = 0
        for limit, value in ((self._local_max_streams_bidi, max_streams), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = value

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = not self._is_client  # noqa: SLF001 - aioquic has no other way

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        used, limit.used = limit.used, 0  # of nothing used nothing is doubled
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver = stream.receiver
        highest, receiver.highest_offset = receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            receiver.highest_offset = highest

    # what the other side may send

    @property
    def unread(self) -> int:
        """Bytes that the other side has used of its credit and that were not consumed."""
        return self._local_max_data.used - self._consumed

    def consumed(self, count: int) -> bool:
        """Let as many bytes more be sent on the connection as are out of the way now; tell whether to send that now."""
        self._consumed += count
        limit, known = self._consumed + CONNECTION_WINDOW, self._local_max_data
        # Near its end every byte counts: the rest may be held by streams that nobody reads.
        is_short = known.value - known.used < STREAM_WINDOW and limit > known.value
        if limit - known.value < CONNECTION_WINDOW // 4 and not is_short:
            return False
        known.value = limit
        return True

    def extend(self, stream_id: int, read: int) -> bool:
        """Let a stream's sender go on to a window beyond the `read` bytes; tell whether that is to be sent now."""
        stream = self._streams.get(stream_id)
        limit = read + STREAM_WINDOW
        if stream is None or stream.receiver.is_finished or limit - stream.max_stream_data_local < STREAM_WINDOW // 4:
            return False
        stream.max_stream_data_local = limit
        return True

    def length(self, stream_id: int) -> int:
        """Tell how far a stream's sender has come, counting what it has skipped."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.receiver.highest_offset

    # what this side may send

    def buffered(self, stream_id: int) -> int:
        """Count the bytes of a stream that the other side does not have yet."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start  # noqa: SLF001 - as above

    def may_send(self, stream_id: int) -> bool:
        """Tell whether neither side has given up that direction of a stream."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sender._reset_error_code is None  # noqa: SLF001 - as above

    @property
    def is_delivered(self) -> bool:
        """Everything that was written has arrived."""
        return all(_has_arrived(stream.sender) for stream in self._streams.values())

    @property
    def open_streams(self) -> int:
        """Streams on which anything may still come or go, or wait to be acknowledged."""
        return len(self._streams)

    @property
    def may_open(self) -> bool:
        """The other side takes one stream more."""
        return self.get_next_available_stream_id() // 4 < self._remote_max_streams_bidi

    # how far it has come

    @property
    def has_begun(self) -> bool:
        """Something came that was meant for this connection."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def is_confirmed(self) -> bool:
        """Both sides know that the handshake is over and that neither refused the other."""
        return self._handshake_confirmed

    @property
    def end(self) -> str | None:
        """Why the connection ends, or None while it does not."""
        event = self._close_event
        return None if event is None else event.reason_phrase or f"code {event.error_code}"

    @property
    def chain(self) -> list[Certificate]:
        """The certificates that the other side has shown."""
        first = self.tls._peer_certificate  # noqa: SLF001 - as above
        return [] if first is None else [first, *self.tls._peer_certificate_chain]  # noqa: SLF001 - as above


def _has_arrived(sender: QuicStreamSender) -> bool:
    if sender.is_finished or sender._reset_error_code is not None:  # noqa: SLF001 - as above
        return True
    return not sender._buffer and sender._buffer_fin is None  # noqa: SLF001 - as above
