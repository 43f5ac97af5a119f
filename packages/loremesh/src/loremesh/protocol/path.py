"""A chain's path: the block of each height, in a fifth of the memory that a map from height to hash takes.

Immutable, as all that fork choice knows: a change gives a new path, which shares with the old one all but the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from loremesh.primitives import HASH_BYTES, Hash
from loremesh.protocol.persistent import Map

_TOGETHER: Final = 8
"""Hashes in a piece: with more of them, to add one copies more; with fewer, a piece costs more than what is in it."""
_PIECE: Final = _TOGETHER * HASH_BYTES


@dataclass(frozen=True, slots=True)
class Path:
    """The hashes of the heights 0, 1, 2, … up to a tip."""

    pieces: Map[int, bytes]
    """Full ones, counted from 0."""
    rest: bytes
    """What is above them, less than a piece."""

    def __len__(self) -> int:
        return len(self.pieces) * _TOGETHER + len(self.rest) // HASH_BYTES

    def __getitem__(self, height: int) -> Hash:
        name = self.get(height)
        if name is None:
            raise IndexError(f"height {height} on a path of {len(self)}")
        return name

    def get(self, height: int) -> Hash | None:
        """Give the block of a height; None above the tip."""
        number, place = divmod(height, _TOGETHER)
        piece = self.rest if number == len(self.pieces) else self.pieces.get(number)
        start = place * HASH_BYTES
        return Hash(piece[start : start + HASH_BYTES]) or None if piece else None

    def append(self, name: Hash) -> Path:
        """Give the path with one more block."""
        rest = self.rest + name
        if len(rest) < _PIECE:
            return Path(self.pieces, rest)
        return Path(self.pieces.insert(len(self.pieces), rest), b"")

    def cut(self, length: int) -> Path:
        """Give the first `length` blocks of the path."""
        pieces, rest = self.pieces, self.rest
        while len(pieces) * _TOGETHER > length:
            number = len(pieces) - 1
            rest = pieces[number]
            pieces = pieces.remove(number)
        return Path(pieces, rest[: (length - len(pieces) * _TOGETHER) * HASH_BYTES])


def path_of(names: Iterable[Hash]) -> Path:
    """Give the path of these blocks, the lowest first."""
    joined = b"".join(names)
    full = len(joined) // _PIECE
    return Path(
        Map({number: joined[number * _PIECE : (number + 1) * _PIECE] for number in range(full)}),
        joined[full * _PIECE :],
    )
