"""A disk in memory: `ChainService` on it costs no thread and no file, and a test may hold it up."""

from collections.abc import AsyncGenerator, Sequence

import trio

from loremesh.primitives import Hash
from loremesh.storage.writes import RemoveTransactions, SaveBlocks, SaveTransactions, StoredBlock, Write


class MemoryDisk:
    """What a disk of the chain keeps, and how often it was asked to."""

    def __init__(self) -> None:
        self.commits: list[tuple[Write, ...]] = []
        """What became durable, one entry for each trip to the disk."""
        self._blocks: dict[Hash, StoredBlock] = {}
        self._transactions: dict[Hash, bytes] = {}
        self._free = trio.Event()
        self._free.set()
        self.asked = trio.Event()
        """Set when a commit begins."""

    def hold_up(self) -> None:
        """Let commits wait from now on."""
        self._free = trio.Event()
        self.asked = trio.Event()

    def go_on(self) -> None:
        """Let commits that wait, and those to come, be done."""
        self._free.set()

    async def commit(self, *writes: Write) -> None:
        """Keep all of `writes`, once the disk is not held up."""
        self.asked.set()
        await trio.lowlevel.checkpoint()
        await self._free.wait()
        self.commits.append(writes)
        for write in writes:
            self._keep(write)

    def _keep(self, write: Write) -> None:
        match write:
            case SaveBlocks(blocks):
                for block in blocks:
                    self._blocks.setdefault(block.hash, block)
            case SaveTransactions(transactions):
                for name, data in transactions:
                    self._transactions.setdefault(name, data)
            case RemoveTransactions(hashes):
                for name in hashes:
                    self._transactions.pop(name, None)
            case _:
                raise TypeError(f"a chain writes no {type(write).__name__}")

    async def blocks(self, batch: int = 256) -> AsyncGenerator[list[StoredBlock], None]:
        """Give every block in the order saved."""
        kept = list(self._blocks.values())
        for start in range(0, len(kept), batch):
            await trio.lowlevel.checkpoint()
            yield kept[start : start + batch]

    async def load_blocks(self, hashes: Sequence[Hash]) -> dict[Hash, bytes]:
        """Give the encodings of those that are kept."""
        await trio.lowlevel.checkpoint()
        return {name: self._blocks[name].data for name in hashes if name in self._blocks}

    async def transactions(self) -> list[bytes]:
        """Give the waiting transactions in the order saved."""
        await trio.lowlevel.checkpoint()
        return list(self._transactions.values())
