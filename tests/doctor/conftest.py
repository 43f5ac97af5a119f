"""Nodes to examine: real validators on loopback, in this process."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from loremesh.config import Program, load_settings
from loremesh.protocol.genesis import Genesis, genesis_to_toml
from loremesh.roles.node import VALIDATOR, Node, run_node

StartValidator = Callable[..., Awaitable[str]]


@pytest.fixture
def start_validator(nursery: trio.Nursery, tmp_path: Path) -> StartValidator:
    """Start a validator that runs until the test ends; give the address to dial."""

    async def start(name: str = "validator", genesis: Genesis | None = None) -> str:
        directory = tmp_path / name
        directory.mkdir()
        flags: dict[str, object] = {"data_dir": str(directory), "listen_address": "/ip4/127.0.0.1/tcp/0"}
        if genesis is not None:
            (directory / "genesis.toml").write_text(genesis_to_toml(genesis), encoding="utf-8")
            flags["genesis"] = str(directory / "genesis.toml")
        settings = load_settings(Program.VALIDATOR, flags, {})

        async def run(task_status: trio.TaskStatus[Node]) -> None:
            await run_node(settings, VALIDATOR, lambda _: None, task_status=task_status)

        node: Node = await nursery.start(run)
        return node.network.addresses()[0]

    return start
