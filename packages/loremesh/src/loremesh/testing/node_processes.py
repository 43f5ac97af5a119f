"""The programs as real processes: started, listened to by their JSON events, and ended, whatever a test does."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from loremesh.primitives import Millis
from loremesh.protocol.genesis import Parameters, genesis_to_toml
from loremesh.testing.builders import small_genesis

PATIENCE: Final = 90.0
"""Seconds after which a wait has failed: generous, since machines are shared."""
SWIFT: Final = Parameters(
    spacing=Millis(150),
    min_spacing=Millis(50),
    solo_after=Millis(200),
    half_life=Millis(3000),
    initial_work=64,
    easiest_work=1,
)
"""A story that grows by several blocks per second, also by one node alone."""
BRISK: Final = Parameters(
    spacing=Millis(700),
    min_spacing=Millis(200),
    half_life=Millis(10_000),
    initial_work=2**12,
    easiest_work=2**8,
    solo_after=Millis(2000),
)
"""A story in which several nodes race for each block, and a block comes in less than a second."""
LOOPBACK: Final = ("--listen-address", "/ip4/127.0.0.1/tcp/0")
_MAX_LOG: Final = 4000

Event = dict[str, Any]
Fits = Callable[[Event], bool]


def program(name: str) -> str:
    """Find a program of ours beside this Python, as a virtual environment has it."""
    return str(Path(sys.executable).parent / name)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give this process's environment without settings of ours, so that only what a test says counts."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LOREMESH_")}
    return {**kept, **(extra or {})}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and what it said."""

    code: int
    out: str
    err: str

    def json(self) -> Any:  # noqa: ANN401 - as JSON has it
        """Read what it printed."""
        return json.loads(self.out)


