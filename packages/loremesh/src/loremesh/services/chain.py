"""The chain service: sole owner of the fork-choice store and of the mempool.

Others send it blocks and transactions and watch its head. A batch of blocks costs one trip to the disk, and nobody
hears of a block, or can read one, before it is durable.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import InvalidBlock, MachineError, ProtocolError
from loremesh.primitives import KIB, Hash, Height, Millis, PeerId
from loremesh.protocol.block import Block, SignedHeader
from loremesh.protocol.changes import (
    Accepted,
    Change,
    Equivocated,
    HeadMoved,
    Refused,
    ReorgWithheld,
    SetAside,
    Waiting,
)
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import (
    StateMissing,
    Store,
    is_canonical,
    is_known,
    new_store,
    on_block,
    on_limit,
    on_replay,
    on_tick,
)
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.mempool import Mempool, add, next_nonce, select, settle
from loremesh.protocol.production import Parent
from loremesh.protocol.state import State
from loremesh.protocol.transaction import Transaction, transaction_hash
from loremesh.services import snapshots
from loremesh.services.happenings import Clock, Evidence, Head, Tell
from loremesh.services.latest import Latest
from loremesh.services.snapshots import SNAPSHOT_EVERY, Snapshots
from loremesh.storage.store import ANY_BYTES
from loremesh.storage.writes import RemoveTransactions, SaveBlocks, SaveTransactions, StoredBlock, Write

logger = logging.getLogger("loremesh.chain")

_BATCH: Final = 128
"""Blocks that share a trip to the disk at most; of the longest, 32 MiB."""
_JUDGED_AT_ONCE: Final = 32
"""Some milliseconds; then others run."""
_QUEUE: Final = 256
_REPLAYED_AT_ONCE: Final = 64
_ENOUGH_AT_ONCE: Final = 256 * KIB
_REMEMBERED_CULPRITS: Final = 1024
_LOOK_AT_CLOCK: Final = 1.0
"""Seconds after which the clock is looked at again while a block waits for its time: it may have been set."""
_END_OF_TIME: Final = Millis(2**63 - 1)


class Disk(snapshots.Disk, Protocol):
    """What the chain needs of storage."""

    async def commit(self, *writes: Write) -> None:
        """Make all of `writes` durable."""

    def blocks(self, batch: int = 256, after: Hash | None = None) -> AsyncGenerator[list[StoredBlock], None]:
        """Give every block in the order saved, or those behind one of them."""

    async def transactions(self) -> list[bytes]:
        """Give the waiting transactions."""


class Penalize(Protocol):
    """Hears that a peer broke a rule."""

    def __call__(self, peer_id: PeerId, what: str, error: ProtocolError) -> None:
        """Take note; must return at once."""


@dataclass(slots=True)
class _Job:
    """A block on its way into the store, and who waits for the outcome."""

    block: Block
    sender: PeerId | None
    """Who handed it to us, and has its parents."""
    culprit: PeerId | None
    """Who answers for it if it is invalid."""
    done: trio.Event = field(default_factory=trio.Event)
    error: ProtocolError | None = None


class ChainService:
    """Takes blocks and transactions, keeps the head.

    Args:
        genesis: Of the one story it keeps.
        disk: Where blocks and waiting transactions are kept.
        clock: Unix milliseconds.
        tell: Hears of heads and of evidence.
        penalize: Hears which peer broke which rule.
        max_reorg: Deepest automatic reorganisation; None: any.
        snapshot_every: Blocks after which it is written down what a restart needs of them.
    """

    def __init__(
        self,
        genesis: Genesis,
        disk: Disk,
        *,
        clock: Clock,
        tell: Tell,
        penalize: Penalize,
        max_reorg: int | None = None,
        snapshot_every: int = SNAPSHOT_EVERY,
    ) -> None:
        self._disk = disk
        self._clock = clock
        self._tell = tell
        self._penalize = penalize
        self._coming = new_store(genesis, Millis(clock()), max_reorg)
        """With what is on its way to the disk; only the task of `run` changes it."""
        self._store = self._coming
        self._snapshots = Snapshots(disk, snapshot_every)
        self._pool = Mempool(self._store.story)
        self._on_its_way: dict[Hash, Block] = {}
        """Accepted, and not on the disk yet."""
        self._culprits: dict[Hash, PeerId] = {}
        self._jobs, self._inbox = trio.open_memory_channel[_Job](_QUEUE)
        self.head = Latest(self._store.head)
        self.orphaned = Latest[PeerId | None](None)
        """Set to whoever sent a block with an unknown parent: sync asks them for what is missing."""

    @property
    def store(self) -> Store:
        """The store as it is on the disk: an immutable value, safe to read at leisure."""
        return self._store

    @property
    def pool(self) -> Mempool:
        """The mempool as it is now, likewise immutable."""
        return self._pool

    @property
    def queued(self) -> int:
        """How many blocks wait to be judged."""
        return self._inbox.statistics().current_buffer_used

    def parent(self) -> Parent:
        """Give the head as something to build on."""
        return Parent(self._store.tip.link, self._store.states[self._store.head])

    def is_overtaken(self, head: Hash) -> bool:
        """Tell whether another block will be the head once the disk has it."""
        return self._coming.head != head

    def knows(self, name: Hash) -> bool:
        """Tell whether a block is in the tree, or waits, or is on its way to the disk."""
        return is_known(self._coming, name)

    async def restore(self) -> None:
        """Take in what the disk keeps; call once, before `run`.

        Raises:
            MachineError: What the disk gives back is not what was kept.
        """
        self._coming, last = await self._snapshots.restore(self._coming)
        # What is kept had its time already; after the clock was set back it must not wait for it again.
        self._coming = self._coming._replace(now=_END_OF_TIME)
        async with aclosing(self._disk.blocks(after=last)) as batches:
            async for batch in batches:
                for stored in batch:
                    await self._rejoin(stored)
                self._on_its_way.clear()
                joined = [self._coming.entries[stored.hash] for stored in batch]
                if due := self._snapshots.add(joined, self._coming):
                    await self._disk.commit(*due)
        await self._stepping(lambda: on_limit(self._coming, self._coming.max_reorg))
        self._on_its_way.clear()
        self._coming = self._coming._replace(now=Millis(self._clock()), changes=())
        self._store = self._coming
        state, now = self.parent().state, Millis(self._clock())
        for data in await self._disk.transactions():
            try:
                self._pool = add(self._pool, decode(Transaction, data), state, now)
            except ProtocolError as error:  # overtaken by a block while it was on the disk
                logger.debug("a kept transaction is not wanted any more: %s", error)
        self.head.set(self._store.head)

    async def _rejoin(self, stored: StoredBlock) -> None:
        try:
            block = decode(Block, stored.data)
            await self._stepping(lambda: on_block(self._coming, block, is_kept=True))
        except ProtocolError as error:
            raise _damaged(stored.hash, str(error)) from error
        if stored.hash not in self._coming.entries:
            raise _damaged(stored.hash, "it does not join the others")

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            jobs = await self._next_jobs()
            await self._stepping(lambda: on_tick(self._coming, Millis(self._clock())))
            changes = list(self._coming.changes)
            for number, job in enumerate(jobs, start=1):
                changes += await self._take(job)
                if number % _JUDGED_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            await self._settle(changes)
            for job in jobs:
                job.done.set()

    async def submit(self, block: Block, sender: PeerId | None) -> None:
        """Hand in a block and wait until it is judged and, if valid, durable.

        Args:
            block: Well-formed.
            sender: The peer it came from, who answers for it; None: our own.

        Raises:
            InvalidBlock: It breaks a rule.
        """
        await self.submit_all([block], sender)

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:
        """Hand in blocks, parents first, and wait until all of them are judged and durable.

        Raises:
            InvalidBlock: The first that breaks a rule; the others are judged all the same.
        """
        jobs = [_Job(block, sender, sender) for block in blocks]
        for job in jobs:
            try:
                self._jobs.send_nowait(job)  # without a pause in between, so that they share a trip to the disk
            except trio.WouldBlock:
                await self._jobs.send(job)
        if jobs:
            await jobs[-1].done.wait()  # they are done in their order
        for job in jobs:
            if job.error is not None:
                raise job.error

    async def offer(self, block: Block, sender: PeerId) -> None:
        """Hand in a gossiped block without waiting for the judgement; waits only while too many wait already.

        Its producer answers for it: whoever passed it on may have lacked the parent, and could not know better.
        """
        await self._jobs.send(_Job(block, sender, block.header.producer))

    async def add_transaction(self, transaction: Transaction) -> bool:
        """Take in a transaction and wait until it is durable; False if it was waiting already.

        Raises:
            InvalidTransaction: It breaks a rule, or there is no room.
        """
        name = transaction_hash(self._store.story, transaction.body)
        if name in self._pool.waiting:
            return False
        self._pool = add(self._pool, transaction, self.parent().state, Millis(self._clock()))
        await self._disk.commit(SaveTransactions(((name, encode(transaction)),)))
        return True

    def next_nonce(self, sender: PeerId) -> int:
        """Give the nonce for a sender's next transaction."""
        return next_nonce(self._pool, self.parent().state, sender)

    def choose_transactions(self, parent: Parent) -> tuple[tuple[Transaction, ...], State]:
        """Choose what goes into a block on `parent`; give also the state after them."""
        rules = self._store.genesis.rules
        height = Height(parent.link.height + 1)
        # Half of a block at most, so that the longest paragraph always fits beside them.
        return select(self._pool, parent.state, height, most=rules.transactions, most_bytes=rules.block_bytes // 2)

    async def load(self, names: Sequence[Hash], enough: int = ANY_BYTES) -> dict[Hash, bytes]:
        """Give the encodings of those blocks of the tree that are asked for; no more once there are enough bytes."""
        return await self._disk.load_blocks(names, enough)

    async def load_headers(self, names: Sequence[Hash]) -> tuple[SignedHeader, ...]:
        """Give the headers of blocks of the tree."""
        headers: list[SignedHeader] = []
        while names:
            found = await self._disk.load_blocks(names, _ENOUGH_AT_ONCE)
            if not found or any(name not in found for name in names[: len(found)]):
                raise _damaged(names[0], "or one behind it, which is missing")
            blocks = [decode(Block, data) for data in found.values()]
            headers += [SignedHeader(block.header, block.signature) for block in blocks]
            names = names[len(found) :]
        return tuple(headers)

    async def _next_jobs(self) -> list[_Job]:
        """Wait for a job, at most until a held block is due; take along what else is there."""
        jobs: list[_Job] = []
        with trio.move_on_after(self._until_due()):
            jobs.append(await self._inbox.receive())
        while len(jobs) < _BATCH:
            try:
                jobs.append(self._inbox.receive_nowait())
            except trio.WouldBlock:
                break
        return jobs

    def _until_due(self) -> float:
        if not self._coming.held:
            return float("inf")
        first = min(block.header.time for block in self._coming.held.values())
        ahead = first - self._coming.genesis.parameters.max_ahead - self._clock()
        return min(max(0.0, ahead / 1000), _LOOK_AT_CLOCK)

    async def _take(self, job: _Job) -> tuple[Change, ...]:
        try:
            await self._stepping(lambda: on_block(self._coming, job.block))
        except InvalidBlock as error:
            job.error = error
            if job.culprit is not None:
                self._penalize(job.culprit, "block", error)
            return ()
        if job.sender is not None and job.culprit is not None:
            self._remember_sender(job.sender, job.culprit)
        return self._coming.changes

    async def _stepping(self, step: Callable[[], Store]) -> None:
        """Take a step of fork choice, with the states it needs."""
        while True:
            try:
                self._coming = step()
            except StateMissing as missing:
                await self._replay(missing.path)
            else:
                accepted = (change for change in self._coming.changes if isinstance(change, Accepted))
                self._on_its_way.update((change.hash, change.block) for change in accepted)
                return

    async def _replay(self, path: Sequence[Hash]) -> None:
        self._coming, done = await self._snapshots.recall(self._coming, path)
        for start in range(done, len(path), _REPLAYED_AT_ONCE):
            names = path[start : start + _REPLAYED_AT_ONCE]
            found = await self._disk.load_blocks([name for name in names if name not in self._on_its_way])
            try:
                blocks = [self._on_its_way.get(name) or decode(Block, found[name]) for name in names]
                self._coming = on_replay(self._coming, tuple(blocks))
            except (ProtocolError, KeyError) as error:
                raise _damaged(names[-1], f"or one below it, {error!r}") from error

    def _remember_sender(self, sender: PeerId, culprit: PeerId) -> None:
        """Keep who sent a block that waits, to know whom to ask, and whom to blame if it turns out invalid."""
        for change in self._coming.changes:
            if isinstance(change, Waiting | SetAside):
                self._culprits[change.hash] = culprit
            if isinstance(change, Waiting) and not change.held:
                self.orphaned.set(sender)
        while len(self._culprits) > _REMEMBERED_CULPRITS:
            del self._culprits[next(iter(self._culprits))]

    async def _settle(self, changes: Sequence[Change]) -> None:
        """Make durable what was accepted, then tell of it."""
        accepted = [change for change in changes if isinstance(change, Accepted)]
        moves = [change for change in changes if isinstance(change, HeadMoved)]
        if accepted:
            await self._disk.commit(*self._writes(accepted, moves))
        self._store = self._coming
        self._on_its_way.clear()
        for change in changes:
            self._report(change)
        if moves:
            await self._give_back(moves)
            self._tell_head(moves)

    def _writes(self, accepted: list[Accepted], moves: list[HeadMoved]) -> list[Write]:
        blocks = [
            StoredBlock(change.hash, change.block.header.parent, change.block.header.height, encode(change.block))
            for change in accepted
        ]
        entries = [self._coming.entries[change.hash] for change in accepted]
        writes: list[Write] = [SaveBlocks(tuple(blocks)), *self._snapshots.add(entries, self._coming)]
        if moves:
            before = self._pool
            state = self._coming.states[self._coming.head]
            self._pool = settle(self._pool, state, Millis(self._clock()))
            gone = tuple(name for name in before.waiting if name not in self._pool.waiting)
            if gone:
                writes.append(RemoveTransactions(gone))
        return writes

    async def _give_back(self, moves: list[HeadMoved]) -> None:
        """Let the transactions of abandoned blocks wait again."""
        abandoned = [name for move in moves for name in move.abandoned if not is_canonical(self._store, name)]
        state, now = self.parent().state, Millis(self._clock())
        returned = []
        for data in (await self._disk.load_blocks(abandoned)).values():
            for transaction in decode(Block, data).transactions:
                try:
                    self._pool = add(self._pool, transaction, state, now)
                except ProtocolError as error:  # in the new branch as well, most likely
                    logger.debug("a transaction of an abandoned block does not return: %s", error)
                else:
                    returned.append((transaction_hash(self._store.story, transaction.body), encode(transaction)))
        if returned:
            await self._disk.commit(SaveTransactions(tuple(returned)))

    def _report(self, change: Change) -> None:
        match change:
            case Refused(name, error):
                culprit = self._culprits.pop(name, None)
                if error is not None and culprit is not None:
                    self._penalize(culprit, "block", error)
            case Equivocated(producer, _, _):
                self._tell(Evidence(producer, "two headers on one parent"))
            case ReorgWithheld(tip, depth):
                logger.warning(
                    "a heavier branch (tip %s) forks off %d blocks below: restart with --max-reorg %d to switch",
                    tip.hex()[:8],
                    depth,
                    depth,
                )
            case _:
                pass

    def _tell_head(self, moves: list[HeadMoved]) -> None:
        head = self._store.head
        link = self._store.tip.link
        depth = max(len(move.abandoned) for move in moves)
        self._tell(Head(link.height, head, link.producer, depth))
        self.head.set(head)


def _damaged(name: Hash, reason: str) -> MachineError:
    return MachineError(
        f"block {name.hex()[:8]} on the disk is damaged ({reason}): move the data directory away, keep its key, "
        "and start again to fetch the story from peers"
    )
