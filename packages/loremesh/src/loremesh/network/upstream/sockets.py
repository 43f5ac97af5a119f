"""Bytes off a socket: `libp2p.io.trio.TrioTCPStream`.

Symptom: every read goes to the kernel, and upstream reads a length of one or two bytes before every message: a
connection takes some thirty calls more than it need, and every frame one.
"""

from typing import Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream

from loremesh.network.locks import EagerLock
from loremesh.primitives import KIB

_CHUNK: Final = 64 * KIB


class BufferedStream(TrioTCPStream):
    """A socket that is asked for more than is wanted at once, and of which at most 64 KiB wait unread."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.read_lock, self.write_lock = EagerLock(), EagerLock()  # type: ignore[assignment]  # entered, no more
        self._unread = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        """Give what is there, at most `n` bytes; nothing after the end."""
        if not self._unread and n != 0:
            async with self.read_lock:
                if not self._unread:
                    self._unread += await self._receive()
        piece = bytes(self._unread[:n])
        del self._unread[: len(piece)]
        return piece

    async def _receive(self) -> bytes:
        try:
            return await self.stream.receive_some(_CHUNK)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("the socket broke", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""  # closed on this side: an end like any other, as upstream has it
