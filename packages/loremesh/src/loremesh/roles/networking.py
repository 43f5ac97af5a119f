"""The network around a role: up before its services, down after them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Millis
from loremesh.protocol.identity import Identity


def wall_clock() -> Millis:
    """Give Unix milliseconds."""
    return Millis(time.time_ns() // 1_000_000)


@asynccontextmanager
async def running_network(identity: Identity, settings: NetworkSettings) -> AsyncIterator[Behaviour]:
    """Run a network; its sockets are closed when the block has ended.

    Raises:
        MachineError: A port is taken.
    """
    network = Behaviour(identity, settings)
    done = trio.Event()
    async with trio.open_nursery() as nursery:
        # Shielded, because what it starts is: a start that is cancelled waits for the end of what it has started.
        with trio.CancelScope(shield=True):
            await nursery.start(_run_until, network, done)
        try:
            yield network
        finally:
            done.set()


async def _run_until(network: Behaviour, done: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    """Run the network until `done`: when a node is cancelled, its services can still say goodbye."""
    with trio.CancelScope(shield=True) as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            task_status.started()
            await done.wait()
            scope.cancel()
