"""The demo's nodes: real processes of the node programs, each with a data directory of its own."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from loremesh.errors import ServiceError
from loremesh.protocol.identity import peer_id_text
from loremesh.roles.node import DENY_FILE
from loremesh.storage.keys import read_key

logger = logging.getLogger("loremesh.demo")

_ANY: Final = "/ip4/127.0.0.1/tcp/0"
_LOG: Final = "log.txt"
_STOP: Final = 4.0
_MOST_LIVES: Final = 20
_ENDED_FROM_OUTSIDE: Final = frozenset({0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGKILL})


@dataclass(slots=True)
class DemoNode:
    """One node of the demo and what it has said so far."""

    name: str
    directory: Path
    command: list[str]
    """Its program and what it is always started with."""
    peer_id: str
    process: trio.Process
    lives: int = 1
    """How often it was started."""
    address: str = ""
    height: int = 0
    head: str = ""
    peers: set[str] = field(default_factory=set)
    ready: trio.Event = field(default_factory=trio.Event)
    stopping: bool = False
    _producers: dict[int, str] = field(default_factory=dict)
    """Who wrote its canon, by height, as far as it was told of."""

    def winners(self) -> set[str]:
        """Give those who wrote its canon below the head, which the next block may still replace."""
        return {name for height, name in self._producers.items() if height < self.height}

    def deny(self, others: Iterable["DemoNode"]) -> None:
        """Tell the node, as an operator would, to have nothing to do with `others`."""
        (self.directory / DENY_FILE).write_text("".join(f"{node.peer_id} # {node.name}\n" for node in others))
        self.process.send_signal(signal.SIGHUP)

    def has_lived_on(self, life: int) -> bool:
        """Tell whether it still runs since it was started for the `life`th time."""
        return self.lives == life and self.process.returncode is None

    async def start_again(self, others: Iterable["DemoNode"]) -> None:
        """Start it where it was, after somebody ended it; it carries on from its data directory.

        Raises:
            ServiceError: It cannot be started, or it was ended too often.
        """
        if self.lives == _MOST_LIVES:
            raise ServiceError(f"{self.name} was ended {_MOST_LIVES} times")
        self.lives += 1
        self.ready = trio.Event()
        self.peers.clear()
        known = [node.address for node in others if node.address]
        where = self.address.partition("/p2p/")[0] or _ANY
        self.process = await _open(self.command, self.directory, where, known)
        if self.stopping:
            self.process.terminate()

    def take(self, event: dict[str, Any]) -> None:
        """Keep what an event says."""
        match event["event"]:
            case "ready":
                self.address = event["addresses"][0]
                self.ready.set()
            case "head":
                self._take_head(event["height"], event["hash"], event["producer"], event["reorg_depth"])
            case "peer" if event["change"] == "joined":
                self.peers.add(event["peer_id"])
            case "peer":
                self.peers.discard(event["peer_id"])
            case _:
                pass

    def _take_head(self, height: int, head: str, producer: str | None, abandoned: int) -> None:
        common = min(self.height - abandoned, height - 1)
        self._producers = {at: name for at, name in self._producers.items() if at <= common}
        if producer is not None:  # the story's beginning has none
            self._producers[height] = producer
        self.height, self.head = height, head


def program(name: str) -> str:
    """Find a program of ours: beside this Python first, as a virtual environment has it; short, to be shown."""
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


@asynccontextmanager
async def demo_node(name: str, directory: Path, command: list[str], *known: str) -> AsyncIterator[DemoNode]:
    """Run a node program for as long as the block lasts; its log goes to a file in `directory`.

    Args:
        name: For people.
        directory: Its data directory, with its key in it.
        command: The program, and what it is always started with.
        known: Addresses of others.

    Raises:
        ServiceError: It cannot be started.
    """
    peer_id = peer_id_text(read_key(directory / "key").peer_id)
    process = await _open(command, directory, _ANY, known)
    node = DemoNode(name, directory, command, peer_id, process)
    try:
        yield node
    finally:
        await _stop(node.process)


async def _open(command: list[str], directory: Path, where: str, known: Sequence[str]) -> trio.Process:
    files = ["--data-dir", str(directory), "--key-file", str(directory / "key")]
    bootstrap = ["--bootstrap-nodes", ",".join(known)] if known else []
    with (directory / _LOG).open("ab") as log:
        try:
            return await trio.lowlevel.open_process(
                [*command, *files, "--listen-address", where, *bootstrap, "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        except OSError as error:
            raise ServiceError(f"{command[0]} cannot be started: {error}") from error


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
        with trio.move_on_after(_STOP):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def events_of(node: DemoNode) -> AsyncIterator[dict[str, Any]]:
    """Give what a node says, until somebody ends it.

    Raises:
        ServiceError: It failed by itself; the message has the last line of its log.
    """
    assert node.process.stdout is not None  # noqa: S101 - opened with a pipe
    unread = b""
    async for piece in node.process.stdout:
        *lines, unread = (unread + piece).split(b"\n")
        for line in lines:
            event = json.loads(line)
            node.take(event)
            yield event
    await node.process.stdout.aclose()
    code = await node.process.wait()
    if node.stopping or code in _ENDED_FROM_OUTSIDE:
        return
    lines = (node.directory / _LOG).read_bytes().splitlines() or [b"it said nothing"]
    raise ServiceError(f"{node.name} ended with code {code}: {lines[-1].decode(errors='replace')}")


async def run_client(*arguments: str) -> str:
    """Run the client program as a user would; give what it printed.

    Raises:
        ServiceError: It failed.
    """
    environment = {**os.environ, "COLUMNS": str(os.get_terminal_size().columns if sys.stdout.isatty() else 100)}
    done = await trio.run_process(
        [program("loremesh"), *arguments], capture_stdout=True, capture_stderr=True, check=False, env=environment
    )
    if done.returncode:
        raise ServiceError(f"loremesh {arguments[0]} ended with {done.returncode}: {done.stderr.decode().strip()}")
    return done.stdout.decode()
