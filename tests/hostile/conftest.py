"""Whole nodes as processes on loopback, ended when the test ends."""

from functools import partial
from pathlib import Path

import pytest
import trio

from loremesh.testing.node_processes import NodeProcess, StartNode, run_node_process

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@pytest.fixture
async def start(tmp_path: Path, nursery: trio.Nursery) -> StartNode:
    """Start a node program; its data directory is called like the node."""

    async def start_one(name: str, *arguments: str, role: str = "executor", **extra: str) -> NodeProcess:
        where = ["--data-dir", str(tmp_path / name), "--listen-address", LOOPBACK]
        run = partial(run_node_process, f"loremesh-{role}", tmp_path / f"{name}.log", *where, *arguments, extra=extra)
        node: NodeProcess = await nursery.start(run)
        return node

    return start_one
