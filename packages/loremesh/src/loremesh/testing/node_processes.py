"""The programs as real processes: started, listened to by their JSON events, and ended, whatever a test does."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

PATIENCE: Final = 90.0
"""Seconds after which a wait has failed: generous, since machines are shared."""
_MAX_LOG: Final = 4000


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
    """A node program that runs, and what it has told."""

    process: trio.Process
    log_file: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    _more: trio.Event = field(default_factory=trio.Event)
    _closed: bool = False

    async def wait(self, event: str, **fits: Any) -> dict[str, Any]:  # noqa: ANN401 - as JSON has it
        """Wait for an event with these values (`min_height=3`: a height of at least 3); give the first.

        Raises:
            AssertionError: The program ended, or did not tell it in time; with the end of its log.
        """
        with trio.move_on_after(PATIENCE):
            while not (found := self.told(event, **fits)):
                if self._closed:
                    break
                await self._more.wait()
            else:
                return found[0]
        raise AssertionError(f"no {event} {fits}; the log ends with:\n{self.log()[-_MAX_LOG:]}")

    def told(self, event: str, *, min_height: int = 0, **fits: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - as above
        """List the events of a kind with these values so far."""
        return [
            one
            for one in self.events
            if one["event"] == event
            and one.get("height", 0) >= min_height
            and all(one.get(key) == value for key, value in fits.items())
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

    async def wait_end(self) -> int:
        """Wait for the end; give the exit code."""
        with trio.fail_after(PATIENCE):
            return await self.process.wait()

    async def listen(self) -> None:
        """Take in what it prints, until it ends."""
        assert self.process.stdout is not None  # noqa: S101 - opened with a pipe
        unread = b""
        async for piece in self.process.stdout:
            *lines, unread = (unread + piece).split(b"\n")
            self.events += map(json.loads, lines)
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
    task_status: trio.TaskStatus[NodeProcess] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a node program with `--json` until it ends, or kill it when cancelled; reports the node."""
    with log_file.open("ab") as log:
        process = await trio.lowlevel.open_process(
            [program(name), "--json", *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            env=clean_environment(extra),
        )
    node = NodeProcess(process, log_file)
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
