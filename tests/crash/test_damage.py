"""Files that were damaged behind a node's back: it starts with all it said it kept, or says in a line what is wrong.

Only what a torn log no longer holds may be missing: then its last commits are, and nothing else.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import trio

from loremesh.errors import MachineError, ProtocolError, StorageError
from loremesh.primitives import Hash
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import genesis_from_bytes, story_id
from loremesh.protocol.journal import Entry
from loremesh.services.chain import ChainService
from loremesh.storage.journal import JOURNAL_NAME, Journal
from loremesh.storage.store import DATABASE_NAME, Store
from loremesh.storage.writes import StoredBlock
from loremesh.testing.bills import Lane, unwritten
from loremesh.testing.builders import BOB, CAT, START, small_genesis
from loremesh.testing.happened import Happened
from loremesh.testing.orchard import Orchard, name_of

GENESIS = small_genesis()
LENGTH: Final = 60
IN_SHORT, FULL = 80, 600
LOG, INDEX = f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm"

Names = list[Hash]


async def keep_story(directory: Path, living: Path) -> Names:
    """Keep a story, and copy the files as they are before it is closed; give the names of its blocks."""
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, LENGTH, BOB, CAT, text=" ".join(["A word in the margin."] * 25))
    async with Store.open(directory) as store:
        await store.save_genesis(orchard.root, encode(GENESIS))
        for number, block in enumerate(blocks):
            header = block.header
            await store.save_blocks([StoredBlock(name_of(block), header.parent, header.height, encode(block))])
            if number == LENGTH // 2:  # as after a while: part of it in the database, part in the log
                store._database.writer.wal_checkpoint()
        copy_of(directory, living)
    return [name_of(block) for block in blocks]


def copy_of(directory: Path, copy: Path, name: str = DATABASE_NAME) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in directory.glob(f"{name}*"):
        shutil.copy(file, copy)
    return copy


class Kept:
    """A closed data directory, one as a kill leaves it, and what both must hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.closed, self.living = root / "closed", root / "living"
        self.names = trio.run(keep_story, self.closed, self.living)

    def copy(self, directory: Path) -> Path:
        """Give a copy to damage."""
        return copy_of(directory, self.root / "copy")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


async def start(directory: Path) -> Names | str:
    """Start as a node does; give the canon, or what a user would read."""
    try:
        async with Store.open(directory) as store:
            genesis = await store.load_genesis()
            if genesis is None:
                return []
            chain = ChainService(
                genesis_from_bytes(genesis), store, clock=lambda: START, tell=Happened(), penalize=lambda *_: None
            )
            await chain.restore()
            assert chain.store.story == story_id(GENESIS)
            found = [chain.store.canon[height] for height in range(1, chain.store.tip.link.height + 1)]
            assert len(await store.load_blocks(found)) == len(found)
            return found
    except (MachineError, StorageError) as error:
        return str(error)
    except ProtocolError as error:  # of the genesis, which the node that reads it explains
        return str(error)


def flip(path: Path, chance: random.Random, size: int | None = None) -> None:
    """Change a byte, or a run of them as a bad sector does, in a file or its first `size` bytes."""
    data = bytearray(path.read_bytes())
    length = chance.choice((1, 1, 1, 64, 512))
    where = chance.randrange(size or len(data))
    for offset in range(where, min(where + length, len(data))):
        data[offset] ^= chance.randrange(1, 256)
    path.write_bytes(data)


def cut(name: str, size: int) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        path = directory / name
        path.write_bytes(path.read_bytes()[:size])

    return damage


async def test_undamaged_both_hold_the_whole_story(kept: Kept) -> None:
    assert await start(kept.copy(kept.closed)) == kept.names
    assert await start(kept.copy(kept.living)) == kept.names


async def test_flipped_bytes_are_told_or_harmless_and_never_a_silent_loss(kept: Kept, full: bool) -> None:  # noqa: FBT001 - a fixture
    outcomes = list[str]()
    for seed in range(FULL if full else IN_SHORT):
        directory = kept.copy(kept.closed)
        # Every other one in the first page: there the file describes itself.
        flip(directory / DATABASE_NAME, random.Random(seed), 4096 if seed % 2 else None)
        found = await start(directory)
        assert isinstance(found, str) or found == kept.names, f"seed {seed}: {len(found)} of {LENGTH} blocks"
        if isinstance(found, str):
            outcomes.append(found)
    assert outcomes


