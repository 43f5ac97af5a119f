"""A process around one or several nodes: signals, and one node's failure that is not the others'.

SIGTERM and SIGINT end the nodes cleanly, once calls in flight are answered or have had their time; a second one ends
the process at once. SIGHUP makes them read their deny files again.
"""

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import trio

from loremesh.errors import LoremeshError, MachineError, leaves
from loremesh.network.settings import NetworkSettings
from loremesh.roles.memory import find_give_back, keep_memory_small
from loremesh.roles.node import Node

logger = logging.getLogger("loremesh.process")

Start = Callable[["trio.TaskStatus[Node]"], Awaitable[None]]
"""Runs one node; reports it through the task status."""

FILES_PER_NODE: Final = NetworkSettings().max_connections + NetworkSettings().max_waiting + 128
"""Descriptors that a busy node needs: connections, sockets that wait for one, the database and pipes beside them."""
_STOP_SIGNALS: Final = {signal.SIGTERM, signal.SIGINT}
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


async def run_until_stopped(starts: Sequence[Start]) -> None:
    """Run nodes side by side until a signal ends them.

    Raises:
        MachineError: Too few files may be open at once.
        LoremeshError: The only node failed, or the last one that was left.
    """
    allow_files(len(starts))
    gc.freeze()  # what was imported stays: looking through it again and again held everybody up for 0.1 s each time
    nodes: list[Node] = []
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            stopping = trio.CancelScope()
            # Outside the scope that the first signal cancels: the second one must still be heard.
            nursery.start_soon(_heed, signals, nodes, stopping, nursery)
            nursery.start_soon(keep_memory_small, find_give_back())
            with stopping:
                async with trio.open_nursery() as running:
                    left = [len(starts)]
                    for start in starts:
                        running.start_soon(_supervise, start, nodes, left)
            nursery.cancel_scope.cancel()


def allow_files(nodes: int) -> None:
    """Let this process open as many files as its nodes need, or as many as it may.

    Raises:
        MachineError: Those are too few for even one node.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if hard < FILES_PER_NODE:
        raise MachineError(
            f"this process may have {hard} files open, and a node needs {FILES_PER_NODE}: raise the limit (ulimit -n)"
        )
    wanted = min(hard, nodes * FILES_PER_NODE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))


async def _supervise(start: Start, nodes: list[Node], left: list[int]) -> None:
    """Run one node; when it fails and others are left, say so and let them go on."""
    try:
        async with trio.open_nursery() as nursery:
            nodes.append(await nursery.start(_reporting, start))
    except* Exception as failed:
        left[0] -= 1
        if not left[0]:
            raise
        causes = list(leaves(failed))
        if all(isinstance(cause, LoremeshError | OSError) for cause in causes):
            logger.error("one of the nodes ended, the others go on: %s", causes[0])  # noqa: TRY400 - one line
        else:
            logger.exception("one of the nodes ended by a bug of ours, the others go on")


async def _reporting(start: Start, *, task_status: trio.TaskStatus[Node]) -> None:
    await start(task_status)


async def _heed(signals: AsyncIterator[int], nodes: list[Node], scope: trio.CancelScope, nursery: trio.Nursery) -> None:
    is_stopping = False
    async for number in signals:
        if number in _STOP_SIGNALS and is_stopping:
            os._exit(128 + number)
        if number in _STOP_SIGNALS:
            is_stopping = True
            nursery.start_soon(_stop, nodes, scope)
        else:
            for node in nodes:
                node.reload()


async def _stop(nodes: list[Node], scope: trio.CancelScope) -> None:
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.leave)
    scope.cancel()
