"""Durable writes: what one trip to the disk costs here and now, and the plainest way to insert blocks."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import apsw

from harness import Row
from loremesh.primitives import StoryId
from loremesh.storage.migrations import migrate
from loremesh.storage.writes import StoredBlock

_WRITES: Final = 5
_BYTES: Final = 1024
_INSERT: Final = "insert into block (hash, parent, height, data) values (?, ?, ?, ?)"


class Fsyncs:
    """What it costs, while a bench runs, to append 1 KB to a file and wait until that is durable."""

    def __init__(self) -> None:
        self._taken: list[float] = []

    def sample(self) -> None:
        """Do it a few times; call this once in every round."""
        with tempfile.TemporaryDirectory() as folder:
            descriptor = os.open(Path(folder) / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                self._taken += [_append(descriptor) for _ in range(_WRITES)]
            finally:
                os.close(descriptor)

    def noted(self, row: Row) -> Row:
        """Say beside a row what the middle one took."""
        return replace(row, note=f"fsync p50 {statistics.median(self._taken) * 1000:.2f} ms")


def _append(descriptor: int) -> float:
    before = time.perf_counter()
    os.write(descriptor, bytes(_BYTES))
    os.fsync(descriptor)
    return time.perf_counter() - before


@contextmanager
def plain_database(story: StoryId, genesis: bytes) -> Iterator[Callable[[Iterable[StoredBlock]], None]]:
    """Open a new file with the tables of a node; give the function that inserts blocks with one transaction."""
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(apsw.Connection(str(Path(folder) / "plain.sqlite"))) as connection,
    ):
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        connection.pragma("foreign_keys", value=True)
        migrate(connection)
        connection.execute(_INSERT, (story, None, 0, genesis))

        def insert(blocks: Iterable[StoredBlock]) -> None:
            connection.execute("begin immediate")
            connection.executemany(_INSERT, [(block.hash, block.parent, block.height, block.data) for block in blocks])
            connection.execute("commit")

        yield insert
