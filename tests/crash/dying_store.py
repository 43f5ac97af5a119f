"""A process that keeps blocks, and dies as dying_disk.py says."""

import hashlib
from pathlib import Path
from typing import Final

from dying_disk import Say, main
from loremesh.primitives import Hash, Height
from loremesh.storage.store import Store
from loremesh.storage.writes import (
    RemoveTransactions,
    SaveBlocks,
    SaveSnapshot,
    SaveTransactions,
    SetNote,
    StoredBlock,
    StoredSnapshot,
)

BLOCKS: Final = 8


def name_of(data: bytes) -> Hash:
    return Hash(hashlib.sha256(data).digest())


async def keep_a_story(directory: Path, say: Say) -> None:
    async with Store.open(directory) as store:
        say("open")
        # Often enough that the log is folded into the database several times in a short life.
        store._database.writer.wal_autocheckpoint(12)
        parent = written_down = name_of(b"genesis")
        await store.save_genesis(parent, b"genesis")
        say("genesis")
        waiting = [name_of(b"waiting %d" % number) for number in range(BLOCKS + 1)]
        await store.commit(SaveTransactions(tuple((name, name) for name in waiting)))
        say("transactions")
        for height in range(1, BLOCKS + 1):
            data = b"%d " % height * (100 + 700 * (height % 3))
            block = StoredBlock(name_of(data), parent, Height(height), data)
            snapshot = SaveSnapshot(StoredSnapshot(block.hash, block.hash, data, data), written_down)
            await store.commit(
                SaveBlocks((block,)),
                RemoveTransactions((waiting[height],)),
                SetNote("head", block.hash),
                *((snapshot,) if height % 2 == 0 else ()),
            )
            say(f"block {block.hash.hex()}")
            parent = block.hash
            written_down = parent if height % 2 == 0 else written_down
    say("closed")


main(keep_a_story)
