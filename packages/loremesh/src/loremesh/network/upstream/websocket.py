"""Bytes over a WebSocket, in place of `libp2p.transport.websocket`.

Symptoms of the stock transport: it listens through a server of its own, where neither our limits on connections and
handshakes nor our way to bind a port hold; it answers with compression, so that a small message can be a large one.

Only the framing is done here: noise secures what is inside as it does on TCP, so `wss` would add nothing but a
certificate. Nothing larger than one read from the socket is ever kept.
"""

from typing import Final

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from loremesh.primitives import KIB

_CHUNK: Final = 64 * KIB


class WebSocketStream(ReadWriteCloser):
    """The binary messages of one WebSocket as one stream of bytes."""

    def __init__(self, socket: trio.SocketStream, side: ConnectionType) -> None:
        self._socket = socket
        self._frames = WSConnection(side)
        host, port = socket.socket.getpeername()[:2]
        self._remote = str(host), int(port)
        self._unread = bytearray()
        self._is_open = False
        self._is_over = False
        self._reading = trio.Lock()
        self._writing = trio.Lock()

    async def open(self, host: str) -> None:
        """Ask for a WebSocket, or answer the request for one. The caller sets the deadline.

        Raises:
            ConnectionClosedError: The other side does not speak it, or went away.
        """
        if self._frames.client:
            await self._send(Request(host=host, target="/"))
        while not self._is_open:
            await self._receive()

    async def read(self, n: int | None = None) -> bytes:
        """Give what is there, at most `n` bytes; nothing after the end."""
        async with self._reading:
            while not self._unread and not self._is_over:
                await self._receive()
            piece = bytes(self._unread[:n])
            del self._unread[: len(piece)]
            return piece

    async def write(self, data: bytes) -> None:
        """Send one message."""
        await self._send(BytesMessage(data=data))

    async def close(self) -> None:
        """Close the socket; noise and yamux have said what there was to say."""
        await self._socket.aclose()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Tell where the other end of the socket is."""
        return self._remote

    async def _receive(self) -> None:
        try:
            await self._take_all()  # what came in one piece with the handshake waits inside already
            if self._unread or self._is_over:
                return
            data = await self._socket.receive_some(_CHUNK)
            self._is_over = not data
            self._frames.receive_data(data or None)
            await self._take_all()
        except ProtocolError as error:
            raise ConnectionClosedError(f"no WebSocket: {error}", transport="websocket") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("the socket broke", transport="websocket") from error
        if self._is_over and not self._is_open:
            raise ConnectionClosedError("no WebSocket here", transport="websocket")

    async def _take_all(self) -> None:
        for event in self._frames.events():
            await self._take(event)

    async def _take(self, event: Event) -> None:
        match event:
            case BytesMessage():
                self._unread += event.data
            case Request():
                await self._send(AcceptConnection())
                self._is_open = True
            case AcceptConnection():
                self._is_open = True
            case Ping():
                await self._send(event.response())
            case CloseConnection() | RejectConnection() | TextMessage():
                self._is_over = True
            case _:
                pass

    async def _send(self, event: Event) -> None:
        async with self._writing:
            try:
                await self._socket.send_all(self._frames.send(event))
            except ProtocolError as error:
                raise ConnectionClosedError("the WebSocket is closed", transport="websocket") from error
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ConnectionClosedError("the socket broke", transport="websocket") from error
