"""Bytes off a socket: `libp2p.io.trio.TrioTCPStream`.

Symptom: every read goes to the kernel, and upstream reads a length of one or two bytes before every message: a
connection takes some thirty calls more than it need, and every frame one.
"""

import math
from typing import Final

import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from trio.testing import wait_all_tasks_blocked

from loremesh.network.locks import EagerLock
from loremesh.primitives import KIB

_CHUNK: Final = 64 * KIB
_BITE: Final = KIB // 2
"""Bytes: some frames of a newcomer's, which are less than a millisecond of work."""
_LULL: Final = 0.001
"""Seconds in which nobody wanted anything: longer than what lies between two messages of one call nearby."""
_PATIENCE: Final = 0.05
"""Seconds after which no lull is waited for any more: newcomers get on in a busy node too, if slowly."""


class BufferedStream(TrioTCPStream):
    """A socket that is asked for more than is wanted at once, and of which at most 64 KiB wait unread."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self.read_lock, self.write_lock = EagerLock(), EagerLock()  # type: ignore[assignment]  # entered, no more
        self._unread = bytearray()
        self._last: trio.Lock | None = None
        self._last_until = -math.inf

    def come_last(self, seconds: float, others: trio.Lock) -> None:
        """Read little at a time for so long, and only when nobody else wants anything of this node.

        Args:
            seconds: From now on.
            others: Shared by all who come last: they take turns, too.
        """
        self._last, self._last_until = others, trio.current_time() + seconds

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
            if self._last is None or trio.current_time() >= self._last_until:
                return await self.stream.receive_some(_CHUNK)
            await trio.lowlevel.wait_readable(self.stream.socket)
            async with self._last:
                with trio.move_on_after(_PATIENCE):
                    await wait_all_tasks_blocked(_LULL)
            return await self.stream.receive_some(_BITE)
        except trio.BrokenResourceError as error:
            raise ConnectionClosedError("the socket broke", transport="tcp") from error
        except trio.ClosedResourceError:
            return b""  # closed on this side: an end like any other, as upstream has it
