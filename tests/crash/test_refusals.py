"""What a node says when its machine refuses: one line, exit code 6, and all is well once the cause is gone."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw
import pytest
import trio

from loremesh.roles.process import FILES_PER_NODE
from loremesh.storage.migrations import MIGRATIONS
from loremesh.storage.store import DATABASE_NAME
from loremesh.testing.node_processes import running, write_story

ProcessorTime = Callable[[int], float]
MACHINE: Final = 6
NAMESPACE: Final = ("unshare", "--mount", "--map-root-user", "sh", "-c")


@pytest.fixture
def story(tmp_path: Path) -> str:
    return str(write_story(tmp_path / "story.toml"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def disk(directory: Path, options: str, then: str = "") -> tuple[str, ...]:
    """Give a command that runs another one with a disk of its own mounted at `directory`; skip where none can be."""
    directory.mkdir(exist_ok=True)
    command = (*NAMESPACE, f'mount -t tmpfs -o {options} none "$0" && {then} exec "$@"', str(directory))
    possible = subprocess.run([*command, "true"], capture_output=True, check=False)
    if possible.returncode:
        pytest.skip(f"no disk can be mounted here: {possible.stderr.decode()}")
    return command


async def refusal(name: str, directory: Path, story: str, *within: str, **options: object) -> str:
    """Start a node that cannot run; give the one line that it says."""
    async with running(name, "--data-dir", str(directory), "--genesis", story, within=within, **options) as node:
        assert await node.wait_end() == MACHINE, node.log()
        assert not node.told("head")
        assert node.log().count("\n") == 1, node.log()
        return node.log()


async def check_runs(directory: Path, story: str) -> None:
    async with running("loremesh-validator", "--data-dir", str(directory), "--genesis", story) as node:
        await node.wait("ready")
        assert (await node.stop())[0] == 0


async def test_a_disk_that_is_full_from_the_start_is_said_in_one_line_wherever_it_shows(
    data: Path,
    story: str,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    # Pages of 4 KiB: one for the directory's own name, then the key, the lock, the journal, the database, its log.
    for pages in range(1, 25) if full else (1, 3, 4, 12, 24):
        said = await refusal("loremesh-validator", data, story, *disk(data, f"size={pages * 4}k"))
        assert str(data) in said, said


async def test_a_disk_that_fills_up_while_a_story_grows_ends_the_node_with_one_line(data: Path, story: str) -> None:
    within = disk(data, "size=300k")
    said = await refusal_of_writer("loremesh-executor", data, story, within)
    assert f"no space left for {data / DATABASE_NAME}" in said


async def refusal_of_writer(name: str, directory: Path, story: str, within: tuple[str, ...]) -> str:
    async with running(name, "--data-dir", str(directory), "--genesis", story, within=within) as node:
        await node.wait("head")
        assert await node.wait_end() == MACHINE, node.log()
        assert node.log().count("\n") == 1, node.log()
        return node.log()


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
async def test_a_disk_that_fails_while_a_story_grows_loses_no_head_and_the_node_goes_on_later(
    data: Path, story: str
) -> None:
    async with running("loremesh-executor", "--data-dir", str(data), "--genesis", story) as node:
        head = await node.wait("head", lambda head: bool(head["height"] >= 3))
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        assert await node.wait_end() == MACHINE, node.log()
        assert node.log().count("\n") == 1, node.log()
        head = node.told("head")[-1]
    async with running("loremesh-executor", "--data-dir", str(data)) as again:
        following = await again.wait("head")
        assert following["height"] == head["height"] + 1


async def test_a_read_only_disk_is_said_in_one_line(data: Path, story: str, tmp_path: Path) -> None:
    said = await refusal("loremesh-validator", data, story, *disk(data, "size=8m", 'mount -o remount,ro "$0" &&'))
    assert str(data) in said
    await check_runs(tmp_path / "kept", story)
    # With a key, a lock and a story already there.
    copy = f'cp -a "{tmp_path}/kept/." "$0" && mount -o remount,ro "$0" &&'
    said = await refusal("loremesh-validator", data, story, *disk(data, "size=8m", copy))
    assert str(data) in said


async def test_a_directory_in_use_is_said_in_one_line_with_its_owner(data: Path, story: str) -> None:
    async with running("loremesh-executor", "--data-dir", str(data), "--genesis", story) as owner:
        await owner.wait("ready")
        for name in ("loremesh-validator", "loremesh-executor"):
            said = await refusal(name, data, story)
            assert f"{data} is in use by process {owner.process.pid}: stop it or choose another --data-dir" in said
        assert (await owner.stop())[0] == 0
    await check_runs(data, story)


async def test_of_two_nodes_started_at_once_on_one_directory_one_runs(data: Path, story: str) -> None:
    flags = ("--data-dir", str(data), "--genesis", story)
    async with running("loremesh-validator", *flags) as one, running("loremesh-validator", *flags) as other:
        with trio.fail_after(60):
            while not all(node.told("ready") or node.process.poll() for node in (one, other)):  # noqa: ASYNC110 - two to watch
                await trio.sleep(0.01)
        loser = other if one.told("ready") else one
        assert await loser.wait_end() == MACHINE
        assert loser.log().count("\n") == 1


async def test_a_directory_of_a_newer_program_is_said_in_one_line_and_left_alone(data: Path, story: str) -> None:
    await check_runs(data, story)
    set_version(data, len(MIGRATIONS) + 1)
    said = await refusal("loremesh-validator", data, story)
    assert "run a newer loremesh, or choose another --data-dir" in said
    set_version(data, len(MIGRATIONS))
    await check_runs(data, story)


def set_version(directory: Path, version: int) -> None:
    connection = apsw.Connection(str(directory / DATABASE_NAME))
    connection.pragma("user_version", version)
    connection.close()


async def test_a_migration_interrupted_by_kill_9_is_done_by_the_next_start(data: Path, story: str) -> None:
    program = f"""
