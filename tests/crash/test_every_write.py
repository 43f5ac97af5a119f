"""A process that keeps something is killed at every write: what it said is kept is kept, and nothing is broken."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from loremesh.protocol.exports import check_export, session_view
from loremesh.protocol.journal import EntryKind, accounts
from loremesh.storage.journal import Journal
from loremesh.storage.store import Store
from loremesh.testing.bills import Lane
from loremesh.testing.calls import count_words

WAYS: Final = ("before", "half", "after", "power")
NEVER: Final = 1_000_000
IN_SHORT: Final = 40
KILLED: Final = -9

Live = Callable[[Path, int, str], int]


@contextmanager
def living(name: str) -> Iterator[Live]:
    """Let a process keep something in a directory until the n-th thing it does to a file; give how it ended."""
    program = [sys.executable, str(Path(__file__).with_name(name))]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        commands, answers = process.stdin, process.stdout

        def once(directory: Path, point: int, way: str) -> int:
            commands.write(f"{directory} {point} {way}\n")
            commands.flush()
            return int(answers.readline())

        yield once
        commands.close()


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with living("dying_store.py") as lives:
        yield lives


@pytest.fixture(scope="module")
def live_as_client() -> Iterator[Live]:
    with living("dying_journal.py") as lives:
        yield lives


def said_in(directory: Path) -> list[list[str]]:
    path = directory.with_name(f"{directory.name}.said")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def things_done(live: Live, tmp_path: Path) -> int:
    """Count what a life that nobody ends does to files."""
    assert live(tmp_path / "whole", NEVER, "after") == 0
    return int(said_in(tmp_path / "whole")[-1][1])


async def check_kept(directory: Path) -> None:
    """Check that all that was said is there, in order and whole, and that the directory can be used again."""
    said = said_in(directory)
    blocks_said = [words[1] for words in said if words[0] == "block"]
    async with Store.open(directory) as store:
        reader = store._database.reader
        assert reader.pragma("integrity_check") == "ok"
        assert reader.execute("pragma foreign_key_check").fetchall() == []
        genesis = await store.load_genesis()
        assert genesis == b"genesis" if ["genesis"] in said else genesis in {None, b"genesis"}
        blocks = [block async for found in store.blocks() for block in found]
        assert [block.hash.hex() for block in blocks][: len(blocks_said)] == blocks_said
        assert len(blocks) - len(blocks_said) in {0, 1}  # the commit under way may have reached the disk
        parents = [hashlib.sha256(b"genesis").digest(), *(block.hash for block in blocks)]
        assert [block.parent for block in blocks] == parents[: len(blocks)]
        assert await store.note("head") == (blocks[-1].hash if blocks else None)
        # Every second block came with a snapshot.
        snapshots = [snapshot async for snapshot in store.snapshots()]
        assert [snapshot.last for snapshot in snapshots] == [block.hash for block in blocks[1::2]]
        # A block and the end of its transaction are one commit.
        waiting = await store.transactions()
        numbers = [number for number in range(9) if hashlib.sha256(b"waiting %d" % number).digest() in waiting]
        if ["transactions"] in said or waiting:
            assert numbers == [0, *range(len(blocks) + 1, 9)]
        await store.set_note("again", b"x")
        assert await store.note("again") == b"x"


def deaths(live: Live, tmp_path: Path, *, full: bool) -> Iterator[Path]:
    """Kill one life after the other, each at another point or in another way; give what each leaves behind."""
    points = list(product(range(1, things_done(live, tmp_path) + 1), WAYS))
    assert len(points) >= 200
    chosen = points if full else points[:: len(points) // IN_SHORT | 1]  # an odd step comes by all ways
    assert {way for _, way in chosen} == set(WAYS)
    for point, way in chosen:
        directory = tmp_path / f"{point}-{way}"
        assert live(directory, point, way) == KILLED
        yield directory


async def test_killed_at_every_write_it_keeps_what_it_said_and_can_go_on(
    live: Live,
    tmp_path: Path,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    for directory in deaths(live, tmp_path, full=full):
        await check_kept(directory)


async def check_bills(directory: Path) -> None:
    """Check that every call that was said to be written down is, once and in order, and that another one can be."""
    said = [words for words in said_in(directory) if words[0] in {"receipt", "voucher"}]
    async with Journal.open(directory) as journal:
        assert journal._database.reader.pragma("integrity_check") == "ok"
        there = [
            ["voucher" if entry.kind is EntryKind.VOUCHER else "receipt", str(int.from_bytes(entry.request, "big"))]
            for entry in await journal.entries()
        ]
        assert there[: len(said)] == said
        assert len(there) - len(said) in {0, 1}  # the commit under way may have reached the disk
        # Whoever starts again writes what it is not sure of once more: nothing is there twice, and all of it holds.
        lane = Lane()
        for number in range(1, 10):
            evidence, entry = lane.call(number, is_kept=True)
            await journal.record(entry, lane.sign(evidence)[1])
        [account] = accounts(await journal.entries())
        assert [int.from_bytes(entry.request, "big") for entry in account.receipts] == list(range(1, 10))
        assert account.voucher == lane.voucher
        assert check_export(session_view(account), lambda: count_words)[0].vouchers == 9


async def test_a_client_killed_at_every_write_has_each_call_in_its_journal_once(
    live_as_client: Live,
    tmp_path: Path,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    for directory in deaths(live_as_client, tmp_path, full=full):
        await check_bills(directory)


async def test_killed_again_and_again_while_it_recovers_it_loses_nothing(live: Live, tmp_path: Path) -> None:
    directory = tmp_path / "again"
    for point in range(3, 60, 4):
        live(directory, point, WAYS[point % len(WAYS)])
        # Every life begins the same story anew: what the former ones kept stays.
        lines = said_in(directory)
        kept = {words[1] for words in lines if words[0] == "block"}
        async with Store.open(directory) as store:
            there = {block.hash.hex() async for found in store.blocks() for block in found}
            assert store._database.reader.pragma("integrity_check") == "ok"
        assert kept <= there
