"""A node under a flood: how long honest calls take with it and without it, and what memory the node takes.

The flood is another process, stopped and let go on again in turn: so calls with and without it are of the same minute,
on a machine that may be shared. Reads what Linux tells of a process.
"""

import gc
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.sync import Puller
from loremesh.testing.builders import identity

SIZES: Final = {
    "connections": (1000, 5000),
    "slow-handshakes": (200, 500),
    "identities": (150, 500),
    "orphans": (1000, 10_000),
    "headers": (10_000, 100_000),
    "subscriptions": (100_000, 1_000_000),
    "unread": (48, 160),
}
"""Of each flood: trimmed, and full. `unread` counts MiB."""
_WARM: Final = 50
_WINDOW: Final = 1.0
"""Seconds of flood between two pauses, and of a pause."""
_FEWEST: Final = 100
"""Calls on each side: a p99 of fewer says nothing."""
_BETWEEN: Final = 0.02
_DRAINED: Final = 0.2
"""Seconds for the node to work off what a stopped flood had on its way."""
_PATIENCE: Final = 400.0


@dataclass(frozen=True, slots=True)
class Call:
    """One honest call. Seconds."""

    took: float
    waited: float
    """Of these the node, or we who called it, waited for a core that others used."""
    work: float
    """What the node worked meanwhile, for whomever: on a machine that others use too, this tells more than `took`."""

    @property
    def own(self) -> float:
        """What the call would have taken on a machine of its own, as far as can be told."""
        return max(self.took - self.waited, self.work)


def percentile(values: list[float], share: int) -> float:
    """Give the percentile of at least two values, `share` from 1 to 99."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]


@dataclass
class Watch:
    """What is measured of a node. Memory in bytes."""

    pid: int
    peer: PeerId
    puller: Puller
    base: int = 0
    peak: int = 0
    left: int = 0
    quiet: list[Call] = field(default_factory=list)
    flooded: list[Call] = field(default_factory=list)

    def memory(self) -> int:
        """Give the resident memory."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        size = int(pages) * os.sysconf("SC_PAGE_SIZE")
        self.peak = max(self.peak, size)
        return size

    async def call(self) -> Call:
        """Ask the node where it stands, as peers do all the time."""
        node, we = _scheduled(self.pid), _scheduled(os.getpid())
        began = time.perf_counter()
        await self.puller.status(self.peer)
        took = time.perf_counter() - began
        node_then, we_then = _scheduled(self.pid), _scheduled(os.getpid())
        self.memory()
        await trio.sleep(_BETWEEN)
        return Call(took, node_then.waited - node.waited + we_then.waited - we.waited, node_then.worked - node.worked)

    async def fill(self, calls: list[Call], until: Callable[[], bool]) -> None:
        """Call again and again."""
        while not until():
            calls.append(await self.call())

    def ratio(self, share: int, of: Callable[[Call], float] = lambda call: call.took) -> float:
        """Tell how many times as much a percentile is under the flood."""
        with_flood, without = [of(call) for call in self.flooded], [of(call) for call in self.quiet]
        return percentile(with_flood, share) / percentile(without, share)


@dataclass(frozen=True, slots=True)
class _Scheduled:
    """Seconds that a process worked, and waited for a core; of its main thread, where all that holds calls up runs."""

    worked: float
    waited: float


def _scheduled(pid: int) -> _Scheduled:
    worked, waited, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()
    return _Scheduled(int(worked) / 1e9, int(waited) / 1e9)


@asynccontextmanager
async def watched(pid: int, address: str) -> AsyncIterator[Watch]:
    """Watch a node as an honest peer that was there before."""
    honest = identity("honest")
    async with running_network(honest, NetworkSettings(listen_addresses=())) as network:
        peer = await network.connect(address)
        watch = Watch(pid, peer, Puller(network, honest, wall_clock))
        gc.freeze()  # our own pauses are not the node's
        for _ in range(_WARM):
            await watch.call()
        watch.base = watch.peak = watch.memory()
        yield watch
        gc.unfreeze()


@asynccontextmanager
async def flooding(flooder: Path, *arguments: str) -> AsyncIterator[tuple[trio.Process, trio.Event]]:
    """Run a flood that has just begun; give its process, and an event that is set when all of it is sent."""
    began, done = trio.Event(), trio.Event()
    command = [sys.executable, str(flooder), *arguments]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, process, began, done)
            await began.wait()
            yield process, done
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _listen(process: trio.Process, began: trio.Event, done: trio.Event) -> None:
    assert process.stdout is not None  # noqa: S101 - as asked for
    said = b""
    async for piece in process.stdout:
        said += piece
        if b"began" in said:
            began.set()
        if b"done" in said:
            done.set()
    raise AssertionError(f"the flooder ended by itself; it said {said!r}")


async def flood(watch: Watch, flooder: Path, *arguments: str, look_again: float = 0.0) -> None:
    """Flood a node, and go on calling it, with the flood and without it in turn.

    Args:
        watch: Gets the calls and the memory; those of a flood before are forgotten.
        flooder: A program that says `began`, floods, says `done`, and holds on to what it has.
        arguments: For it.
        look_again: Seconds after the flood at which memory is looked at again; it may fall for 30 s more.
    """
    with trio.fail_after(_PATIENCE):
        async with flooding(flooder, *arguments) as (process, done):
            watch.quiet.clear()
            watch.flooded.clear()
            while not done.is_set() or min(len(watch.quiet), len(watch.flooded)) < _FEWEST:
                process.send_signal(signal.SIGSTOP)
                await trio.sleep(_DRAINED)
                await watch.fill(watch.quiet, _after(_WINDOW))
                process.send_signal(signal.SIGCONT)
                await watch.fill(watch.flooded, _after(_WINDOW))
            # What was sent last is still being worked off.
    await trio.sleep(look_again)
    for _ in range(60):
        watch.left = watch.memory()
        if watch.left <= 1.2 * watch.base:
            break
        await trio.sleep(0.5)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end
