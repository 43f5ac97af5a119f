"""SIGTERM at any stage of a node's life: exit code 0 within seconds, nothing said, port and lock free again."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
import trio

from loremesh.storage.lock import LOCK_NAME, locked
from loremesh.storage.store import DATABASE_NAME
from loremesh.testing.node_processes import NodeProcess, children_of, running, write_story

IN_TIME: Final = 3.0
PATIENT: Final = 10.0
"""Seconds that a stop may take, and the most that any takes on a machine that others keep busy."""
TRIES: Final = 4

Reached = Callable[[NodeProcess, Path], Awaitable[None]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(is_so: Callable[[], bool]) -> None:
    """Look at the world outside again and again: it sends no events."""
    with trio.fail_after(60):
        while not is_so():  # noqa: ASYNC110 - as said
            await trio.sleep(0.001)


def handles(node: NodeProcess) -> bool:
    """Tell whether a process has a handler of its own for SIGTERM."""
    status = Path(f"/proc/{node.process.pid}/status").read_text(encoding="ascii")
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def has_imported(node: NodeProcess, name: str) -> bool:
    return name in Path(f"/proc/{node.process.pid}/maps").read_text(encoding="utf-8")


async def importing(node: NodeProcess, _directory: Path) -> None:
    await until(lambda: handles(node))


async def importing_libp2p(node: NodeProcess, _directory: Path) -> None:
    await until(lambda: has_imported(node, "coincurve"))


async def key_made(_node: NodeProcess, directory: Path) -> None:
    await until((directory / "key").exists)


async def directory_locked(_node: NodeProcess, directory: Path) -> None:
    await until((directory / LOCK_NAME).exists)


async def database_made(_node: NodeProcess, directory: Path) -> None:
    await until((directory / f"{DATABASE_NAME}-wal").exists)


async def listening(node: NodeProcess, _directory: Path) -> None:
    def listens() -> bool:
        places = list(descriptors(node))
        inodes = {place[8:-1] for place in places if place.startswith("socket:")}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        return any(row[9] in inodes and row[3] == "0A" for row in rows)

    await until(listens)


def descriptors(node: NodeProcess) -> Iterator[str]:
    """Name what a process holds open; what it closes meanwhile is left out."""
    for entry in Path(f"/proc/{node.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield str(entry.readlink())


async def telling_its_role(node: NodeProcess, _directory: Path) -> None:
    await node.wait("state")


async def ready(node: NodeProcess, _directory: Path) -> None:
    await node.wait("ready")


async def mining(node: NodeProcess, _directory: Path) -> None:
    await node.wait("head")


STAGES = [importing, importing_libp2p, key_made, directory_locked, database_made, listening, telling_its_role, ready]


@contextmanager
def silent_listener() -> Iterator[str]:
    """Take connections and say nothing: whoever dials is kept waiting."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"


async def check_stops(
    name: str, reached: Reached, directory: Path, *flags: str, number: signal.Signals = signal.SIGTERM
) -> Path:
    """Stop a node at a stage until it goes in time; give the folder that was its own when it did.

    Each time it has to go cleanly, and the same command has to work afterwards. What is late is tried again, since
    a machine that others keep busy makes any node late; one that is always late fails.
    """
    times: list[float] = []
    while len(times) < TRIES:
        own = directory / str(len(times))
        times.append(await _stop(name, reached, own, *flags, number=number))
        if times[-1] <= IN_TIME:
            return own
    pytest.fail(f"{name} stopped when {reached.__name__}: took {times} seconds")


async def _stop(name: str, reached: Reached, directory: Path, *flags: str, number: signal.Signals) -> float:
    port = free_port()
    command = (name, "--data-dir", str(directory), "--listen-address", f"/ip4/127.0.0.1/tcp/{port}", *flags)
    async with running(*command) as node:
        await reached(node, directory)
        code, took = await node.stop(number)
        assert code == 0, node.log()
        assert "Traceback" not in node.log()
        assert "[error" not in node.log(), node.log()
        assert took <= PATIENT, reached.__name__
        sys.stdout.write(f"{name} stopped when {reached.__name__}: {took:.2f} s\n")
    with socket.create_server(("127.0.0.1", port)):
        pass
    with locked(directory):
        pass
    return took


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process through /proc")
async def test_a_validator_stopped_at_any_stage_of_its_start_goes_cleanly(
    tmp_path: Path,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    for stage in STAGES:
        data = await check_stops("loremesh-validator", stage, tmp_path / stage.__name__, "--genesis", genesis)
        if full or stage in {key_made, database_made}:
            async with running("loremesh-validator", "--data-dir", str(data), "--genesis", genesis) as node:
                await node.wait("ready")


async def test_an_executor_stopped_while_it_mines_goes_cleanly(tmp_path: Path) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    await check_stops("loremesh-executor", mining, tmp_path / "data", "--genesis", genesis)


async def test_an_interrupt_is_as_good_as_a_termination(tmp_path: Path) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    for stage in (importing_libp2p, ready):
        await check_stops(
            "loremesh-executor", stage, tmp_path / stage.__name__, "--genesis", genesis, number=signal.SIGINT
        )


async def test_a_node_stopped_while_it_waits_for_a_silent_bootstrap_node_goes_cleanly(tmp_path: Path) -> None:
    with silent_listener() as address:
        # Fetching the story, and with one of its own.
        await check_stops("loremesh-validator", listening, tmp_path / "none", "--bootstrap-nodes", address)
        genesis = str(write_story(tmp_path / "story.toml"))
        flags = ("--bootstrap-nodes", address, "--genesis", genesis)
        await check_stops("loremesh-validator", telling_its_role, tmp_path / "own", *flags)


async def test_a_node_stopped_while_it_syncs_goes_cleanly(tmp_path: Path) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    async with running("loremesh-executor", "--data-dir", str(tmp_path / "far"), "--genesis", genesis) as far:
        address = (await far.wait("ready"))["addresses"][0]
        await far.wait("head", lambda head: head["height"] >= 15)
        # Its first head while it is being told of the others.
        await check_stops("loremesh-validator", mining, tmp_path / "new", "--bootstrap-nodes", address)


async def test_a_signal_to_every_process_of_a_node_is_a_clean_stop_too(tmp_path: Path) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    for number in (signal.SIGTERM, signal.SIGINT):
        directory = str(tmp_path / number.name)
        async with running("loremesh-executor", "--data-dir", directory, "--genesis", genesis) as node:
            await node.wait("head")
            [child] = children_of(node.process.pid)
            os.kill(child, number)
            code, _ = await node.stop(number)
            assert (code, node.log()) == (0, "")
            with pytest.raises(ProcessLookupError):
                os.kill(child, 0)


async def test_signals_without_end_end_a_node_cleanly_or_at_once(tmp_path: Path) -> None:
    genesis = str(write_story(tmp_path / "story.toml"))
    async with running("loremesh-validator", "--data-dir", str(tmp_path / "data"), "--genesis", genesis) as node:
        await node.wait("ready")
        for _ in range(50):
            node.send(signal.SIGTERM)
        # Ended by itself, at the second signal, or by one after its last word: a shell shows 0, 143 and 143.
        assert await node.wait_end() in {0, 128 + signal.SIGTERM, -signal.SIGTERM}
        assert "Traceback" not in node.log()
