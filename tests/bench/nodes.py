"""Real programs of ours, started and watched from outside, for benches of what a user would see."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from harness import BenchError
from loremesh.protocol.codec import encode
from loremesh.storage.store import Store
from loremesh.storage.writes import StoredBlock
from stories import chain

PATIENCE = 90.0
"""Seconds after which a program that should have said something is given up."""


@dataclass(slots=True)
class Running:
    """A program that prints events, one JSON object per line."""

    command: list[str]
    process: "subprocess.Popen[str]"
    lines: "queue.Queue[tuple[float, str]]" = field(default_factory=queue.Queue)
    began: float = field(default_factory=time.perf_counter)
    seen: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    """Every event that was waited for or passed over, with the time at which it came."""

    def read(self) -> None:
        """Take in every line with the time at which it came; runs in a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put((time.perf_counter(), line))
        self.lines.put((time.perf_counter(), ""))

    def next_event(self) -> tuple[float, dict[str, Any]]:
        """Wait for an event; give when it came, and what it says."""
        try:
            came, line = self.lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise BenchError(f"{self.command[0]} said nothing for {PATIENCE:.0f} s") from None
        if not line:
            raise BenchError(f"{self.command[0]} ended by itself with exit code {self.process.wait(PATIENCE)}")
        event: dict[str, Any] = json.loads(line)
        self.seen.append((came, event))
        return came, event

    def wait_event(self, name: str) -> dict[str, Any]:
        """Wait for an event of this name."""
        while True:
            _, event = self.next_event()
            if event.get("event") == name:
                return event


def program(name: str) -> str:
    """Find a program of ours beside this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise BenchError(f"{name} is not installed beside this Python; run any `make` target first")
    return str(path)


def run_timed(command: list[str]) -> tuple[float, str]:
    """Run a program to its end; give the seconds that took, and what it printed."""
    before = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        # Not `wait(timeout)`: that looks only every 50 ms.
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            printed, _ = process.communicate()
        finally:
            watchdog.cancel()
    taken = time.perf_counter() - before
    if process.returncode:
        raise BenchError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return taken, printed


@contextmanager
def running(*command: str) -> Iterator[Running]:
    """Run a program for as long as the block lasts."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        run = Running(list(command), process)
        reader = threading.Thread(target=run.read)
        reader.start()
        try:
            yield run
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join()


@contextmanager
def validator(directory: Path, *flags: str) -> Iterator[tuple[Running, str, str]]:
    """Run a validator on a free port of this machine; give its address and its story once it is ready."""
    listen = ("--listen-address", "/ip4/127.0.0.1/tcp/0")
    with running(program("loremesh-validator"), "--data-dir", str(directory), "--json", *listen, *flags) as node:
        ready = node.wait_event("ready")
        yield node, ready["addresses"][0], ready["story"]


def keep_story(directory: Path, blocks: int) -> None:
    """Put a story of so many blocks of 100 words into a new data directory."""
    trio.run(_keep, directory, blocks)


async def _keep(directory: Path, blocks: int) -> None:
    samples = chain(100, 0, blocks)
    start = samples[0].before
    async with Store.open(directory) as store:
        await store.save_genesis(start.story, encode(start.genesis))
        await store.save_blocks(
            [
                StoredBlock(sample.signatures[0][1], header.parent, header.height, sample.wire)
                for sample in samples
                for header in [sample.block.header]
            ]
        )
