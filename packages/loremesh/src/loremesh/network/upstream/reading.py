"""Reads that give up: `libp2p.io.utils.read_exactly` stops after 101 pieces.

Symptom: a message that arrives in more than 101 pieces (300 KB in pieces of 1 KB) fails as "connection closed", and a
gossip or Kademlia peer behind a slow link loses its stream. The function is imported by name into several modules, so
every module that holds the stock one gets ours.
"""

import sys
from typing import Final

from libp2p.io import utils
from libp2p.io.abc import Reader
from libp2p.io.exceptions import IncompleteReadError

from loremesh.primitives import KIB

_EMPTY_READS: Final = 100
"""Upstream's transports answer b"" after the end of the connection, and only then for so many times."""

_CHUNK: Final = 16 * KIB

_stock = utils.read_exactly


async def read_exactly(reader: Reader, n: int, retry_count: int = _EMPTY_READS) -> bytes:
    """Read `n` bytes in however many pieces they come.

    Raises:
        IncompleteReadError: The reader gave nothing, `retry_count` times in a row.
    """
    buffer = bytearray()
    empty = 0
    while len(buffer) < n and empty <= retry_count:
        piece = await reader.read(n - len(buffer))
        buffer += piece
        empty = 0 if piece else empty + 1
    if len(buffer) < n:
        raise IncompleteReadError(f"ended after {len(buffer)} of {n} bytes", n, len(buffer))
    return bytes(buffer)


class BufferedReader(Reader):
    """Reads ahead, up to 16 KiB: whoever wants a byte and then a few gets both from one read."""

    def __init__(self, source: Reader) -> None:
        self._source = source
        self._unread = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        """Give what is there, at most `n` bytes; without a pause if something was read ahead."""
        if not self._unread:
            self._unread += await self._source.read(_CHUNK)
        piece = bytes(self._unread[:n])
        del self._unread[: len(piece)]
        return piece


def install() -> None:
    """Put `read_exactly` in the place of the stock one, in the whole process; again does nothing."""
    for name, module in list(sys.modules.items()):
        if name.startswith("libp2p.") and getattr(module, "read_exactly", None) is _stock:
            module.read_exactly = read_exactly  # type: ignore[attr-defined]  # a module of upstream's, see above
