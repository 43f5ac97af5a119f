"""The demo's nodes: real processes of the node programs, each with a data directory of its own."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
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

_LOG: Final = "log.txt"
_STOP: Final = 4.0


@dataclass(slots=True)
class DemoNode:
    """One node of the demo and what it has said so far."""

    name: str
    directory: Path
    process: trio.Process
    peer_id: str
    address: str = ""
    height: int = 0
    head: str = ""
    peers: set[str] = field(default_factory=set)
    ready: trio.Event = field(default_factory=trio.Event)
    stopping: bool = False

    def deny(self, others: Iterable["DemoNode"]) -> None:
        """Tell the node, as an operator would, to have nothing to do with `others`."""
        (self.directory / DENY_FILE).write_text("".join(f"{node.peer_id} # {node.name}\n" for node in others))
        self.process.send_signal(signal.SIGHUP)

    def take(self, event: dict[str, Any]) -> None:
        """Keep what an event says."""
        match event["event"]:
            case "ready":
                self.address = event["addresses"][0]
                self.ready.set()
            case "head":
                self.height, self.head = event["height"], event["hash"]
            case "peer" if event["change"] == "joined":
                self.peers.add(event["peer_id"])
            case "peer":
                self.peers.discard(event["peer_id"])
            case _:
                pass


def program(name: str) -> str:
    """Find a program of ours: beside this Python first, as a virtual environment has it; short, to be shown."""
    beside = Path(sys.executable).parent / name
    if not beside.exists():
        return name
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


@asynccontextmanager
async def demo_node(name: str, directory: Path, command: list[str]) -> AsyncIterator[DemoNode]:
    """Run a node program for as long as the block lasts; its log goes to a file in `directory`.

    Raises:
        ServiceError: It cannot be started.
    """
    with (directory / _LOG).open("wb") as log:
        arguments = [*command, "--data-dir", str(directory), "--key-file", str(directory / "key"), "--json"]
        try:
            process = await trio.lowlevel.open_process(arguments, stdout=subprocess.PIPE, stderr=log)
        except OSError as error:
            raise ServiceError(f"{command[0]} cannot be started: {error}") from error
        peer_id = peer_id_text(read_key(directory / "key").peer_id)
        try:
            yield DemoNode(name, directory, process, peer_id)
        finally:
            await _stop(process)


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
    """Give what a node says, until it ends.

    Raises:
        ServiceError: It ended by itself; the message has the last line of its log.
    """
    assert node.process.stdout is not None  # noqa: S101 - opened with a pipe
    unread = b""
    async for piece in node.process.stdout:
        *lines, unread = (unread + piece).split(b"\n")
        for line in lines:
            event = json.loads(line)
            node.take(event)
            yield event
    code = await node.process.wait()
    if node.stopping:
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
