"""A disk in memory: a chain on it costs no thread and no file, and a test may hold it up."""

from collections.abc import AsyncGenerator, Sequence

import trio

from loremesh.primitives import Hash, PeerId
from loremesh.storage.store import ANY_BYTES
from loremesh.storage.writes import (
    Ban,
    RemoveTransactions,
    SaveBan,
    SaveBlocks,
    SaveSnapshot,
    SaveTransactions,
    StoredBlock,
    StoredSnapshot,
    Write,
)


class MemoryDisk:
    """What a node keeps of its story and of its bans, and how often it was asked to."""

    def __init__(self) -> None:
        self.commits: list[tuple[Write, ...]] = []
        """What became durable, one entry for each trip to the disk."""
        self._blocks: dict[Hash, StoredBlock] = {}
        self._snapshots: list[StoredSnapshot] = []
        self._transactions: dict[Hash, bytes] = {}
        self._bans: dict[PeerId, Ban] = {}
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
            case SaveSnapshot(snapshot, after):
                while self._snapshots and self._snapshots[-1].last != after:
                    self._snapshots.pop()
                self._snapshots.append(snapshot)
            case SaveTransactions(transactions):
                for name, data in transactions:
                    self._transactions.setdefault(name, data)
            case SaveBan(ban, forget_before):
                kept = [one for one in self._bans.values() if one.ends >= forget_before]
                self._bans = {one.peer_id: one for one in (*kept, ban)}
            case RemoveTransactions(hashes):
                for name in hashes:
                    self._transactions.pop(name, None)
            case _:
                raise TypeError(f"nothing on this disk writes a {type(write).__name__}")

    async def snapshots(self) -> AsyncGenerator[StoredSnapshot, None]:
        """Give every snapshot in the order saved."""
        for snapshot in list(self._snapshots):
            await trio.lowlevel.checkpoint()
            yield snapshot

    async def load_state(self, head: Hash) -> bytes | None:
        """Give the state of the newest snapshot that was made with this head."""
        await trio.lowlevel.checkpoint()
        return next((one.state for one in reversed(self._snapshots) if one.head == head), None)

    async def blocks(self, batch: int = 256, after: Hash | None = None) -> AsyncGenerator[list[StoredBlock], None]:
        """Give every block in the order saved, or those behind one of them."""
        names = list(self._blocks)
        kept = list(self._blocks.values())[0 if after is None else names.index(after) + 1 :]
        for start in range(0, len(kept), batch):
            await trio.lowlevel.checkpoint()
            yield kept[start : start + batch]

    async def load_blocks(self, hashes: Sequence[Hash], enough: int = ANY_BYTES) -> dict[Hash, bytes]:
        """Give the encodings of those that are kept, until there are enough bytes."""
        await trio.lowlevel.checkpoint()
        found: dict[Hash, bytes] = {}
        for name in hashes:
            if name in self._blocks and sum(map(len, found.values())) < enough:
                found[name] = self._blocks[name].data
        return found

    async def transactions(self) -> list[bytes]:
        """Give the waiting transactions in the order saved."""
        await trio.lowlevel.checkpoint()
        return list(self._transactions.values())

    async def bans(self) -> list[Ban]:
        """Give the bans that are remembered."""
        await trio.lowlevel.checkpoint()
        return list(self._bans.values())
