"""`upstream/reading.py`: a message may come in any number of pieces."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.network.upstream import reading

from libp2p.io.exceptions import IncompleteReadError  # isort: skip
from libp2p.utils import encode_varint_prefixed  # isort: skip
from libp2p.utils.varint import read_varint_prefixed_bytes_limited  # isort: skip


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


class Chunks:
    """A reader that gives as much as the sender wrote at once."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks
        self.reads = 0

    async def read(self, n: int | None = None) -> bytes:
        self.reads += 1
        if not self._chunks:
            return b""
        chunk = self._chunks.pop(0)
        if n is not None and len(chunk) > n:
            self._chunks.insert(0, chunk[n:])
        return chunk[:n]


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 400)))
async def test_frames_are_the_same_in_whatever_pieces_they_come(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(encode_varint_prefixed, frames))
    chunks = []
    for cut in cuts:
        chunks.append(data[:cut])
        data = data[cut:]
    reader = reading.BufferedReader(Chunks([chunk for chunk in [*chunks, data] if chunk]))  # type: ignore[arg-type]  # it only reads
    assert [await read_varint_prefixed_bytes_limited(reader, 300) for _ in frames] == frames
    with pytest.raises(IncompleteReadError):
        await read_varint_prefixed_bytes_limited(reader, 300)


async def test_a_length_and_what_it_is_of_take_one_read() -> None:
    source = Chunks([encode_varint_prefixed(bytes(1000)) * 3])
    reader = reading.BufferedReader(source)  # type: ignore[arg-type]  # as above
    for _ in range(3):
        assert await read_varint_prefixed_bytes_limited(reader, 1000) == bytes(1000)
    assert source.reads == 1


async def test_canary_stock_reading_still_gives_up_after_a_hundred_pieces() -> None:
    stock: Callable[..., Any] = reading._stock
    try:
        await stock(Pieces(b"x" * 500), 500)
    except IncompleteReadError:
        return
    pytest.fail("upstream reads in any number of pieces now: upstream/reading.py can go")
