"""A process that is stopped in its tracks says no goodbye and closes nothing: the others must notice by themselves."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import pytest
import trio

PROGRAM = Path(sys.executable).with_name("loremesh-validator")
PATIENCE = 90.0


class Node:
    """A validator's process and what it has printed."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.ready: dict[str, Any] = {}
        self._more = trio.Event()

    async def run(self, *flags: str, task_status: trio.TaskStatus[None]) -> None:
        command = [str(PROGRAM), "--json", "--listen-address", "/ip4/127.0.0.1/tcp/0", *flags]
        self.process = await trio.lowlevel.open_process(command, stdout=PIPE, stderr=DEVNULL)
        assert self.process.stdout is not None
        unread = b""
        try:
            async with self.process.stdout:
                async for piece in self.process.stdout:
                    *lines, unread = (unread + piece).split(b"\n")
                    self.events += map(json.loads, lines)
                    if not self.ready and any(event["event"] == "ready" for event in self.events):
                        self.ready = next(event for event in self.events if event["event"] == "ready")
                        task_status.started()
                    self._more.set()
                    self._more = trio.Event()
            await trio.sleep_forever()
        finally:
            self.process.kill()
            with trio.CancelScope(shield=True):
                await self.process.wait()

    async def wait(self, is_it: Callable[[dict[str, Any]], bool], count: int = 1) -> None:
        with trio.fail_after(PATIENCE):
            while sum(map(is_it, self.events)) < count:
                await self._more.wait()


def said(change: str, node: Node) -> Callable[[dict[str, Any]], bool]:
    peer_id = node.ready["peer_id"]
    return lambda event: event["event"] == "peer" and event["change"] == change and event["peer_id"] == peer_id


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    loremesh = Path(sys.executable).with_name("loremesh")
    made = subprocess.run(
        [loremesh, "new", "--title", "T", "--premise", "P"], stdout=PIPE, stdin=DEVNULL, check=True, timeout=60
    )
    path = tmp_path / "genesis.toml"
    path.write_bytes(made.stdout)
    return path


async def test_a_frozen_peer_is_noticed_in_time_comes_back_when_it_thaws_and_its_namesake_wins_over_the_ghost(
    tmp_path: Path, genesis: Path, nursery: trio.Nursery
) -> None:
    async def start(name: str, *flags: str) -> Node:
        node = Node()
        where = ("--data-dir", str(tmp_path / name), "--genesis", str(genesis))
        with trio.fail_after(PATIENCE):
            await nursery.start(node.run, *where, *flags)
        return node

    watcher = await start("watcher")
    address = watcher.ready["addresses"][0]
    frozen, replaced = [await start(name, "--bootstrap-nodes", address) for name in ("frozen", "replaced")]
    for node in (frozen, replaced):
        await watcher.wait(said("joined", node))
        await node.wait(said("joined", watcher))

    began = trio.current_time()
    frozen.process.send_signal(signal.SIGSTOP)
    replaced.process.send_signal(signal.SIGSTOP)
    shutil.copy(tmp_path / "replaced/key", tmp_path / "key")
    namesake = await start("namesake", "--bootstrap-nodes", address, "--key-file", str(tmp_path / "key"))
    assert namesake.ready["peer_id"] == replaced.ready["peer_id"]
    await namesake.wait(said("joined", watcher))
    await watcher.wait(said("dead", frozen))
    assert 30 <= trio.current_time() - began <= 36 + 2  # two for a machine that is busy with other tests
    replaced.process.kill()

    frozen.process.send_signal(signal.SIGCONT)
    await watcher.wait(said("joined", frozen), count=2)
    assert not any(map(said("dead", namesake), watcher.events))
    assert not any(map(said("dead", watcher), [*frozen.events, *namesake.events]))
