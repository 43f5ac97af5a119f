import hashlib
from pathlib import Path

import apsw
import pytest
import trio

from loremesh.errors import UsageError
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.storage.store import Store
from loremesh.storage.writes import (
    MOST_BANS,
    Ban,
    RemoveTransactions,
    SaveBan,
    SaveBlocks,
    SaveTransactions,
    SetNote,
    StoredBlock,
    joined,
)

STORY = Hash(hashlib.sha256(b"genesis").digest())
PEER = PeerId(bytes(39))


def chain(length: int) -> list[StoredBlock]:
    blocks = []
    parent = STORY
    for height in range(1, length + 1):
        data = b"block %d" % height
        blocks.append(StoredBlock(Hash(hashlib.sha256(data).digest()), parent, Height(height), data))
        parent = blocks[-1].hash
    return blocks


async def everything(store: Store, batch: int = 256) -> list[StoredBlock]:
    return [block async for blocks in store.blocks(batch) for block in blocks]


async def test_a_new_directory_is_made_and_holds_nothing(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "a" / "b") as store:
        assert await store.load_genesis() is None
        assert await everything(store) == []
        assert await store.transactions() == []
        assert await store.note("head") is None


async def test_what_was_saved_is_there_after_reopening(tmp_path: Path) -> None:
    blocks = chain(7)
    transactions = [(Hash(hashlib.sha256(data).digest()), data) for data in (b"c", b"a", b"b")]
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        await store.save_blocks(blocks)
        await store.commit(SaveTransactions(tuple(transactions)))
        await store.commit(RemoveTransactions((transactions[1][0],)))
        await store.set_note("head", b"one")
        await store.set_note("head", b"two")

    async with Store.open(tmp_path) as store:
        assert await store.load_genesis() == b"genesis"
        assert await everything(store) == blocks
        assert await store.transactions() == [b"c", b"b"]
        assert await store.note("head") == b"two"


async def test_a_commit_is_seen_by_reads_as_soon_as_it_returns(tmp_path: Path) -> None:
    async with Store.open(tmp_path) as store:
        for number in range(50):
            await store.set_note("count", b"%d" % number)
            assert await store.note("count") == b"%d" % number


@pytest.mark.parametrize("batch", [1, 2, 3, 10, 11])
async def test_blocks_come_back_in_the_order_saved_whatever_the_batch(tmp_path: Path, batch: int) -> None:
    blocks = chain(10)
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        for block in blocks:
            await store.save_blocks([block])

        batches = [found async for found in store.blocks(batch)]

    assert [block for found in batches for block in found] == blocks
    assert all(len(found) <= batch for found in batches)


async def test_saving_a_block_again_changes_nothing(tmp_path: Path) -> None:
    blocks = chain(3)
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        await store.save_blocks(blocks)
        await store.save_blocks([blocks[0], *chain(4)])

        assert await everything(store) == chain(4)


async def test_a_block_whose_parent_is_not_kept_is_refused_and_nothing_of_its_batch_stays(tmp_path: Path) -> None:
    blocks = chain(3)
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")

        with pytest.raises(apsw.ConstraintError):
            await store.save_blocks([blocks[0], blocks[2]])

        assert await everything(store) == []


async def test_an_orphan_is_refused_alone_though_others_save_blocks_at_the_same_time(tmp_path: Path) -> None:
    one, orphan = chain(1)[0], chain(9)[8]
    other = StoredBlock(Hash(bytes(32)), STORY, Height(1), b"beside it")
    refused = []

    async def save(store: Store, block: StoredBlock) -> None:
        try:
            await store.save_blocks([block])
        except apsw.ConstraintError:
            refused.append(block)

    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        async with trio.open_nursery() as nursery:
            for block in (one, orphan, other):
                nursery.start_soon(save, store, block)

        assert refused == [orphan]
        assert {block.hash for block in await everything(store)} == {one.hash, other.hash}


def test_blocks_are_saved_together_only_where_nothing_else_is_written_between_them() -> None:
    a, b, c, d = chain(4)
    note = SetNote("head", b"3")

    assert list(joined([SaveBlocks((a,)), SaveBlocks((b, c)), note, note, SaveBlocks((d,))])) == [
        SaveBlocks((a, b, c)),
        note,
        note,
        SaveBlocks((d,)),
    ]


async def test_only_known_blocks_are_loaded(tmp_path: Path) -> None:
    blocks = chain(3)
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        await store.save_blocks(blocks[:2])

        assert await store.load_blocks([block.hash for block in blocks] + [STORY]) == {
            block.hash: block.data for block in blocks[:2]
        }


async def test_a_block_its_transactions_and_the_head_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    block, orphan = chain(1)[0], chain(9)[8]
    transaction = (Hash(bytes(32)), b"suggest")
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        await store.commit(SaveTransactions((transaction,)))

        with pytest.raises(apsw.ConstraintError):
            await store.commit(RemoveTransactions((transaction[0],)), SetNote("head", b"9"), SaveBlocks((orphan,)))
        assert (await store.transactions(), await store.note("head")) == ([b"suggest"], None)

        await store.commit(RemoveTransactions((transaction[0],)), SetNote("head", b"1"), SaveBlocks((block,)))
        assert (await store.transactions(), await store.note("head")) == ([], b"1")


async def test_a_directory_keeps_one_story(tmp_path: Path) -> None:
    other = Hash(hashlib.sha256(b"other").digest())
    async with Store.open(tmp_path) as store:
        await store.save_genesis(STORY, b"genesis")
        await store.save_genesis(STORY, b"genesis")

        with pytest.raises(
            UsageError, match=f"keeps story {STORY.hex()}, not {other.hex()}: choose another --data-dir"
        ):
            await store.save_genesis(other, b"other")

        assert await store.load_genesis() == b"genesis"


async def test_bans_outlive_a_restart_each_peer_with_its_last_one(tmp_path: Path) -> None:
    other = PeerId(b"\x01" * 39)
    async with Store.open(tmp_path) as store:
        assert await store.bans() == []
        for ban in (Ban(PEER, Millis(5), 1), Ban(other, Millis(7), 1), Ban(PEER, Millis(9), 2)):
            await store.commit(SaveBan(ban, Millis(0)))
    async with Store.open(tmp_path) as store:
        assert await store.bans() == [Ban(other, Millis(7), 1), Ban(PEER, Millis(9), 2)]
        await store.commit(SaveBan(Ban(PEER, Millis(20), 3), Millis(8)))
        assert await store.bans() == [Ban(PEER, Millis(20), 3)]


async def test_of_too_many_bans_those_that_end_first_are_forgotten(tmp_path: Path) -> None:
    many = [Ban(PeerId(number.to_bytes(39, "big")), Millis(number), 1) for number in range(MOST_BANS + 5)]
    async with Store.open(tmp_path) as store:
        await store.commit(*(SaveBan(ban, Millis(0)) for ban in many))
        assert await store.bans() == many[5:]
