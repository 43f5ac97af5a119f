"""Serves an application over HTTP within bounds, whoever connects: hypercorn speaks, the bounds are ours.

Hypercorn 0.18 by itself takes any number of connections, lets one request that it cannot digest end the whole nursery
(an upgrade to h2c with garbage settings does), and shields a write from cancellation, so that a client that never reads
holds up the node's end. Here each connection is counted, contained, and has a deadline that reaches inside its shields.
"""

import logging
import math
from dataclasses import dataclass
from typing import Final, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from loremesh.errors import MachineError, UsageError

logger = logging.getLogger("loremesh.web")


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may take.

    Attributes:
        connections: Most at once; the next ones are closed.
        lifetime: Seconds from the first byte of a connection to its last, however many requests it carries.
        idle: Seconds to wait for the whole head of a request.
        head: Bytes of a request's head.
        received: Bytes taken in on one connection.
        stall: Seconds that a client may take to make room for one write.
    """

    connections: int = 64
    lifetime: float = 10.0
    idle: float = 5.0
    head: int = 16 * 1024
    received: int = 64 * 1024
    stall: float = math.inf


_USUAL: Final = Limits()


async def listen(address: str, flag: str = "--http") -> list[trio.SocketListener]:
    """Listen at HOST:PORT.

    Args:
        address: Where.
        flag: Who asked for it.

    Raises:
        UsageError: There is no such host.
        MachineError: The port is taken, or not ours to take.
    """
    host, _, port = address.rpartition(":")
    try:
        return await trio.open_tcp_listeners(int(port), host=host.removeprefix("[").removesuffix("]"))
    except trio.socket.gaierror as error:
        raise UsageError(f"{flag} {address}: {host} is no address of this machine ({error.strerror})") from error
    except OSError as error:
        raise MachineError(f"cannot serve HTTP at {address}: {error.strerror or error}") from error


def bound_address(listener: trio.SocketListener) -> str:
    """Give where a listener listens, as HOST:PORT."""
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(app: ASGIApp, listeners: list[trio.SocketListener], limits: Limits = _USUAL) -> None:
    """Serve until cancelled; then every socket is closed at once, whatever clients do."""
    server = _Server(app, limits)
    async with trio.open_nursery() as nursery:
        try:
            await trio.serve_listeners(server.take, listeners, handler_nursery=nursery)
        finally:
            server.hang_up()


class _Server:
    """Counts connections, and hands those there is room for to hypercorn."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._limits = limits
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = logger
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = limits.head
        self._config.keep_alive_timeout = limits.idle
        self._app = wrap_app(cast(ASGIFramework, app), 0, "asgi")
        self._context = WorkerContext(None)
        self._open = set[trio.SocketStream]()

    async def take(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end; nothing that a client does leaves this function."""
        if len(self._open) >= self._limits.connections:
            await trio.aclose_forcefully(stream)
            return
        self._open.add(stream)
        try:
            async with stream:
                with trio.move_on_after(self._limits.lifetime):
                    # All that hypercorn asks of an unencrypted stream is what a bounded one has.
                    bounded = cast("trio.SSLStream[trio.SocketStream]", _BoundedStream(stream, self._limits))
                    await TCPServer(self._app, self._config, self._context, ConnectionState({}), bounded)
        except* Exception:  # whatever it is: a request must not be a way to end the node
            logger.debug("an HTTP connection ended by a request that could not be served", exc_info=True)
        finally:
            self._open.discard(stream)

    def hang_up(self) -> None:
        """Close every connection."""
        for stream in self._open:
            # What cancels us does not reach a write inside hypercorn's shield; a closed socket does.
            stream.socket.close()


class _BoundedStream:
    """A client's stream with a deadline and a size; as much of a stream as hypercorn uses."""

    def __init__(self, stream: trio.SocketStream, limits: Limits) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._deadline = trio.current_time() + limits.lifetime
        self._stall = limits.stall
        self._left = limits.received

    async def receive_some(self, most: int) -> bytes:
        """Give what has come, unless it is too much."""
        data = await self._stream.receive_some(most)
        self._left -= len(data)
        if self._left < 0:
            raise trio.BrokenResourceError("the client sent too much")
        return bytes(data)

    async def send_all(self, data: bytes) -> None:
        """Send all of `data` before the deadline."""
        # Inside hypercorn's shield, so that this is what ends a write that nobody reads.
        with trio.move_on_at(min(self._deadline, trio.current_time() + self._stall)):
            await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()
