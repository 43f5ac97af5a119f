"""Starting again from a snapshot: the same as judging every block anew, and never worse when a snapshot is damaged."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.primitives import Hash
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import KEEP_STATES, Entry, Store, new_store
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.snapshot import decode_state, encode_state, pack_entry, unpack_entries
from loremesh.protocol.state import State
from loremesh.services.chain import ChainService, Disk
from loremesh.storage.migrations import MIGRATIONS, migrate
from loremesh.storage.store import DATABASE_NAME
from loremesh.storage.store import Store as Files
from loremesh.storage.writes import SaveBlocks, SaveSnapshot, StoredSnapshot
from loremesh.testing.builders import BOB, CAT, DAN, START, small_genesis, suggestion
from loremesh.testing.forests import grow
from loremesh.testing.happened import Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard, name_of

GENESIS = small_genesis()
EVERY = 8


class Forgetful(MemoryDisk):
    """A disk without snapshots: whoever starts from it judges every block."""

    def __init__(self, kept: MemoryDisk) -> None:
        super().__init__()
        for writes in kept.commits:
            for write in writes:
                if not isinstance(write, SaveSnapshot):
                    self._keep(write)


async def started(disk: Disk, genesis: Genesis = GENESIS, max_reorg: int | None = None) -> ChainService:
    chain = ChainService(
        genesis,
        disk,
        clock=lambda: START + 10**9,
        tell=Happened(),
        penalize=lambda *_: None,
        max_reorg=max_reorg,
        snapshot_every=EVERY,
    )
    await chain.restore()
    return chain


async def submit(chain: ChainService, blocks: list[Any], at_once: int = 3) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chain.run)
        for start in range(0, len(blocks), at_once):
            await chain.submit_all(blocks[start : start + at_once], DAN.peer_id)
        nursery.cancel_scope.cancel()


def tree_of(store: Store) -> dict[str, object]:
    """Give what two stores that have judged the same blocks must agree on."""
    return {
        "head": store.head,
        "entries": dict(store.entries),
        "canon": [store.canon[height] for height in range(len(store.canon))],
        "tips": store.tips,
        "root": store.states[store.head].root,
    }


def snapshots_on(disk: MemoryDisk) -> list[StoredSnapshot]:
    return [write.snapshot for writes in disk.commits for write in writes if isinstance(write, SaveSnapshot)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 5), size=st.integers(0, 60), order=st.randoms(use_true_random=False))
def test_a_restart_from_a_snapshot_gives_what_judging_every_block_gives(
    seed: int, size: int, order: random.Random
) -> None:
    async def check() -> None:
        grown = grow(seed, 60)
        blocks = list(grown.blocks)
        disk = MemoryDisk()
        chain = await started(disk, grown.genesis)
        await submit(chain, blocks[:size], at_once=order.randrange(1, 5))
        again, judged = await started(disk, grown.genesis), await started(Forgetful(disk), grown.genesis)
        assert tree_of(again.store) == tree_of(judged.store) == tree_of(chain.store)
        # Whatever comes later is judged alike too: states that were not written down are had again.
        for one in (again, judged):
            await submit(one, blocks[size:])
        assert tree_of(again.store) == tree_of(judged.store)
        assert again.store.head == grown.store.head

    trio.run(check)


async def test_a_restart_judges_only_the_blocks_behind_the_last_snapshot() -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, 3 * EVERY + 2, BOB, CAT)
    await submit(await started(disk), blocks, at_once=1)
    assert [snapshot.last for snapshot in snapshots_on(disk)] == [name_of(blocks[EVERY * n - 1]) for n in (1, 2, 3)]
    again = await started(disk)
    # A state for each block that was judged, one for the snapshot's head and one for the genesis.
    assert set(again.store.states) == {orchard.root, *map(name_of, blocks[3 * EVERY - 1 :])}
    assert again.store.head == name_of(blocks[-1])


async def test_a_snapshot_is_one_commit_with_its_last_block() -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    await submit(await started(disk), orchard.grow(orchard.root, EVERY, BOB, CAT), at_once=1)
    assert [type(write) for write in disk.commits[-1]] == [SaveBlocks, SaveSnapshot]
    assert len(disk.commits) == EVERY


async def test_a_restart_of_a_directory_without_snapshots_writes_them_for_the_next() -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, 300, BOB, CAT)
    await submit(await started(disk), blocks, at_once=64)
    old = Forgetful(disk)
    await started(old)
    assert snapshots_on(old)
    assert tree_of((await started(old)).store) == tree_of((await started(disk)).store)


def changed(**fields: Any) -> Callable[[StoredSnapshot], StoredSnapshot]:
    return lambda snapshot: replace(snapshot, **fields)


@pytest.mark.parametrize(
    "damage",
    [
        changed(state=b""),
        changed(state=b"no state"),
        changed(state=encode_state(State())),
        changed(state=b"\x07\x00\x00\x00\x00"),
        changed(records=b"no record"),
        changed(records=bytes(143)),
        changed(head=Hash(bytes(32))),
    ],
    ids=[
        "no state",
        "garbage for a state",
        "another state",
        "an unknown entry",
        "garbage",
        "a record of nothing",
        "an unknown head",
    ],
)
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_damaged_snapshot_is_passed_over(
    damage: Callable[[StoredSnapshot], StoredSnapshot], which: int
) -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    trunk = orchard.grow(orchard.root, 3 * EVERY + 2 - which, BOB, CAT)
    await submit(await started(disk), trunk, at_once=1)
    disk._snapshots[which] = damage(disk._snapshots[which])
    again, judged = await started(disk), await started(Forgetful(disk))
    assert tree_of(again.store) == tree_of(judged.store)
    fork = orchard.grow(name_of(trunk[EVERY]), 2, DAN, BOB)
    for one in (again, judged):
        await submit(one, fork)
    assert tree_of(again.store) == tree_of(judged.store)


async def test_a_fork_far_below_is_replayed_from_the_nearest_state_on_the_disk() -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    trunk = orchard.grow(orchard.root, KEEP_STATES + 5 * EVERY, BOB, CAT)
    await submit(await started(disk), trunk, at_once=1)
    again = await started(disk)
    fork = orchard.grow(name_of(trunk[3 * EVERY + 1]), 2, DAN, BOB)
    await submit(again, fork)
    assert name_of(fork[-1]) in again.store.tips
    below = {again.store.entries[name].link.height for name in again.store.states}
    # From the snapshot at 3 * EVERY on, not from the genesis: the blocks before that were not loaded.
    assert below & set(range(1, 4 * EVERY)) == {3 * EVERY, 3 * EVERY + 1, 3 * EVERY + 2, 3 * EVERY + 3, 3 * EVERY + 4}


async def test_an_operator_who_allows_a_deeper_reorganisation_gets_it_at_the_restart() -> None:
    disk, orchard = MemoryDisk(), Orchard(GENESIS)
    trunk, longer = orchard.grow(orchard.root, EVERY, BOB, CAT), orchard.grow(orchard.root, EVERY + 2, CAT, DAN)
    withheld = await started(disk, max_reorg=3)
    await submit(withheld, [*trunk, *longer])
    assert withheld.store.head == name_of(trunk[-1])
    assert len(snapshots_on(disk)) >= 2
    assert (await started(disk, max_reorg=3)).store.head == name_of(trunk[-1])
    allowed = await started(disk, max_reorg=EVERY)
    assert allowed.store.head == name_of(longer[-1])
    assert allowed.parent().state.root == longer[-1].header.state_root


def test_records_give_back_the_entries_they_were_made_from() -> None:
    store = grow(3, 60).store
    known: dict[Hash, Entry] = {store.story: store.entries[store.story]}
    ordered = sorted(store.entries.values(), key=lambda entry: entry.link.height)
    unpack_entries(b"".join(pack_entry(entry) for entry in ordered if not entry.is_genesis), known)
    assert known == dict(store.entries)


def test_a_state_that_was_written_down_is_the_same_state() -> None:
    orchard = Orchard(GENESIS)
    wishes = tuple(suggestion(DAN, GENESIS, f"Lamp {number} goes out.", number) for number in range(5))
    orchard.grow(orchard.root, 1, BOB, transactions=wishes)
    state = orchard._store.states[orchard._store.head]
    again = decode_state(encode_state(state))
    assert again.root == state.root
    assert dict(again.suggestions) == dict(state.suggestions)
    assert (dict(again.nonces), dict(again.authors)) == (dict(state.nonces), dict(state.authors))
    assert decode_state(encode_state(State())).root == new_store(GENESIS, START).states[story_id(GENESIS)].root


async def keep_story(directory: Path, length: int) -> list[Hash]:
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, length, BOB, CAT)
    async with Files.open(directory) as files:
        await files.save_genesis(orchard.root, encode(GENESIS))
        await submit(await started(files), blocks, at_once=1)
    return [name_of(block) for block in blocks]


async def test_snapshots_on_the_disk_that_do_not_agree_with_their_blocks_are_not_given(tmp_path: Path) -> None:
    names = await keep_story(tmp_path, 3 * EVERY)
    async with Files.open(tmp_path) as files:
        assert [snapshot.last async for snapshot in files.snapshots()] == names[EVERY - 1 :: EVERY]
        files._database.writer.execute(
            "update snapshot set records = x'00' || records where sequence > ?", (2 * EVERY,)
        )
        assert [snapshot.last async for snapshot in files.snapshots()] == [names[EVERY - 1]]
        assert (await started(files)).store.head == names[-1]
        # What was judged again is written down again, in place of what was damaged.
        assert len([snapshot async for snapshot in files.snapshots()]) == 2
        files._database.writer.execute("update block set data = zeroblob(9) where sequence = 3")
        assert [snapshot async for snapshot in files.snapshots()] == []


async def test_a_directory_of_the_version_before_snapshots_is_brought_to_this_one(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    names = await keep_story(new, 2 * EVERY)
    old.mkdir()
    connection = apsw.Connection(str(old / DATABASE_NAME))
    migrate(connection, MIGRATIONS[:1])
    connection.execute("attach ? as new", (str(new / DATABASE_NAME),))
    connection.execute("insert into main.block select * from new.block")
    connection.close()
    async with Files.open(old) as files:
        assert (await started(files)).store.head == names[-1]
        assert [snapshot.last async for snapshot in files.snapshots()] == [names[-1]]
    async with Files.open(old) as files:
        assert (await started(files)).store.head == names[-1]
