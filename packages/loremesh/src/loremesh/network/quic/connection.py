"""One QUIC connection: aioquic's state machine, driven by datagrams, a timer and what the streams write."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Protocol
from weakref import WeakSet

import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    HandshakeCompleted,
    PingAcknowledged,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from libp2p.transport.exceptions import SecurityUpgradeFailure
from multiaddr import Multiaddr

from loremesh.network.addresses import Transport, endpoint_of_socket
from loremesh.network.muxed import Muxed, is_too_much
from loremesh.network.quic.credit import CONNECTION_WINDOW, STREAM_WINDOW, CreditedConnection
from loremesh.network.quic.proof import ALPN, Credentials, Prove
from loremesh.network.quic.stream import Carrier, QuicStream
from loremesh.network.udp import Address

_log = logging.getLogger("loremesh.network")
_IDLE: Final = 30.0
_KEEP_ALIVE: Final = 5.0
"""Others give up a connection after less silence than we do: js-libp2p after 10 s."""
_GRAIN: Final = 1e-6
"""Seconds to come after a timer: aioquic rounds, and at the very moment may have nothing to do yet, for ever."""
_DELIVERY: Final = 0.5
_CERTIFICATE_REFUSED: Final = QuicErrorCode.CRYPTO_ERROR + 42
"""TLS's bad_certificate."""


class Sender(Protocol):
    """Where the datagrams of a connection go out."""

    async def send(self, data: bytes, address: Address) -> None:
        """Send a datagram, if that can be done."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all QUIC connections of a node have in common."""

    credentials: Credentials
    prove: Prove
    max_streams: int
    all_of_node: WeakSet[Muxed] = field(default_factory=WeakSet)

    def configuration(self, *, is_client: bool) -> QuicConfiguration:
        """Write the settings of one connection as aioquic has them."""
        return QuicConfiguration(
            alpn_protocols=[ALPN],
            certificate=self.credentials.certificate,
            idle_timeout=_IDLE,
            is_client=is_client,
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            private_key=self.credentials.key,
            supported_versions=[QuicProtocolVersion.VERSION_1],
            verify_mode=0,  # no authority vouches for a peer: `prove` looks at what it shows
        )


