"""Reads the canon's newest paragraphs off the disk: the context of the next one."""

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

from loremesh.primitives import Hash
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.fork_choice import Store, chain


class Shelf(Protocol):
    """What reading needs of the chain service."""

    @property
    def store(self) -> Store:
        """The store as it is now."""

    async def load(self, names: Sequence[Hash]) -> dict[Hash, bytes]:
        """Give the encodings of blocks."""


async def newest_paragraphs(shelf: Shelf, tip: Hash, most: int) -> tuple[str, ...]:
    """Give at most `most` paragraphs of the chain that ends with `tip`, oldest first."""
    names = [entry.link.hash for entry in islice(chain(shelf.store, tip), most) if not entry.is_genesis]
    found = await shelf.load(names)
    return tuple(decode(Block, found[name]).content.text for name in reversed(names))
