"""Everything a node keeps: a story, the transactions that wait, the peers met, those kept out, and small notes."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self, cast

import apsw

from loremesh.primitives import Hash, Height, StoryId
from loremesh.storage.database import Database, damaged
from loremesh.storage.lock import locked
from loremesh.storage.writes import (
    Ban,
    SaveBlocks,
    SaveGenesis,
    SetNote,
    StoredBlock,
    StoredSnapshot,
    Write,
    digest_of,
)

DATABASE_NAME: Final = "node.sqlite"
ANY_BYTES: Final = 2**63


@dataclass(frozen=True, slots=True)
class Store:
    """One data directory, owned by one process.

    Every method that writes returns when the change is durable. All of them raise `MachineError` (disk full, damaged
    file) or `StorageError` (the disk failed), as `Database` says; afterwards the store is still usable.
    """

    directory: Path
    _database: Database

    @classmethod
    @asynccontextmanager
    async def open(cls, directory: Path) -> AsyncIterator[Self]:
        """Lock `directory` (made if missing) and open what it keeps.

        Raises:
            MachineError: In use, not writable, damaged, or written by a newer program.
            StorageError: The disk failed.
        """
        with locked(directory):
            async with Database.open(directory / DATABASE_NAME) as database:
                yield cls(directory, database)

    async def commit(self, *writes: Write) -> None:
        """Make all of `writes` durable at once, or none: a block, the end of its transactions and the new head.

        Concurrent callers share one trip to the disk. When cancelled, all of `writes` are kept or none.
        """
        if writes:
            await self._database.commit(writes)

    async def save_genesis(self, story: StoryId, data: bytes) -> None:
        """Keep the genesis of the one story of this directory.

        Raises:
            UsageError: Another story is kept here.
        """
        await self.commit(SaveGenesis(story, data))

    async def load_genesis(self) -> bytes | None:
        """Give the encoded genesis, None in a new directory."""

        def query(connection: apsw.Connection) -> bytes | None:
            row = connection.execute("select cast(data as blob) from block where parent is null").fetchone()
            return None if row is None else row[0]

        return await self._database.read(query)

    async def save_blocks(self, blocks: Sequence[StoredBlock]) -> None:
        """Keep blocks, parents first (the genesis before all); those kept already stay as they are."""
        await self.commit(SaveBlocks(tuple(blocks)))

    async def snapshots(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Give the snapshots that agree with their blocks, oldest first, up to the first that does not."""
        last = 0
        while (found := await self._database.read(partial(_snapshot_after, after=last))) is not None:
            last, snapshot = found
            yield snapshot

    async def load_state(self, head: Hash) -> bytes | None:
        """Give the state of the newest snapshot that was made with this head."""

        def query(connection: apsw.Connection) -> bytes | None:
            newest = "select cast(state as blob) from snapshot where head = ? order by sequence desc limit 1"
            row = connection.execute(newest, (head,)).fetchone()
            return None if row is None else row[0]

        return await self._database.read(query)

    async def blocks(self, batch: int = 256, after: Hash | None = None) -> AsyncGenerator[list[StoredBlock], None]:
        """Give every block but the genesis in the order they were saved, `batch` at a time.

        Args:
            batch: How many at most are in memory at once.
            after: Begin behind this one, which is kept.

        Raises:
            MachineError: The file is damaged, be it in a way that would only hide blocks.
        """
        last = 0 if after is None else await self._database.read(partial(_sequence_of, name=after))
        while found := await self._database.read(partial(_blocks_after, after=last, limit=batch)):
            last = found[-1][0]
            if any(row[1] != row[0] for row in found):
                raise damaged(self._database.path, "blocks are not found by their hashes")
            yield [StoredBlock(*row[2:]) for row in found]
        if not await self._database.read(_is_whole):
            raise damaged(self._database.path, "blocks are missing")

    async def load_blocks(self, hashes: Sequence[Hash], enough: int = ANY_BYTES) -> dict[Hash, bytes]:
        """Give the encodings of those of `hashes` that are kept; the genesis is not among them.

        Args:
            hashes: In the order wanted.
            enough: Once there are so many bytes, those that follow are left out.
        """

        def query(connection: apsw.Connection) -> dict[Hash, bytes]:
            found: dict[Hash, bytes] = {}
            size = 0
            for hash_ in hashes:
                if size >= enough:
                    break
                row = connection.execute(
                    "select cast(data as blob) from block where hash = ? and parent is not null", (hash_,)
                ).fetchone()
                if row is not None:
                    found[hash_] = row[0]
                    size += len(row[0])
            return found

        return await self._database.read(query)

    async def transactions(self) -> list[bytes]:
        """Give the encoding of every waiting transaction, in the order they were saved."""
        return await self._database.read(
            lambda connection: [row[0] for row in connection.execute("select data from pending order by sequence")]
        )

    async def set_note(self, key: str, value: bytes) -> None:
        """Keep one small fact under a name, in place of the one before."""
        await self.commit(SetNote(key, value))

    async def note(self, key: str) -> bytes | None:
        """Give the fact kept under a name, None if there is none."""

        def query(connection: apsw.Connection) -> bytes | None:
            row = connection.execute("select value from note where key = ?", (key,)).fetchone()
            return None if row is None else row[0]

        return await self._database.read(query)

    async def bans(self) -> list[Ban]:
        """Give the bans that are remembered, those that have ended lately among them; the first to end first."""
        return await self._database.read(
            lambda connection: [
                Ban(*row) for row in connection.execute("select peer_id, ends, number from ban order by ends, peer_id")
            ]
        )


def _snapshot_after(connection: apsw.Connection, after: int) -> tuple[int, StoredSnapshot] | None:
    rows = connection.execute(
        "select sequence, digest, hash, cast(head as blob), cast(records as blob), cast(state as blob) from snapshot "
        "join block using (sequence) where sequence > ? order by sequence limit 1",
        (after,),
    ).fetchall()
    for sequence, digest, last, head, records, state in cast("list[tuple[int, bytes, Hash, Hash, bytes, bytes]]", rows):
        snapshot = StoredSnapshot(last, head, records, state)
        if digest_of(connection, after, sequence, snapshot) == digest:
            return sequence, snapshot
    return None


def _sequence_of(connection: apsw.Connection, name: Hash) -> int:
    [(sequence,)] = connection.execute("select sequence from block where hash = ?", (name,)).fetchall()
    return cast("int", sequence)


def _blocks_after(
    connection: apsw.Connection, after: int, limit: int
) -> list[tuple[int, int | None, Hash, Hash, Height, bytes]]:
    """Give rows with their sequence twice: as it stands there, and as the index finds it."""
    rows = connection.execute(
        "select sequence, (select named.sequence from block as named where named.hash = block.hash), "
        "hash, parent, height, cast(data as blob) from block where sequence > ? and parent is not null "
        "order by sequence limit ?",
        (after, limit),
    )
    return cast("list[tuple[int, int | None, Hash, Hash, Height, bytes]]", rows.fetchall())


def _is_whole(connection: apsw.Connection) -> bool:
    """Tell whether table and index agree on how many blocks there are, one of them without a parent."""
    counted = connection.execute(
        "select count(*), count(parent), (select count(*) from block indexed by sqlite_autoindex_block_1) "
        "from block not indexed"
    ).fetchall()
    rows, parents, hashes = cast("tuple[int, int, int]", counted[0])
    return rows == hashes and rows - parents == min(rows, 1)