class QuicMuxed(Carrier):
    """A QUIC connection as the swarm wants it: secured and muxed from the first byte.

    Until `wait_ready` returns there is no peer id.
    """

    peer_id: ID

    def __init__(
        self,
        quic: CreditedConnection,
        terms: Terms,
        socket: Sender,
        remote: Address,
        *,
        expected: ID | None = None,
        table: "dict[bytes, QuicMuxed] | None" = None,
    ) -> None:
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self._quic = quic
        self._terms = terms
        self._socket = socket
        self.remote = remote
        self._expected = expected
        self._table = {} if table is None else table
        self._ids = set[bytes]()
        self._is_client = quic.configuration.is_client
        self._is_proven = False
        self._is_refused = False
        self._failure = ""
        self._ready = trio.Event()
        self._used = trio.Event()
        self._awake = trio.Event()
        self._heard_at = trio.current_time()
        self._streams: dict[int, QuicStream] = {}
        self._arrive, self._arrivals = trio.open_memory_channel[QuicStream](terms.max_streams)
        self._openers = trio.lowlevel.ParkingLot()
        self._closers = trio.lowlevel.ParkingLot()
        self._pings = count(1)
        self._answers: dict[int, trio.Event] = {}
        terms.all_of_node.add(self)

    # what the swarm asks

    @property
    def is_initiator(self) -> bool:
        """This side dialled."""
        return self._is_client

    @property
    def is_established(self) -> bool:
        """The handshake is over and the peer proven."""
        return self._ready.is_set()

    @property
    def is_closed(self) -> bool:
        """Nothing is sent or received any more."""
        return self.event_closed.is_set()

    @property
    def is_over(self) -> bool:
        """It ends, or has ended."""
        return self.event_closed.is_set() or self._quic.end is not None

    @property
    def open_streams(self) -> int:
        """Streams on which either side may still say something."""
        return self._quic.open_streams

    @property
    def unread(self) -> int:
        """Bytes that came and were not read yet."""
        return self._quic.unread

    def get_remote_peer(self) -> ID:
        """Tell whose key the other side has proved."""
        return self.peer_id

    def get_remote_address(self) -> tuple[str, int]:
        """Tell where the other end is."""
        return str(self.remote[0]), int(self.remote[1])

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Tell the same as a multiaddr."""
        return [Multiaddr(str(endpoint_of_socket(self.remote, Transport.QUIC)))]

    def get_connection_type(self) -> ConnectionType:
        """Tell that nobody is in between."""
        return ConnectionType.DIRECT

    async def start(self) -> None:
        """Wait for the end; `run` does the work."""
        self.event_started.set()
        await self.event_closed.wait()
        if self.on_close is not None:
            await self.on_close()

    async def wait_ready(self) -> None:
        """Wait until both sides have proved themselves. The caller sets the deadline.

        Raises:
            ConnectionRefusedError: Nobody listens there.
            SecurityUpgradeFailure: No handshake, or one side refused the other.
        """
        await self._ready.wait()
        if self._is_refused:
            raise ConnectionRefusedError("nobody listens there")
        if self.is_over:
            raise SecurityUpgradeFailure(f"no QUIC handshake: {self._failure or self._quic.end}")

    async def wait_used(self) -> None:
        """Wait until the other side opens its first stream, or the connection ends."""
        await self._used.wait()

    async def open_stream(self) -> QuicStream:
        """Open a stream; waits while the other side takes no more of them.

        Raises:
            MuxedConnUnavailable: The connection has ended.
        """
        await trio.lowlevel.checkpoint()
        while not self.is_over and not self._quic.may_open:
            await self._openers.park()
        if self.is_over:
            raise MuxedConnUnavailable("the connection has ended")
        stream_id = self._quic.get_next_available_stream_id()
        self._quic.send_stream_data(stream_id, b"")  # takes the id
        stream = self._streams[stream_id] = QuicStream(self, self._quic, stream_id)
        return stream

    async def accept_stream(self) -> QuicStream:
        """Give the next stream that the other side opened.

        Raises:
            MuxedConnUnavailable: The connection has ended.
        """
        try:
            return await self._arrivals.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("the connection has ended") from None

    async def is_answering(self, within: float) -> bool:
        """Ask the other side for a sign of life, for at most `within` seconds."""
        if self.is_over:
            return False
        number = next(self._pings)
        answered = self._answers[number] = trio.Event()
        self._quic.send_ping(number)
        self.wake()
        with trio.move_on_after(within):
            await answered.wait()
        self._answers.pop(number, None)
        return answered.is_set() and not self.is_over

    async def close(self) -> None:
        """Say goodbye, but first let what was written arrive, for half a second at most."""
        with trio.move_on_after(_DELIVERY):
            while self._ready.is_set() and not self.is_over and not self._quic.is_delivered:
                await self._closers.park()
        await self.cut()
        await self.event_closed.wait()

    async def cut(self) -> None:
        """Say goodbye now, whatever is still on its way."""
        self._quic.close()
        self.wake()
        await trio.lowlevel.checkpoint()

    # what comes

    def begin(self) -> None:
        """Send the first packets of a dial, as soon as `run` does."""
        self._quic.connect(self.remote, trio.current_time())

    def enter_table(self, first: bytes) -> None:
        """Be the one whom packets are for that bear its own ids, or the id that the dialler first gave it."""
        self._answer_to(first)
        self._answer_to(self._quic.host_cid)

    def _answer_to(self, connection_id: bytes) -> None:
        self._ids.add(connection_id)
        self._table[connection_id] = self

    async def receive(self, data: bytes, address: Address) -> None:
        """Take in a datagram."""
        self._heard_at = trio.current_time()
        try:
            self._quic.receive_datagram(data, address, self._heard_at)
            self._take_events()
        except Exception as error:  # noqa: BLE001 - a stranger sent it: anything may come out of upstream
            self._fail(QuicErrorCode.INTERNAL_ERROR, repr(error))
        if not self._is_client and not self._quic.has_begun:
            self._fail(QuicErrorCode.PROTOCOL_VIOLATION, "what it began with is no QUIC")
        self.wake()

    def on_refusal(self) -> None:
        """Take in that nobody listens at the other end. Later on it proves nothing: anybody can write such a packet."""
        if not self._quic.has_begun:
            self._is_refused = True
            self._fail(QuicErrorCode.NO_ERROR, "nobody listens there")
            self.wake()

    def wake(self) -> None:
        """Have `run` look at what there is to do."""
        self._awake.set()

    def settle(self, stream: QuicStream) -> None:
        """Send what a stream has just ended with, and forget it if nothing more comes of it."""
        if stream.is_done:
            self._streams.pop(stream.stream_id, None)
        self.wake()

    def _take_events(self) -> None:
        while self._quic.end is None and (event := self._quic.next_event()) is not None:
            self._take(event)
        if self._is_client and self._is_proven and self._quic.is_confirmed:
            self._ready.set()  # not earlier: until now the other side may have refused us
        if is_too_much(self.unread, 0, self._terms.all_of_node):
            self._fail(QuicErrorCode.INTERNAL_ERROR, "too many unread bytes on all connections")
        self._let_go_on()

    def _take(self, event: QuicEvent) -> None:
        match event:
            case HandshakeCompleted():
                self._prove()
            case StreamDataReceived():
                stream = self._stream(event.stream_id)
                stream.take(event.data, is_end=event.end_stream)
                self.settle(stream)
            case StreamReset():
                stream = self._stream(event.stream_id)
                stream.break_off()
                self.settle(stream)
            case StopSendingReceived() if event.stream_id in self._streams:
                stream = self._streams[event.stream_id]
                stream.wake()
                self.settle(stream)
            case PingAcknowledged() if event.uid in self._answers:
                self._answers[event.uid].set()
            case ConnectionIdIssued():
                self._answer_to(event.connection_id)
            case ConnectionIdRetired():
                self._table.pop(event.connection_id, None)
                self._ids.discard(event.connection_id)
            case _:
                pass

    def _prove(self) -> None:
        try:
            self.peer_id = self._terms.prove(self._quic.chain, self._expected)
        except SecurityUpgradeFailure as error:
            self._fail(_CERTIFICATE_REFUSED, str(error))
            return
        self._is_proven = True
        if not self._is_client:
            self._ready.set()

    def _stream(self, stream_id: int) -> QuicStream:
        known = self._streams.get(stream_id)
        if known is not None:
            return known
        stream = self._streams[stream_id] = QuicStream(self, self._quic, stream_id)
        self._used.set()
        try:
            self._arrive.send_nowait(stream)
        except trio.WouldBlock:
            self._fail(QuicErrorCode.STREAM_LIMIT_ERROR, "streams come and go too fast")
        return stream

    def _fail(self, code: int, why: str) -> None:
        _log.debug("a QUIC connection with %s fails: %s", self.remote, why)
        self._failure = why
        self._quic.close(code, reason_phrase=why if code == QuicErrorCode.STREAM_LIMIT_ERROR else "")

    def _let_go_on(self) -> None:
        for stream in self._streams.values():
            stream.let_write()
        if self._quic.may_open:
            self._openers.unpark_all()
        if self._closers and self._quic.is_delivered:
            self._closers.unpark_all()

    # what goes

    async def run(self) -> None:
        """Do the work of the connection until it ends. The socket is somebody else's."""
        try:
            is_over = False
            while not is_over:
                self._awake = trio.Event()
                is_over = self.is_over
                for data, address in self._quic.datagrams_to_send(trio.current_time()):
                    await self._socket.send(data, address)
                if not is_over:
                    await self._wait()
        except Exception as error:  # noqa: BLE001 - a stranger's packets led here: anything may come out of upstream
            self._failure = repr(error)
            _log.debug("a QUIC connection with %s broke: %r", self.remote, error)
        finally:
            self._finish()

    async def _wait(self) -> None:
        timer = self._quic.get_timer()
        quiet_until = self._heard_at + _KEEP_ALIVE
        with trio.move_on_at(quiet_until if timer is None else min(timer + _GRAIN, quiet_until)):
            await self._awake.wait()
        now = trio.current_time()
        if timer is not None and timer + _GRAIN <= now:
            self._quic.handle_timer(now)
            self._take_events()
        if quiet_until <= now:
            self._heard_at = now
            self._quic.send_ping(0)

    def _finish(self) -> None:
        self._quic.close()  # for those who ask whether it is over
        self.event_closed.set()
        self._ready.set()
        self._used.set()
        self._arrive.close()
        for stream in self._streams.values():
            stream.wake()
        for event in self._answers.values():
            event.set()
        self._openers.unpark_all()
        self._closers.unpark_all()
        for one in self._ids:
            self._table.pop(one, None)
