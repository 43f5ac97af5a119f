"""Streams that take the node with them: `SwarmConn._handle_muxed_stream` and `BasicHost.new_stream`.

Symptoms: an exception of a stream handler, ours or upstream's, reaches the swarm's nursery and ends the process, so
that any peer that can make a handler raise can end the node; a stream that was half closed stays in the table for
good; a stream that broke reads like one that ended; a peer that does not speak a protocol and one that cannot be
reached are the same `StreamFailure`.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import IOException
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import MultiselectClientError
from libp2p.stream_muxer.exceptions import MuxedConnError, MuxedStreamError

from loremesh.errors import DeadlinePassed, Unreachable, UnsupportedProtocol
from loremesh.network.upstream.muxing import is_reset

_log = logging.getLogger("loremesh.network")
_LINGER: Final = 5.0
_BROKEN: Final = (IOException, MuxedStreamError, MuxedConnError, SwarmException)


class StreamPipe:
    """A libp2p stream as `loremesh.network.frames.Pipe`."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._finished = False

    async def write(self, data: bytes) -> None:
        """Hand over all of `data` in one write, or raise Unreachable."""
        try:
            await self._stream.write(data)
        except _BROKEN as error:
            raise Unreachable(f"the stream broke while sending: {error}") from error

    async def read(self, most: int) -> bytes:
        """Give 1 to `most` bytes, none once the other side has finished, or raise Unreachable."""
        try:
            return await self._stream.read(most)
        except StreamEOF as error:
            if _is_broken(self._stream):
                raise Unreachable("the stream broke while receiving") from error
            return b""
        except _BROKEN as error:
            raise Unreachable(f"the stream broke while receiving: {error}") from error

    async def finish(self) -> None:
        """Tell the other side that no more bytes follow."""
        if self._finished:
            return
        self._finished = True
        try:
            assert isinstance(self._stream, NetStream)  # noqa: S101 - upstream's interface does not name close_write
            await self._stream.close_write()
        except _BROKEN as error:
            raise Unreachable(f"the stream broke while finishing: {error}") from error

    async def reset(self) -> None:
        """Give the stream up, in both directions; never raises."""
        self._finished = True
        await reset(self._stream)

    async def linger(self) -> None:
        """Leave the stream politely: finish, then wait a while for the other side to finish too, then reset.

        A reset at once would take from the other side what it has not read yet; never resetting would keep the
        stream in both tables until the connection ends.
        """
        try:
            with trio.move_on_after(_LINGER):
                await self.finish()
                while await self.read(65536):
                    pass
                await self._stream.close()
                return
        except Unreachable:
            pass
        await self.reset()


def _is_broken(stream: INetStream) -> bool:
    return isinstance(stream, NetStream) and is_reset(stream.muxed_stream)


async def reset(stream: INetStream) -> None:
    """Reset a stream whatever its state; never raises, even when called in a cancelled scope."""
    with trio.CancelScope(shield=True), trio.move_on_after(1):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001 - whatever upstream raises here, the stream is gone
            _log.debug("resetting a stream failed: %r", error)


def contain(handler: Callable[[INetStream], Awaitable[None]]) -> Callable[[INetStream], Awaitable[None]]:
    """Make a handler of all inbound streams that no stream can end the node with."""

    async def contained(stream: INetStream) -> None:
        try:
            await handler(stream)
        except Exception as error:  # noqa: BLE001 - the purpose of this module
            _log.debug("an inbound stream of %s failed: %r", stream.muxed_conn.peer_id, error)
            await reset(stream)
        except BaseException:
            await reset(stream)
            raise

    return contained


@asynccontextmanager
async def opened(
    host: BasicHost,
    peer_id: ID,
    protocol: str,
    timeout: float,  # noqa: ASYNC109 - the surface takes seconds
    linger: Callable[[StreamPipe], None],
) -> AsyncIterator[StreamPipe]:
    """Open a stream on an existing connection; reset it if the block raises, hand it to `linger` if it does not.

    Raises:
        UnsupportedProtocol: The peer is there but does not speak `protocol`.
        Unreachable: The stream could not be opened.
        DeadlinePassed: Not within `timeout` seconds.
    """
    pipe = StreamPipe(await _open(host, peer_id, protocol, timeout))
    try:
        yield pipe
    except BaseException:
        await pipe.reset()
        raise
    linger(pipe)


async def _open(host: BasicHost, peer_id: ID, protocol: str, timeout: float) -> INetStream:  # noqa: ASYNC109 - as above
    with trio.move_on_after(timeout):
        try:
            return await host.new_stream(peer_id, [TProtocol(protocol)])
        except MultiselectClientError as error:
            raise Unreachable(f"no stream: {error}") from error
        except Exception as error:
            # Upstream says "protocols not supported" in words only, in the error behind its StreamFailure.
            if "not supported" in str(error.__cause__):
                raise UnsupportedProtocol(f"the peer does not speak {protocol}") from error
            raise Unreachable(f"no stream for {protocol}: {error.__cause__ or error}") from error
    raise DeadlinePassed(f"no stream for {protocol} within {timeout:g} s")
