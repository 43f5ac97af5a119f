"""Floods, each against a real node in a process of its own: its memory stays bounded, and honest peers are served.

With `--full` they have the size of the requirement, and memory is looked at again 30 s later. `pytest -s` shows the
figures.
"""

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import trio

from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB, Millis
from loremesh.protocol.genesis import genesis_to_toml
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.sync import Puller
from loremesh.testing.builders import EASY, identity, small_genesis
from loremesh.testing.node_processes import NodeProcess, StartNode

FLOODER = Path(__file__).parent / "flooder.py"
SIZES = {
    "connections": (1000, 5000),
    "slow-handshakes": (200, 500),
    "identities": (150, 500),
    "orphans": (1000, 10_000),
    "headers": (10_000, 100_000),
    "subscriptions": (100_000, 1_000_000),
    "unread": (48, 160),
}
"""Of each flood: in every run, and with `--full`."""
MOST_GROWTH = 64 * MIB
CALLS = 100
NOISE = 0.25
"""Seconds that a call may take on a shared machine whatever the node does: below that, ratios say nothing."""
PATIENCE = 240


@dataclass
class Watch:
    """What is measured of a victim."""

    process: psutil.Process
    call: Callable[[], Awaitable[float]]
    base: int = 0
    peak: int = 0
    quiet: list[float] = field(default_factory=list)
    flooded: list[float] = field(default_factory=list)

    def memory(self) -> int:
        """Give the resident memory in bytes."""
        size: int = self.process.memory_info().rss
        self.peak = max(self.peak, size)
        return size

    async def measure(self, into: list[float], count: int) -> None:
        """Call the node like an honest peer, ten times a second or as often as it answers."""
        for _ in range(count):
            into.append(await self.call())
            self.memory()
            await trio.sleep(0.02)


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


@asynccontextmanager
async def flooding(kind: str, address: str, count: int, genesis: Path) -> AsyncIterator[trio.Event]:
    """Run a flood; give an event that is set when all of it is sent."""
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        command = [sys.executable, str(FLOODER), kind, address, str(count), str(genesis)]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        try:

            async def read() -> None:
                assert process.stdout is not None
                said = b""
                async for piece in process.stdout:
                    said += piece
                    if b"done" in said:
                        done.set()
                assert done.is_set(), "the flooder ended early"

            nursery.start_soon(read)
            yield done
        finally:
            nursery.cancel_scope.cancel()
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    """A story whose work is none, so that a flood of blocks costs its sender nothing but signatures."""
    file = tmp_path / "genesis.toml"
    past = Millis(time.time_ns() // 1_000_000 - 60_000)
    file.write_text(genesis_to_toml(replace(small_genesis(EASY), time=past)), encoding="utf-8")
    return file


@pytest.fixture
async def victim(start: StartNode, genesis: Path) -> NodeProcess:
    return await start("victim", "--genesis", str(genesis), role="validator")


@pytest.fixture
async def watch(victim: NodeProcess, nursery: trio.Nursery) -> AsyncIterator[Watch]:
    """Watch a victim as an honest peer that was there before, and how it is in quiet times."""
    address = await victim.wait_address()
    honest = identity("honest")
    async with running_network(honest, NetworkSettings(listen_addresses=())) as network:
        peer = await network.connect(address)
        puller = Puller(network, honest, wall_clock)

        async def call() -> float:
            before = time.perf_counter()
            await puller.status(peer)
            return time.perf_counter() - before

        gc.freeze()  # our own pauses are not the node's
        watch = Watch(psutil.Process(victim.process.pid), call)
        await watch.measure([], CALLS // 2)
        await watch.measure(watch.quiet, CALLS)
        watch.base = watch.peak = watch.memory()
        yield watch
        gc.unfreeze()


@dataclass(frozen=True)
class Figures:
    """What a flood did."""

    seconds: float
    cpu: float
    left: int


async def flood(kind: str, count: int, victim: NodeProcess, watch: Watch, genesis: Path) -> Figures:
    """Flood a victim, and go on calling it meanwhile."""
    before, began = sum(watch.process.cpu_times()[:2]), time.perf_counter()
    address = await victim.wait_address()
    with trio.fail_after(PATIENCE):
        async with flooding(kind, address, count, genesis) as done, trio.open_nursery() as nursery:

            async def measure() -> None:
                while not done.is_set() or len(watch.flooded) < CALLS:
                    await watch.measure(watch.flooded, 1)

            nursery.start_soon(measure)
            await done.wait()
            took = time.perf_counter() - began
            await watch.measure(watch.flooded, CALLS // 2)  # what was sent last is still being worked off
    return Figures(took, sum(watch.process.cpu_times()[:2]) - before, watch.memory())


@pytest.mark.parametrize("kind", SIZES)
async def test_a_flood_costs_bounded_memory_and_honest_peers_are_served(
    kind: str,
    victim: NodeProcess,
    watch: Watch,
    genesis: Path,
    full: bool,  # noqa: FBT001 - a fixture
) -> None:
    count = SIZES[kind][full]
    figures = await flood(kind, count, victim, watch, genesis)
    left = await settled(watch, 30 if full else 0)
    quiet, flooded = p99(watch.quiet), p99(watch.flooded)
    sys.stdout.write(
        f"\n{kind} x {count}: sent in {figures.seconds:.1f} s, {figures.cpu:.1f} s of the node's CPU; memory "
        f"{watch.base / MIB:.0f} MB +{(watch.peak - watch.base) / MIB:.1f} at most, {left / watch.base:.2f} x after; "
        f"calls p50 {statistics.median(watch.quiet) * 1e3:.1f} -> {statistics.median(watch.flooded) * 1e3:.1f} ms, "
        f"p99 {quiet * 1e3:.1f} -> {flooded * 1e3:.1f} ms ({flooded / quiet:.1f} x), of {len(watch.flooded)}\n"
    )
    assert watch.peak <= watch.base + MOST_GROWTH
    assert left <= 1.2 * watch.base
    assert flooded <= max(2 * quiet, NOISE)
    assert "Traceback" not in victim.log()
    assert victim.process.returncode is None


async def settled(watch: Watch, pause: float) -> int:
    """Give the memory when it is back near the base, or 30 s after the flood; not before `pause` seconds."""
    await trio.sleep(pause)
    for _ in range(60):
        if watch.memory() <= 1.2 * watch.base:
            break
        await trio.sleep(0.5)
    return watch.memory()
