"""The nodes of a soak: real processes on fixed ports that are killed, frozen, cut off and started again."""

import random
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from loremesh.roles.node import DENY_FILE
from loremesh.storage.store import Store
from loremesh.testing.node_processes import NodeProcess, run_node_process

PATIENCE: Final = 120.0
"""Seconds after which a soak gives a wait up: a node that needs longer is broken, whatever else the machine does."""


@dataclass(slots=True)
class SoakNode:
    """One node through all its lives."""

    name: str
    directory: Path
    port: int
    flags: tuple[str, ...]
    role: str = "executor"
    lives: list[NodeProcess] = field(default_factory=list)
    frozen: bool = False

    @property
    def process(self) -> NodeProcess:
        """Its present life, or its last one."""
        return self.lives[-1]

    @property
    def peer_id(self) -> str:
        """Its name on the network."""
        return str(self.told("ready")[0]["peer_id"])

    @property
    def address(self) -> str:
        """Where it can be dialled, in every life."""
        return str(self.told("ready")[0]["addresses"][0])

    @property
    def http(self) -> str:
        """Where its present life tells its figures; empty before it says so."""
        ready = self.process.told("ready")
        return str(ready[0]["http"]) if ready else ""

    @property
    def runs(self) -> bool:
        """Whether it can be expected to answer."""
        return not self.frozen and self.process.process.returncode is None

    @property
    def head(self) -> tuple[int, str]:
        """Height and hash of the last head it told of."""
        heads = self.told("head")
        return (heads[-1]["height"], heads[-1]["hash"]) if heads else (0, "")

    def told(self, event: str) -> list[dict[str, Any]]:
        """List the events of a kind, of all its lives."""
        return [one for life in self.lives for one in life.told(event)]

    def deny(self, others: Iterable["SoakNode"]) -> None:
        """Tell it, as an operator would, to have nothing to do with `others`."""
        (self.directory / DENY_FILE).write_text("".join(f"{node.peer_id}\n" for node in others), encoding="utf-8")
        self.process.send(signal.SIGHUP)

    async def kept(self) -> set[str]:
        """Read which blocks its store has; it must have ended."""
        async with Store.open(self.directory) as store:
            return {one.hash.hex() async for batch in store.blocks() for one in batch}


@dataclass(slots=True)
class Nodes:
    """The nodes that stay for the whole soak, the validator first.

    Args:
        nursery: Runs their processes.
        directory: Everything that is written is in it.
        genesis: Of the story.
    """

    nursery: trio.Nursery
    directory: Path
    genesis: Path
    all: list[SoakNode] = field(default_factory=list)

    async def add(self, name: str, role: str, *flags: str) -> SoakNode:
        """Start a node that stays; give it when it is ready."""
        node = self.make(name, *flags, role=role)
        await self.start(node)
        self.all.append(node)
        return node

    def make(self, name: str, *flags: str, role: str = "executor") -> SoakNode:
        """Make a node that has not begun to run."""
        return SoakNode(name, self.directory / name, free_port(), (*flags, "--http", "127.0.0.1:0"), role)

    async def start(self, node: SoakNode) -> None:
        """Start a node, for the first time or again; return when it is ready."""
        known = ",".join(other.address for other in self.all if other is not node)
        where = ["--data-dir", str(node.directory), "--listen-address", f"/ip4/127.0.0.1/tcp/{node.port}"]
        where += ["--genesis", str(self.genesis), *(["--bootstrap-nodes", known] if known else [])]
        log = self.directory / f"{node.name}.log"
        run = partial(run_node_process, f"loremesh-{node.role}", log, *where, *node.flags)
        process: NodeProcess = await self.nursery.start(run)
        node.lives.append(process)
        await process.wait("ready")

    def one_head(self) -> bool:
        """Tell whether all that run told of one head last."""
        return len({node.head for node in self.all if node.runs}) == 1

    def height(self) -> int:
        """Give the greatest height that any told of."""
        return max(node.head[0] for node in self.all)

    def addresses(self, chance: random.Random) -> str:
        """List where clients may ask, in any order: some of these may be dead or frozen."""
        return ",".join(chance.sample([node.address for node in self.all], len(self.all)))

    async def wait_all(self, height: int, among: Sequence[SoakNode]) -> None:
        """Wait until each has told of a head of at least a height.

        Raises:
            AssertionError: One ended, or did not get there.
        """
        for node in among:
            await node.process.wait("head", min_height=height)


def free_port() -> int:
    """Give a free port, not one of those for outgoing connections: it stays free while its node is dead."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 20000 and 30000")