def children_of(pid: int) -> list[int]:
    """List the processes that a process has started, from any of its threads; on Linux alone."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for one in lists for child in one.read_text(encoding="ascii").split()]


async def run_program(
    name: str, *arguments: str, extra: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Ended:
    """Run a program to its end.

    Raises:
        trio.TooSlowError: It did not end.
    """
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [program(name), *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=clean_environment(extra),
            cwd=cwd,
        )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


async def ask(command: str, address: str, *arguments: str) -> Any:  # noqa: ANN401 - as JSON has it
    """Run a client command against the node at `address`; give its JSON answer.

    Raises:
        AssertionError: It failed; with what it said.
    """
    ended = await run_program("loremesh", command, *arguments, "--bootstrap-nodes", address, "--json")
    if ended.code:
        raise AssertionError(f"loremesh {command} ended with {ended.code}: {ended.err}")
    return ended.json()


@dataclass(slots=True)
class NodeProcess:
    """A node program that runs, or ran, and what it has told."""

    process: trio.Process
    log_file: Path
    started: float = field(default_factory=time.perf_counter)
    """When it was started."""
    events: list[Event] = field(default_factory=list)
    """Whole lines of stdout."""
    times: list[float] = field(default_factory=list)
    """When each of `events` came, in seconds after `started`."""
    _more: trio.Event = field(default_factory=trio.Event)
    _closed: bool = False

    async def wait(self, event: str, fits: Fits | None = None, **values: Any) -> Event:  # noqa: ANN401 - as JSON has it
        """Wait for an event as `told` finds it; give the first.

        Raises:
            AssertionError: The program ended, or did not tell it in time; with the end of its log.
        """
        with trio.move_on_after(PATIENCE):
            while not (found := self.told(event, fits, **values)):
                if self._closed:
                    break
                await self._more.wait()
            else:
                return found[0]
        raise AssertionError(f"no {event} {values}; the log ends with:\n{self.log()[-_MAX_LOG:]}")

    def told(self, event: str, fits: Fits | None = None, *, min_height: int = 0, **values: Any) -> list[Event]:  # noqa: ANN401 - as above
        """List the events of a kind so far.

        Args:
            event: The kind.
            fits: Chooses among them; None: all.
            min_height: Leaves out those of lower heights.
            values: Leaves out those that have others.
        """
        return [
            one
            for one in self.events
            if one["event"] == event
            and one.get("height", 0) >= min_height
            and all(one.get(key) == value for key, value in values.items())
            and (fits is None or fits(one))
        ]

    async def wait_address(self) -> str:
        """Wait until it is ready; give where it can be dialled."""
        ready = await self.wait("ready")
        return str(ready["addresses"][0])

    @property
    def height(self) -> int:
        """The height of the last head it told."""
        heads = self.told("head")
        return int(heads[-1]["height"]) if heads else 0

    def log(self) -> str:
        """Give what it wrote on stderr."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; give the exit code."""
        self.send(number)
        return await self.wait_end()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; give the exit code, and the seconds until the end."""
        began = time.perf_counter()
        self.send(number)
        with trio.fail_after(PATIENCE):
            await self.process.wait()
        took = time.perf_counter() - began
        return await self.wait_end(), took

    async def wait_end(self) -> int:
        """Wait until it has ended and all it told is read; give the exit code."""
        with trio.fail_after(PATIENCE):
            code = await self.process.wait()
            while not self._closed:
                await self._more.wait()
        return code

    async def listen(self) -> None:
        """Take in what it prints, until it ends."""
        assert self.process.stdout is not None  # noqa: S101 - opened with a pipe
        unread = b""
        async for piece in self.process.stdout:
            *lines, unread = (unread + piece).split(b"\n")
            self.events += map(json.loads, lines)
            self.times += [time.perf_counter() - self.started] * len(lines)
            self._ring()
        self._closed = True
        self._ring()

    def _ring(self) -> None:
        self._more.set()
        self._more = trio.Event()


StartNode = Callable[..., Awaitable[NodeProcess]]
"""Starts a node under a name, with arguments; what a fixture gives."""


async def run_node_process(
    name: str,
    log_file: Path,
    *arguments: str,
    extra: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    task_status: trio.TaskStatus[NodeProcess] = trio.TASK_STATUS_IGNORED,
    **options: Any,  # noqa: ANN401 - as subprocess takes them
) -> None:
    """Run a node program with `--json` until it ends, or kill it when cancelled; reports the node.

    Args:
        name: `loremesh-validator` or `loremesh-executor`; `loremesh`, where `arguments` begin with `gateway`.
        log_file: Its stderr is added there.
        arguments: Of the program.
        extra: Of its environment.
        within: A command that runs the rest, `unshare` for example.
        task_status: Gets the node.
        options: Of `subprocess.Popen`.
    """
    began = time.perf_counter()
    with log_file.open("ab") as log:
        process = await trio.lowlevel.open_process(
            [*within, program(name), *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=clean_environment(extra),
            **options,
        )
    node = NodeProcess(process, log_file, began)
    try:
        task_status.started(node)
        await node.listen()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            # A killed process ends at once: this only collects it.
            await process.wait()


@asynccontextmanager
async def running(name: str, *arguments: str, **options: Any) -> AsyncIterator[NodeProcess]:  # noqa: ANN401 - as above
    """Run a node program for as long as the block lasts; what is left of it then is killed.

    Args:
        name: `loremesh-validator` or `loremesh-executor`.
        arguments: `--json` and a free port of 127.0.0.1 come by themselves.
        options: Of `run_node_process`.
    """
    where = () if "--listen-address" in arguments else LOOPBACK
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.txt"
        async with trio.open_nursery() as nursery:
            yield await nursery.start(partial(run_node_process, name, log, *arguments, *where, **options))
            nursery.cancel_scope.cancel()


def write_story(path: Path, parameters: Parameters = SWIFT) -> Path:
    """Write the genesis of a small story to a file; give the path."""
    path.write_text(genesis_to_toml(small_genesis(parameters)), encoding="utf-8")
    return path
