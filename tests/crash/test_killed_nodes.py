"""Whole nodes are killed at any moment: what they have told of stays, they come back as themselves, and sign once."""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import trio

from loremesh.protocol.block import Block, Header
from loremesh.protocol.codec import decode
from loremesh.storage.store import DATABASE_NAME, Store
from loremesh.testing.node_processes import NodeProcess, running, write_story

ROUNDS, FULL_ROUNDS = 4, 20
RESTART = 2.0
"""Seconds of processor to be ready again, beside the imports."""
PATIENT_RESTART = 10.0
"""Seconds by the clock beside the imports, for the quickest of several on a machine that others keep busy."""


def copy_files(directory: Path, copy: Path) -> None:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in directory.glob(f"{DATABASE_NAME}*"):
        shutil.copy(file, copy)


async def blocks_in(directory: Path, copy: Path) -> dict[str, Header]:
    """Read what a data directory keeps without touching it: of a copy of its files."""
    copy_files(directory, copy)
    async with Store.open(copy) as store:
        assert store._database.reader.pragma("integrity_check") == "ok"
        return {
            stored.hash.hex(): decode(Block, stored.data).header async for found in store.blocks() for stored in found
        }


def heads_of(node: NodeProcess) -> set[str]:
    return {event["hash"] for event in node.told("head")}


def import_time() -> float:
    """Measure the seconds of processor that a node program takes before it does anything: Python, and libp2p."""
    before = os.times()
    program = "import loremesh.cli.errors, loremesh.cli.executor, loremesh.config, loremesh.roles.executor"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


async def test_a_node_killed_at_any_moment_loses_no_head_it_told_of_and_never_signs_twice(
    tmp_path: Path,
    full: bool,  # noqa: FBT001 - a fixture
    processor_time: Callable[[int], float],
) -> None:
    chance = random.Random(20)
    ann, bob, watcher = tmp_path / "ann", tmp_path / "bob", tmp_path / "watcher"
    told: set[str] = set()
    names: set[str] = set()
    restarts: list[float] = []
    used: list[float] = []
    genesis = str(write_story(tmp_path / "story.toml"))
    async with running("loremesh-validator", "--data-dir", str(watcher), "--genesis", genesis) as observer:
        address = (await observer.wait("ready"))["addresses"][0]
        async with running("loremesh-executor", "--data-dir", str(bob), "--bootstrap-nodes", address) as rival:
            await rival.wait("head")
            for number in range(FULL_ROUNDS if full else ROUNDS):
                async with running("loremesh-executor", "--data-dir", str(ann), "--bootstrap-nodes", address) as node:
                    if number % 4 == 3:  # at any moment of its start, too
                        await trio.sleep(chance.uniform(0, 1.5 * max(restarts)))
                    else:
                        ready = await node.wait("ready")
                        used.append(processor_time(node.process.pid))
                        names.add(ready["peer_id"])
                        restarts.append(node.times[node.events.index(ready)])
                        await node.wait("head", lambda head, me=ready["peer_id"]: head["producer"] == me)  # type: ignore[misc]  # mypy does not infer the second parameter
                        await trio.sleep(chance.uniform(0, 1))
                    node.process.kill()
                    assert await node.wait_end() == -9, node.log()
                    assert not node.told("evidence")
                    told |= heads_of(node)
                kept = await blocks_in(ann, tmp_path / "copy")
                assert told <= kept.keys(), f"lost after kill {number}"
            assert (await rival.stop())[0] == 0
        assert (await observer.stop())[0] == 0
        assert not observer.told("evidence")
        assert not rival.told("evidence")
    assert len(names) == 1
    headers = dict[str, Header]()
    for directory in (ann, bob, watcher):
        headers |= await blocks_in(directory, tmp_path / "copy")
    signed = Counter((header.parent, header.producer) for header in headers.values())
    assert max(signed.values()) == 1

    imports = import_time()
    again = sorted(restarts[1:])
    sys.stdout.write(
        f"{len(told)} heads told; ready after {restarts[0]:.2f} s, again after {again[len(again) // 2]:.2f} s "
        f"(most {again[-1]:.2f} s); of the processor {min(used[1:]):.2f} s, of which imports {imports:.2f} s\n"
    )
    assert min(used[1:]) - imports <= RESTART
    assert min(restarts[1:]) - imports <= PATIENT_RESTART
