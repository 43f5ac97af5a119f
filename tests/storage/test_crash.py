"""What is left when a process ends without a goodbye."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import apsw
import pytest

from loremesh.errors import MachineError
from loremesh.storage.migrations import MIGRATIONS, migrate
from loremesh.storage.store import DATABASE_NAME, Store

WRITER = """
import hashlib, sys
from pathlib import Path
import trio
from loremesh.primitives import Hash, Height
from loremesh.storage.store import Store
from loremesh.storage.writes import SaveBlocks, SetNote, StoredBlock

def name(data):
    return Hash(hashlib.sha256(data).digest())

async def write_chain(store):
    parent = name(b"genesis")
    for height in range(1, 100_000):
        data = b"%d " % height * 300
        block = StoredBlock(name(data), parent, Height(height), data)
        await store.commit(SaveBlocks((block,)), SetNote("head", block.hash))
        print("block", block.hash.hex(), flush=True)
        parent = block.hash

async def write_notes(store, writer):
    for number in range(100_000):
        await store.set_note(f"{writer}.{number}", b"x")
        print("note", f"{writer}.{number}", flush=True)

async def main():
    async with Store.open(Path(sys.argv[1])) as store:
        await store.save_genesis(name(b"genesis"), b"genesis")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_chain, store)
            for writer in range(3):
                nursery.start_soon(write_notes, store, writer)

trio.run(main)
"""


@contextmanager
def writing(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that writes into `directory` and prints what is durable, until it is killed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def write_until_killed(directory: Path, lines: int) -> list[str]:
    with writing(directory) as process:
        assert process.stdout is not None
        reported = list(islice(process.stdout, lines))
        process.kill()
        # The last line may be cut short by the kill.
        return reported + [line for line in process.stdout if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 2, 13, 200, 2000])
async def test_whatever_was_reported_kept_survives_kill_9(tmp_path: Path, lines: int) -> None:
    said = [line.split() for line in write_until_killed(tmp_path, lines)]

    async with Store.open(tmp_path) as store:
        blocks = [block async for found in store.blocks() for block in found]
        head = await store.note("head")
        lost = [key for kind, key in said if kind == "note" and await store.note(key) is None]
    assert len(said) >= lines
    assert lost == []
    assert {key for kind, key in said if kind == "block"} <= {block.hash.hex() for block in blocks}
    parents = [hashlib.sha256(b"genesis").digest(), *(block.hash for block in blocks)]
    assert [block.parent for block in blocks] == parents[: len(blocks)]
    assert head == (blocks[-1].hash if blocks else None)


def test_a_migration_interrupted_by_kill_9_leaves_the_version_before(tmp_path: Path) -> None:
    path = str(tmp_path / DATABASE_NAME)
    connection = apsw.Connection(path)
    connection.pragma("journal_mode", "wal")
    migrate(connection)
    connection.close()
    program = f"""
import os, signal, apsw
from loremesh.storage.migrations import MIGRATIONS, migrate
connection = apsw.Connection({path!r})
connection.create_scalar_function("die", lambda: os.kill(os.getpid(), signal.SIGKILL))
migrate(connection, [*MIGRATIONS, "drop table note; create table new (x); select die()"])
"""

    finished = subprocess.run([sys.executable, "-c", program], check=False)

    assert finished.returncode == -9
    connection = apsw.Connection(path)
    assert connection.pragma("user_version") == len(MIGRATIONS)
    assert connection.table_exists("main", "note")
    assert not connection.table_exists("main", "new")
    connection.close()


async def test_two_processes_cannot_keep_one_directory(tmp_path: Path) -> None:
    with writing(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(MachineError, match=f"{tmp_path} is in use by process {other.pid}"):
            async with Store.open(tmp_path):
                raise AssertionError("two owners")


async def test_a_directory_of_a_newer_program_is_refused_and_can_be_opened_by_it_later(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / DATABASE_NAME))
    connection.pragma("user_version", len(MIGRATIONS) + 1)
    connection.close()

    for _ in range(2):  # the refusal lets go of the lock
        with pytest.raises(MachineError, match="run a newer loremesh, or choose another --data-dir"):
            async with Store.open(tmp_path):
                raise AssertionError("opened what it does not know")


@contextmanager
def read_only_directory() -> Iterator[Path]:
    """Give a directory in which this process may not write, even when it runs as root."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "data"
        directory.mkdir()
        Path(name).chmod(0o755)
        directory.chmod(0o555)
        before = os.geteuid()
        if before == 0:
            os.seteuid(nobody)
        try:
            yield directory
        finally:
            os.seteuid(before)


async def test_a_directory_that_cannot_be_written_is_the_machines_refusal() -> None:
    with read_only_directory() as directory:
        for name in (directory, directory / "new"):
            with pytest.raises(MachineError, match=f"cannot .*{directory}.*Permission denied"):
                async with Store.open(name):
                    raise AssertionError("wrote where nothing can be written")
