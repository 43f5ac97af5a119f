"""Whom a listening socket lets in: what a stranger's first packet is answered with.

A dial costs nothing here until the sender has room and a turn. When half of the turns are taken, senders first have to
show that they get what is sent to their address (a Retry): else anybody could take every turn in others' names.
"""

import os
from typing import Final, Protocol

import trio
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # imported there for others, without saying so
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.connection import TRANSPORT_CLOSE_FRAME_CAPACITY
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from loremesh.network.addresses import Endpoint, Transport, endpoint_of_socket
from loremesh.network.quic.connection import QuicMuxed, Terms
from loremesh.network.quic.credit import CreditedConnection
from loremesh.network.quic.sockets import DatagramSocket
from loremesh.network.udp import Address

_VERSION: Final = QuicProtocolVersion.VERSION_1
_ID_LENGTH: Final = 8
_WAITING: Final = 64
"""Dials that may wait for their turn; whoever is beyond sends again."""


class Door(Protocol):
    """Who decides about connections that others open."""

    def may_enter(self, address: str) -> bool:
        """Tell whether there is room for one more connection from an IP address."""

    def is_crowded(self) -> bool:
        """Tell whether so many handshakes are under way that a sender must prove its address first."""

    async def take_turn(self, connection: QuicMuxed) -> bool:
        """Wait until a handshake may begin; tell whether that was in time."""

    async def serve_quic(self, connection: QuicMuxed) -> None:
        """Serve a connection that took a turn until it ends; give the turn back when the handshake is over."""


class QuicListener:
    """One UDP port at which others open connections."""

    def __init__(self, socket: trio.socket.SocketType, terms: Terms) -> None:
        self._socket = DatagramSocket(socket)
        self._terms = terms
        self._tokens = QuicRetryTokenHandler()
        self._connections: dict[bytes, QuicMuxed] = {}
        self._waiting = set[bytes]()
        self._welcome: trio.Nursery | None = None
        self._door: Door | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where that is, wildcards as they are."""
        return endpoint_of_socket(self._socket.name, Transport.QUIC)

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    async def serve(self, door: Door, handlers: trio.Nursery) -> None:
        """Let others in until cancelled. The socket stays open in `handlers`, for those who are in."""
        handlers.start_soon(self._socket.run, self._deliver, _nothing)
        self._door, self._welcome = door, handlers
        try:
            await trio.sleep_forever()
        finally:
            self._door = self._welcome = None

    async def _deliver(self, data: bytes, address: Address) -> None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=_ID_LENGTH)
        except ValueError:
            return
        connection = self._connections.get(header.destination_cid)
        if connection is not None:
            await connection.receive(data, address)
            return
        is_dial = header.packet_type is QuicPacketType.INITIAL and self._door is not None
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return
        if header.version is not None and header.version != _VERSION:
            await self._socket.send(_other_version(header), address)
        elif is_dial:
            await self._meet(header, data, address)

    async def _meet(self, header: QuicHeader, data: bytes, address: Address) -> None:
        assert self._door is not None and self._welcome is not None  # noqa: S101, PT018 - our caller has looked
        if header.destination_cid in self._waiting or len(self._waiting) >= _WAITING:
            return
        first, retried = header.destination_cid, None
        if not self._door.may_enter(str(address[0])):
            await self._socket.send(_refusal(header, QuicErrorCode.CONNECTION_REFUSED), address)
            return
        if header.token:
            try:
                first = self._original(header, address)
            except ValueError:
                await self._socket.send(_refusal(header, QuicErrorCode.INVALID_TOKEN), address)
                return
            retried = header.destination_cid
        elif self._door.is_crowded():
            await self._socket.send(self._retry(header, address), address)
            return
        terms = self._terms
        settings = terms.configuration(is_client=False)
        quic = CreditedConnection(settings, terms.max_streams, first_destination=first, retried=retried)
        connection = QuicMuxed(quic, terms, self._socket, address, table=self._connections)
        self._waiting.add(header.destination_cid)
        self._welcome.start_soon(self._let_in, self._door, connection, header.destination_cid, data)

    async def _let_in(self, door: Door, connection: QuicMuxed, first: bytes, data: bytes) -> None:
        try:
            if not await door.take_turn(connection):
                return
        finally:
            self._waiting.discard(first)
        connection.enter_table(first)
        await connection.receive(data, connection.remote)
        await door.serve_quic(connection)

    def _retry(self, header: QuicHeader, address: Address) -> bytes:
        source = os.urandom(_ID_LENGTH)
        token = self._tokens.create_token(
            address=address,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source,
            now=trio.current_time(),
        )
        return encode_quic_retry(
            version=_VERSION,
            source_cid=source,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def _original(self, header: QuicHeader, address: Address) -> bytes:
        return self._tokens.validate_token(
            address=address, destination_cid=header.destination_cid, token=header.token, now=trio.current_time()
        )


def _other_version(header: QuicHeader) -> bytes:
    return encode_quic_version_negotiation(
        source_cid=header.destination_cid, destination_cid=header.source_cid, supported_versions=[_VERSION]
    )


def _refusal(header: QuicHeader, code: int) -> bytes:
    """Write the packet that ends a dial for which nothing was kept; its keys follow from the packet it answers."""
    keys = CryptoPair()
    keys.setup_initial(cid=header.destination_cid, is_client=False, version=_VERSION)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
        peer_cid=header.source_cid,
        version=_VERSION,
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=TRANSPORT_CLOSE_FRAME_CAPACITY)
    for number in (code, QuicFrameType.PADDING, 0):  # the frame at fault, and the length of a reason: neither is said
        frame.push_uint_var(number)
    [datagram], _ = builder.flush()
    return bytes(datagram)


def _nothing() -> None:
    """A bound socket hears of no refusals."""
