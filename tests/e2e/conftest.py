"""Whole nodes as processes on loopback, ended when the test ends."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from loremesh.primitives import Millis
from loremesh.protocol.genesis import Genesis, genesis_to_toml
from loremesh.testing.node_processes import BRISK, NodeProcess, StartNode, run_node_process

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@pytest.fixture
def write_genesis(tmp_path: Path) -> Callable[..., Path]:
    """Write the genesis file of a fast story."""

    def write(title: str = "Lanterns", spacing: int = BRISK.spacing) -> Path:
        genesis = Genesis(
            title=title,
            premise="A lighthouse keeper finds a map in a bottle and rows out past the reef.",
            language="en",
            time=Millis(time.time_ns() // 1_000_000),
            parameters=replace(BRISK, spacing=Millis(spacing)),
        )
        file = tmp_path / f"{title}.toml"
        file.write_text(genesis_to_toml(genesis), encoding="utf-8")
        return file

    return write


@pytest.fixture
async def start(tmp_path: Path, nursery: trio.Nursery) -> StartNode:
    """Start a node program; its data directory is called like the node, and a second start carries on from it."""

    async def start_one(
        name: str, *arguments: str, role: str = "executor", listen: str = LOOPBACK, **extra: str
    ) -> NodeProcess:
        where = ["--data-dir", str(tmp_path / name), "--listen-address", listen]
        run = partial(run_node_process, f"loremesh-{role}", tmp_path / f"{name}.log", *where, *arguments, extra=extra)
        node: NodeProcess = await nursery.start(run)
        return node

    return start_one


@pytest.fixture
async def story(start: StartNode, write_genesis: Callable[..., Path]) -> tuple[NodeProcess, NodeProcess, NodeProcess]:
    """A validator and two executors that race."""
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    address = await validator.wait_address()
    first, second = [await start(name, "--bootstrap-nodes", address, "--latency", "0.1,0.6") for name in ("ann", "bob")]
    await first.wait_address()
    await second.wait_address()
    return validator, first, second
