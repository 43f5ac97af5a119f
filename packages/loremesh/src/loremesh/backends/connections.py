"""HTTP connections to a backend that are kept from call to call. The only door to `httpx2` and `httpcore2`.

The other side may close a connection that rests just when the next request is on its way. Where that request was the
first to find out, and nothing came back, it is sent once more, over a new connection.
"""

import ssl
from collections.abc import AsyncGenerator, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import httpcore2
import httpx2

REST: Final = 4.0
"""Seconds for which a connection is kept: many servers close theirs after five."""
_MOST_RESTING: Final = 128
_GONE: Final = (httpcore2.ReadError, httpcore2.WriteError, httpcore2.RemoteProtocolError)

Bytes = AsyncGenerator[bytes, None]
Response = httpx2.Response
NONE_KEPT: Final = httpx2.Limits(max_keepalive_connections=0)
"""For a client with connections of its own, which sends nothing twice."""


@dataclass(slots=True)
class _Sending:
    """What became of one request on its way."""

    has_connected: bool = False
    """A connection was made for it."""
    was_heard: bool = False
    """Something came back."""


_sending: ContextVar[_Sending] = ContextVar("_sending")


class KeptConnections(httpx2.AsyncBaseTransport):
    """Carries requests whose bodies are in memory.

    Args:
        rest: Seconds for which a connection is kept.
    """

    def __init__(self, rest: float = REST) -> None:
        sockets, trusted = _Sockets(), httpx2.create_ssl_context()

        def pool(resting: int) -> httpcore2.AsyncConnectionPool:
            return httpcore2.AsyncConnectionPool(
                ssl_context=trusted,
                max_connections=None,
                max_keepalive_connections=resting,
                keepalive_expiry=rest,
                network_backend=sockets,
            )

        self._kept, self._new = pool(_MOST_RESTING), pool(0)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request, at most twice; the answer's body is still to be read, and the answer to be closed.

        Raises:
            httpx2.ConnectTimeout: No connection in time.
            httpx2.TransportError: No connection, or it broke before the answer began.
        """
        url = request.url
        asked = httpcore2.Request(
            request.method,
            httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.content,
            extensions=request.extensions,
        )
        try:
            answered = await self._send(asked)
        except httpcore2.ConnectTimeout as error:
            raise httpx2.ConnectTimeout(str(error), request=request) from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
            raise httpx2.TransportError(str(error) or type(error).__name__, request=request) from error
        return Response(
            answered.status, headers=answered.headers, stream=_Body(answered), extensions=answered.extensions
        )

    async def _send(self, asked: httpcore2.Request) -> httpcore2.Response:
        sending = _Sending()
        before = _sending.set(sending)
        try:
            return await self._kept.handle_async_request(asked)
        except _GONE:
            if sending.has_connected or sending.was_heard:
                raise
            return await self._new.handle_async_request(asked)
        finally:
            _sending.reset(before)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._kept.aclose()
        await self._new.aclose()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, answered: httpcore2.Response) -> None:
        self._answered = answered

    def __aiter__(self) -> Bytes:
        return self._answered.aiter_stream()

    async def aclose(self) -> None:
        await self._answered.aclose()


class _Sockets(httpcore2.AsyncNetworkBackend):
    """Makes connections that tell whoever sends what they see."""

    def __init__(self) -> None:
        self._trio = httpcore2.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore2's own signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        _sending.get().has_connected = True
        return _Connection(await self._trio.connect_tcp(host, port, timeout, local_address, socket_options))


class _Connection(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - as above
        data = await self._stream.read(max_bytes, timeout)
        if data and (sending := _sending.get(None)) is not None:
            sending.was_heard = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> httpcore2.AsyncNetworkStream:
        return _Connection(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
