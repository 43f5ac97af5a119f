"""Durable commits: a hundred callers who each wait for one block, against plain SQLite, a hundred to a transaction.

Both sides write the same blocks of 1 KB into the same tables, with a write-ahead log and `synchronous=FULL`, in every
round into a new file.
"""

import hashlib
import tempfile
import time
from pathlib import Path

import trio

from durable import Fsyncs, plain_database
from harness import Row, Samples, at_least, compare
from loremesh.primitives import Hash, Height, StoryId
from loremesh.protocol.codec import encode
from loremesh.storage.store import Store
from loremesh.storage.writes import SaveBlocks, StoredBlock
from stories import chain

_CALLERS = 100
_EACH = 10
_ROUNDS = 41


def run() -> list[Row]:
    """Measure commits that share their trips to the disk."""
    start = chain(100, 0, 1)[0].before
    genesis = encode(start.genesis)
    queues = _queues(start.story)
    fsyncs = Fsyncs()

    def plain() -> Samples:
        fsyncs.sample()
        return _plain(start.story, genesis, queues)

    row = compare(
        f"commit a block of 1 KB, {_CALLERS} callers at once",
        "µs",
        lambda: trio.run(_share, start.story, genesis, queues),
        against=f"plain SQLite, {_CALLERS} to a transaction",
        peer=plain,
        goal=at_least(0.7),
        rounds=_ROUNDS,
    )
    return [fsyncs.noted(row)]


def _queues(story: Hash) -> list[list[StoredBlock]]:
    """Give every caller its own branch of real blocks; the names are made up, since a hash cannot be forged."""
    wires = [sample.wire for sample in chain(100, 0)]
    queues = []
    for caller in range(_CALLERS):
        queue, parent = [], story
        for height in range(1, _EACH + 1):
            name = Hash(hashlib.sha256(f"{caller} {height}".encode()).digest())
            queue.append(StoredBlock(name, parent, Height(height), wires[(caller * _EACH + height) % len(wires)]))
            parent = name
        queues.append(queue)
    return queues


async def _share(story: StoryId, genesis: bytes, queues: list[list[StoredBlock]]) -> Samples:
    async def call(store: Store, queue: list[StoredBlock]) -> None:
        for block in queue:
            await store.commit(SaveBlocks((block,)))

    with tempfile.TemporaryDirectory() as folder:
        async with Store.open(Path(folder)) as store:
            await store.save_genesis(story, genesis)
            before = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for queue in queues:
                    nursery.start_soon(call, store, queue)
            return [(time.perf_counter() - before) / (_CALLERS * _EACH)]


def _plain(story: StoryId, genesis: bytes, queues: list[list[StoredBlock]]) -> Samples:
    with plain_database(story, genesis) as insert:
        before = time.perf_counter()
        for batch in zip(*queues, strict=True):
            insert(batch)
        return [(time.perf_counter() - before) / (_CALLERS * _EACH)]