import os, signal, apsw
os.mkdir({str(data)!r})
from loremesh.storage.migrations import MIGRATIONS, migrate
connection = apsw.Connection({str(data / DATABASE_NAME)!r})
connection.pragma("journal_mode", "wal")
connection.create_scalar_function("die", lambda: os.kill(os.getpid(), signal.SIGKILL))
migrate(connection, [MIGRATIONS[0] + "; select die()", *MIGRATIONS[1:]])
"""
    ended = await trio.run_process([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    await check_runs(data, story)


@pytest.mark.parametrize("allowed", [24, 64, FILES_PER_NODE - 1])
async def test_too_few_descriptors_are_said_in_one_line(data: Path, story: str, allowed: int) -> None:
    limited = ("sh", "-c", f'ulimit -n {allowed}; exec "$0" "$@"')
    said = await refusal("loremesh-validator", data, story, *limited)
    assert f"{FILES_PER_NODE}" in said
    assert "ulimit -n" in said


async def test_a_low_limit_of_descriptors_is_raised_as_far_as_a_node_needs(data: Path, story: str) -> None:
    flags = ("--data-dir", str(data), "--genesis", story)
    limited = ("sh", "-c", 'ulimit -S -n 64; exec "$0" "$@"')
    async with running("loremesh-validator", *flags, within=limited) as node:
        await node.wait("ready")
        assert resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)[0] == FILES_PER_NODE


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process")
async def test_a_node_that_runs_out_of_descriptors_neither_ends_nor_spins_and_serves_again(
    data: Path, story: str, processor_time: ProcessorTime
) -> None:
    async with running("loremesh-executor", "--data-dir", str(data), "--genesis", story) as node:
        address = (await node.wait("ready"))["addresses"][0]
        await node.wait("head")
        pid = node.process.pid
        port = int(address.split("/")[4])
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_now = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - a count is all
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 2, before[1]))
        height, used = node.told("head")[-1]["height"], processor_time(pid)
        dialled = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        try:
            began = time.perf_counter()
            # The story goes on all the while, though nobody can be let in.
            await node.wait("head", lambda head: bool(head["height"] >= height + 5))
            took = time.perf_counter() - began
            assert processor_time(pid) - used <= max(0.5 * took, 1)
        finally:
            for one in dialled:
                one.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        flags = ("--data-dir", str(data.with_name("other")), "--bootstrap-nodes", address)
        async with running("loremesh-validator", *flags) as other:
            await other.wait("head", lambda head: bool(head["height"] >= height))
        assert (await node.stop())[0] == 0
        assert "Traceback" not in node.log()
