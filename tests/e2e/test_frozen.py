"""A process that is stopped in its tracks says no goodbye and closes nothing: the others must notice by themselves."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from loremesh.testing.node_processes import NodeProcess, StartNode


def changes(node: NodeProcess, change: str, other: NodeProcess) -> list[dict[str, Any]]:
    """List how often a node has told of a change of another."""
    return node.told("peer", change=change, peer_id=other.told("ready")[0]["peer_id"])


async def wait_change(node: NodeProcess, change: str, other: NodeProcess, times: int = 1) -> None:
    await node.wait("peer", lambda _: len(changes(node, change, other)) >= times)


async def test_a_frozen_peer_is_noticed_in_time_comes_back_when_it_thaws_and_its_namesake_wins_over_the_ghost(
    start: StartNode, write_genesis: Callable[..., Path], tmp_path: Path
) -> None:
    async def enter(name: str, *flags: str) -> NodeProcess:
        node = await start(name, "--genesis", str(genesis), *flags, role="validator")
        await node.wait("ready")
        return node

    genesis = write_genesis()
    watcher = await enter("watcher")
    bootstrap = ("--bootstrap-nodes", await watcher.wait_address())
    frozen, replaced = [await enter(name, *bootstrap) for name in ("frozen", "replaced")]
    for node in (frozen, replaced):
        await wait_change(watcher, "joined", node)
        await wait_change(node, "joined", watcher)

    began = trio.current_time()
    frozen.send(signal.SIGSTOP)
    replaced.send(signal.SIGSTOP)
    shutil.copy(tmp_path / "replaced/key", tmp_path / "key")
    namesake = await enter("namesake", *bootstrap, "--key-file", str(tmp_path / "key"))
    assert namesake.told("ready")[0]["peer_id"] == replaced.told("ready")[0]["peer_id"]
    await wait_change(namesake, "joined", watcher)
    await wait_change(watcher, "dead", frozen)
    assert 30 <= trio.current_time() - began <= 36 + 2  # two for a machine that is busy with other tests
    replaced.send(signal.SIGKILL)

    frozen.send(signal.SIGCONT)
    await wait_change(watcher, "joined", frozen, times=2)
    assert not changes(watcher, "dead", namesake)
    assert not [one for node in (frozen, namesake) for one in changes(node, "dead", watcher)]
