"""Snapshots: what the chain writes down now and then, and how it starts again from there.

Derived from blocks that are durable themselves, so nothing depends on them: one that is damaged, or missing, costs the
replay of its blocks.

Source: docs/protocol/fork-choice.md, "Starting again".
"""

import gc
import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, Protocol

from loremesh.errors import ProtocolError
from loremesh.primitives import Hash
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.fork_choice import Entry, Store, on_recall
from loremesh.protocol.snapshot import decode_state, encode_state, on_restore, pack_entry, unpack_entries
from loremesh.protocol.state import State
from loremesh.storage.store import ANY_BYTES
from loremesh.storage.writes import SaveSnapshot, StoredSnapshot

logger = logging.getLogger("loremesh.chain")

SNAPSHOT_EVERY: Final = 512
"""Blocks between two snapshots: so many, and a batch, are judged anew at a restart."""


class Disk(Protocol):
    """What snapshots need of storage."""

    def snapshots(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Give those that agree with the blocks they stand for, oldest first, up to the first that does not."""

    async def load_state(self, head: Hash) -> bytes | None:
        """Give the state kept for a block."""

    async def load_blocks(self, hashes: Sequence[Hash], enough: int = ANY_BYTES) -> dict[Hash, bytes]:
        """Give the encodings of those that are kept; no more once there are enough bytes."""


class Snapshots:
    """Gathers what the next snapshot will say, and knows for which blocks there is a state on the disk.

    Args:
        disk: Where they are kept.
        every: Blocks between two of them.
    """

    def __init__(self, disk: Disk, every: int) -> None:
        self._disk = disk
        self._every = every
        self._records: list[bytes] = []
        self._states: set[Hash] = set()
        self._last: Hash | None = None
        """The last block of the newest snapshot that is good."""

    async def restore(self, store: Store) -> tuple[Store, Hash | None]:
        """Take in all that can be had without judging blocks; name the last block that is in, None for none.

        Args:
            store: As `new_store` gives it.
        """
        with _no_collections():
            return await self._restore(store)

    async def _restore(self, store: Store) -> tuple[Store, Hash | None]:
        known = {store.story: store.entries[store.story]}
        usable: list[StoredSnapshot] = []
        async with aclosing(self._disk.snapshots()) as snapshots:
            async for snapshot in snapshots:
                try:
                    unpack_entries(snapshot.records, known)
                except ProtocolError as error:
                    logger.warning("a snapshot is damaged, its blocks are judged anew: %s", error)
                    break
                usable.append(snapshot)
        self._states = {snapshot.head for snapshot in usable}
        for snapshot in reversed(usable):
            state = await self._state_after(snapshot.head, snapshot.state) if snapshot.head in known else None
            if state is not None:
                self._last = snapshot.last
                return on_restore(store, known.values(), snapshot.head, state), snapshot.last
        return store, None

    async def recall(self, store: Store, path: Sequence[Hash]) -> tuple[Store, int]:
        """Look on the disk for a state nearer to the end of a path that must be replayed.

        Returns:
            The store that has it, and how many blocks of the path it makes unnecessary.
        """
        for place in range(len(path) - 1, -1, -1):
            name = path[place]
            if name in self._states:
                data = await self._disk.load_state(name)
                state = None if data is None else await self._state_after(name, data)
                if state is not None:
                    return on_recall(store, name, state), place + 1
        return store, 0

    def add(self, entries: Sequence[Entry], store: Store) -> list[SaveSnapshot]:
        """Note accepted blocks in the order in which they are saved; give the snapshot that is due with them.

        Args:
            entries: Of the blocks.
            store: With all of them.
        """
        self._records += map(pack_entry, entries)
        if len(self._records) < self._every:
            return []
        records, self._records = b"".join(self._records), []
        state = encode_state(store.states[store.head])
        self._states.add(store.head)
        after, self._last = self._last or store.story, entries[-1].link.hash
        return [SaveSnapshot(StoredSnapshot(self._last, store.head, records, state), after)]

    async def _state_after(self, name: Hash, data: bytes) -> State | None:
        """Read a state, and see that it is the one which the block names."""
        found = await self._disk.load_blocks([name])
        try:
            state, block = decode_state(data), decode(Block, found[name])
        except (ProtocolError, KeyError) as error:
            logger.warning("the state kept for block %s is damaged: %r", name.hex()[:8], error)
            return None
        if state.root != block.header.state_root:
            logger.warning("the state kept for block %s is not the one after it", name.hex()[:8])
            return None
        return state


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for garbage: of a story all stays, and to look through it again and again takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
