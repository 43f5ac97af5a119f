"""`upstream/reading.py`: a message may come in any number of pieces."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from loremesh.network.upstream import reading

from libp2p.io.exceptions import IncompleteReadError  # isort: skip


class Pieces:
    """A reader that gives one byte at a time and then nothing."""

    def __init__(self, data: bytes) -> None:
        self._data = bytearray(data)

    async def read(self, n: int | None = None) -> bytes:
        piece = bytes(self._data[: min(1, n or 1)])
        del self._data[: len(piece)]
        return piece


async def test_many_pieces_make_one_message() -> None:
    assert await reading.read_exactly(Pieces(b"x" * 500), 500) == b"x" * 500  # type: ignore[arg-type]  # it only reads


@pytest.mark.parametrize("length", [0, 499])
async def test_an_end_in_between_is_an_incomplete_read(length: int) -> None:
    with pytest.raises(IncompleteReadError) as incomplete:
        await reading.read_exactly(Pieces(bytes(length)), 500)  # type: ignore[arg-type]  # as above
    assert incomplete.value.received_bytes == length


def test_every_module_that_reads_uses_ours() -> None:
    reading.install()
    for name in ("libp2p.io.utils", "libp2p.io.msgio", "libp2p.utils.varint", "libp2p.stream_muxer.yamux.yamux"):
        importlib.import_module(name)
        assert vars(sys.modules[name])["read_exactly"] is reading.read_exactly


async def test_canary_stock_reading_still_gives_up_after_a_hundred_pieces() -> None:
    stock: Callable[..., Any] = reading._stock
    try:
        await stock(Pieces(b"x" * 500), 500)
    except IncompleteReadError:
        return
    pytest.fail("upstream reads in any number of pieces now: upstream/reading.py can go")