async def test_a_torn_or_changed_log_costs_its_last_commits_only(kept: Kept, full: bool) -> None:  # noqa: FBT001 - a fixture
    size = (kept.living / LOG).stat().st_size
    for number in range(60 if full else 15):
        for damage in (cut(LOG, size * number // 60), lambda path, seed=number: flip(path / LOG, random.Random(seed))):
            directory = kept.copy(kept.living)
            damage(directory)
            found = await start(directory)
            assert isinstance(found, list), found
            assert found == kept.names[: len(found)]
            assert len(found) > LENGTH // 2


@pytest.mark.parametrize("what", ["gone", "empty", "garbage"])
async def test_the_index_of_the_log_is_made_anew(kept: Kept, what: str) -> None:
    directory = kept.copy(kept.living)
    index = directory / INDEX
    if what == "gone":
        index.unlink()
    else:
        index.write_bytes(b"" if what == "empty" else random.Random(1).randbytes(index.stat().st_size))
    assert await start(directory) == kept.names


@pytest.mark.parametrize("size", [0, 1, 99, 100, 512, 4095, 4096, 8192, 20_000, 40_000, 60_000])
async def test_a_database_cut_short_beside_a_whole_log_is_never_a_silent_loss(kept: Kept, size: int) -> None:
    directory = kept.copy(kept.living)
    cut(DATABASE_NAME, size)(directory)
    found = await start(directory)
    assert isinstance(found, str) or found == kept.names, f"{len(found)} of {LENGTH} blocks"


async def test_a_log_whose_database_is_gone_is_told_of_and_kept(kept: Kept) -> None:
    directory = kept.copy(kept.living)
    (directory / DATABASE_NAME).unlink()
    log = (directory / LOG).read_bytes()
    found = await start(directory)
    assert isinstance(found, str)
    assert (directory / LOG).read_bytes() == log


class KeptJournal:
    """A closed journal, one as a kill leaves it, and what both must hold."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.closed, self.living = root / "closed", root / "living"
        trio.run(self.keep)

    async def keep(self) -> None:
        async with Journal.open(self.closed) as journal:
            self.entries = list(Lane().calls(1, LENGTH))
            for number, entry in enumerate(self.entries):
                await journal.record(entry)
                if number == len(self.entries) // 2:
                    journal._database.writer.wal_checkpoint()
            copy_of(self.closed, self.living, JOURNAL_NAME)

    def copy(self, directory: Path) -> Path:
        """Give a copy to damage."""
        return copy_of(directory, self.root / "copy", JOURNAL_NAME)


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> KeptJournal:
    return KeptJournal(tmp_path_factory.mktemp("bills"))


async def read(directory: Path) -> list[Entry] | str:
    """Read a journal as `loremesh receipts` does; give its entries, or what a user would read."""
    try:
        async with Journal.open(directory) as journal:
            return [unwritten(entry) async for entry in journal.all_entries()]
    except (MachineError, StorageError) as error:
        return str(error)


async def test_flipped_bytes_of_a_journal_are_told_or_harmless_and_never_a_silent_loss(
    bills: KeptJournal,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    assert await read(bills.copy(bills.closed)) == await read(bills.copy(bills.living)) == bills.entries
    told = 0
    for seed in range(FULL if full else IN_SHORT):
        directory = bills.copy(bills.closed)
        flip(directory / JOURNAL_NAME, random.Random(seed), None if seed % 4 else 4096)
        found = await read(directory)
        told += isinstance(found, str)
        assert isinstance(found, str) or found == bills.entries, f"seed {seed}"
    assert told


async def test_a_torn_or_changed_log_costs_a_journal_its_last_commits_only(bills: KeptJournal) -> None:
    log = f"{JOURNAL_NAME}-wal"
    size = (bills.living / log).stat().st_size
    for number in range(15):
        for damage in (cut(log, size * number // 15), lambda path, seed=number: flip(path / log, random.Random(seed))):
            directory = bills.copy(bills.living)
            damage(directory)
            found = await read(directory)
            assert isinstance(found, list), found
            assert found == bills.entries[: len(found)]
            assert len(found) > len(bills.entries) // 2
