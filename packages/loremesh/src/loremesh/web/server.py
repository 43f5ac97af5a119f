"""Serves an application over HTTP within bounds, whoever connects: hypercorn speaks, the bounds are ours.

Hypercorn 0.18 by itself takes any number of connections, lets one request that it cannot digest end the whole nursery
(an upgrade to h2c with garbage settings does), and shields a write from cancellation, so that a client that never reads
holds up the node's end. Here each connection is counted, contained, and has a deadline that reaches inside its shields.
"""

import logging
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

MAX_CONNECTIONS: Final = 64
LIFETIME: Final = 10.0
"""Seconds from the first byte to the last of a connection, however many requests it carries."""
MAX_HEADER: Final = 16 * 1024
MAX_BYTES: Final = 64 * 1024
"""Most bytes taken in on one connection."""
_HEADER_TIMEOUT: Final = 5
_GRACE: Final = 1.0


async def listen(address: str) -> list[trio.SocketListener]:
    """Listen at HOST:PORT.

    Raises:
        UsageError: There is no such host.
        MachineError: The port is taken, or not ours to take.
    """
    host, _, port = address.rpartition(":")
    try:
        return await trio.open_tcp_listeners(int(port), host=host.removeprefix("[").removesuffix("]"))
    except trio.socket.gaierror as error:
        raise UsageError(f"--http {address}: {host} is no address of this machine ({error.strerror})") from error
    except OSError as error:
        raise MachineError(f"cannot serve HTTP at {address}: {error.strerror or error}") from error


def bound_address(listener: trio.SocketListener) -> str:
    """Give where a listener listens, as HOST:PORT."""
    host, port = listener.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def serve(app: ASGIApp, listeners: list[trio.SocketListener]) -> None:
    """Serve until cancelled; then no socket is left open, whatever clients do."""
    server = _Server(app)
    async with trio.open_nursery() as nursery:
        await trio.serve_listeners(server.take, listeners, handler_nursery=nursery)


class _Server:
    """Counts connections, and hands those there is room for to hypercorn."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = Config()
        self._config.accesslog = None
        self._config.errorlog = logger
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = MAX_HEADER
        self._config.keep_alive_timeout = _HEADER_TIMEOUT
        self._app = wrap_app(cast(ASGIFramework, app), 0, "asgi")
        self._context = WorkerContext(None)
        self._open = 0

    async def take(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end; nothing that a client does leaves this function."""
        if self._open >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            async with stream:
                with trio.move_on_after(LIFETIME + _GRACE):
                    # All that hypercorn asks of an unencrypted stream is what a bounded one has.
                    bounded = cast("trio.SSLStream[trio.SocketStream]", _BoundedStream(stream))
                    await TCPServer(self._app, self._config, self._context, ConnectionState({}), bounded)
        except* Exception:  # whatever it is: a request must not be a way to end the node
            logger.debug("an HTTP connection ended by a request that could not be served", exc_info=True)
        finally:
            self._open -= 1


class _BoundedStream:
    """A client's stream with a deadline and a size; as much of a stream as hypercorn uses."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream
        self._deadline = trio.current_time() + LIFETIME
        self._left = MAX_BYTES

    async def receive_some(self, most: int) -> bytes:
        """Give what has come."""
        with trio.move_on_at(self._deadline):
            data = await self._stream.receive_some(most)
            self._left -= len(data)
            if self._left >= 0:
                return bytes(data)
        raise trio.BrokenResourceError("the client took too long, or sent too much")

    async def send_all(self, data: bytes) -> None:
        """Send all of `data` before the deadline."""
        # Inside hypercorn's shield, so that this is what ends a write that nobody reads.
        with trio.move_on_at(self._deadline):
            await self._stream.send_all(data)
            return
        raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._stream.aclose()
