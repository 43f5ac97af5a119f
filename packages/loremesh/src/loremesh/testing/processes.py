"""Node programs that are stopped, killed and starved: what they said, how they ended, and how long that took."""

import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from loremesh.primitives import Millis
from loremesh.protocol.genesis import Parameters, genesis_to_toml
from loremesh.testing.builders import small_genesis
from loremesh.testing.node_processes import clean_environment, program

PATIENCE: Final = 60.0
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

Event = dict[str, Any]


@dataclass(slots=True)
class Program:
    """A program that runs, or ran, and what it has said so far."""

    process: trio.Process
    started: float
    """When it was started, by `time.perf_counter`."""
    events: list[Event] = field(default_factory=list)
    """Whole lines of stdout."""
    times: list[float] = field(default_factory=list)
    """When each of `events` came, in seconds after `started`."""
    stderr: bytearray = field(default_factory=bytearray)
    _more: trio.Event = field(default_factory=trio.Event)
    _unread: list[bool] = field(default_factory=lambda: [True, True])

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self.stderr.decode(errors="replace")

    def of(self, name: str) -> list[Event]:
        """List the events of a name."""
        return [event for event in self.events if event["event"] == name]

    async def wait(self, name: str, fits: Callable[[Event], bool] = lambda _: True) -> Event:
        """Wait for the first event of a name that fits.

        Raises:
            AssertionError: It ended before.
            trio.TooSlowError: It did not come.
        """
        with trio.fail_after(PATIENCE):
            while True:
                for event in self.of(name):
                    if fits(event):
                        return event
                assert self._unread[0], f"ended before {name}: {self.said}"  # noqa: S101 - for tests
                await self._more.wait()

    async def wait_end(self) -> int:
        """Wait until it has ended and all it said is read; give its exit code."""
        with trio.fail_after(PATIENCE):
            code = await self.process.wait()
            while any(self._unread):
                await self._more.wait()
        return code

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; give the exit code, and the seconds until the end."""
        began = time.perf_counter()
        self.process.send_signal(number)
        with trio.fail_after(PATIENCE):
            await self.process.wait()
        took = time.perf_counter() - began
        return await self.wait_end(), took

    async def read(self) -> None:
        """Take in what it says until it ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_stderr)
            assert self.process.stdout is not None  # noqa: S101 - opened with a pipe
            unread = b""
            async for piece in self.process.stdout:
                *lines, unread = (unread + piece).split(b"\n")
                self.events += [json.loads(line) for line in lines]
                self.times += [time.perf_counter() - self.started] * len(lines)
                self._wake()
            self._unread[0] = False
            self._wake()

    async def _read_stderr(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - opened with a pipe
        async for piece in self.process.stderr:
            self.stderr += piece
        self._unread[1] = False
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()


@asynccontextmanager
async def running(name: str, *flags: str, within: Sequence[str] = (), **options: Any) -> AsyncIterator[Program]:  # noqa: ANN401 - as subprocess takes them
    """Run a node program for as long as the block lasts; what is left of it then is killed.

    Args:
        name: `loremesh-validator` or `loremesh-executor`.
        flags: `--json` and a free port of 127.0.0.1 come by themselves.
        within: A command that runs the rest, `unshare` for example.
        options: Of `subprocess.Popen`.
    """
    command = [program(name), "--json", *flags]
    if "--listen-address" not in flags:
        command += ["--listen-address", "/ip4/127.0.0.1/tcp/0"]
    started = time.perf_counter()
    process = await trio.lowlevel.open_process(
        [*within, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=clean_environment(),
        **options,
    )
    run = Program(process, started)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.read)
        try:
            yield run
        finally:
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                # What it had started may hold its pipes open.
                nursery.cancel_scope.deadline = trio.current_time() + 5


def write_story(path: Path, parameters: Parameters = SWIFT) -> Path:
    """Write the genesis of a small story to a file; give the path."""
    path.write_text(genesis_to_toml(small_genesis(parameters)), encoding="utf-8")
    return path
