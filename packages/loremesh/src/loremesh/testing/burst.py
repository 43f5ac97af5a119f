"""A burst over real connections: one node of several publishes a whole chain at once, and all of them are to get it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from loremesh.network.settings import NetworkSettings
from loremesh.protocol.block import Block
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.identity import Identity
from loremesh.roles.assembly import Disk, Services, assemble
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.happenings import Rejected
from loremesh.testing.builders import identity
from loremesh.testing.happened import Happened

PATIENCE: Final = 120.0
"""Seconds after which a burst has failed: generous, since machines are shared."""


@dataclass(frozen=True, slots=True)
class Burst:
    """What became of a burst."""

    seconds: float
    """From the first block handed to its publisher until the last node had the last block."""
    kept: tuple[int, ...]
    """How many blocks each node has at the end."""
    rejected: tuple[Rejected, ...]
    """Whatever any node refused."""


async def publish_burst(genesis: Genesis, producer: Identity, blocks: Sequence[Block], disks: Sequence[Disk]) -> Burst:
    """Run a node on each of `disks`, on free ports of 127.0.0.1, and let the first publish `blocks` at once.

    Args:
        genesis: Of the story, on disks that keep nothing of it yet.
        producer: Of all the blocks, and the first node, which all others are told to dial.
        blocks: A chain, parents first.
        disks: One for each node.

    Raises:
        trio.TooSlowError: Not every node got them.
    """
    happened = [Happened() for _ in disks]
    async with trio.open_nursery() as nursery:
        nodes: list[Services] = []
        for number, disk in enumerate(disks):
            others = nodes[0].network.addresses() if nodes else ()
            who = identity(f"listener {number}") if nodes else producer
            nodes.append(await nursery.start(_run_node, genesis, who, disk, happened[number], others))
        began = time.perf_counter()
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as waiting:
                waiting.start_soon(_publish, nodes[0], blocks)
                for node in nodes:
                    waiting.start_soon(_wait_height, node, len(blocks))
        seconds = time.perf_counter() - began
        kept = tuple(len(node.story.chain.store.entries) - 1 for node in nodes if node.story is not None)
        nursery.cancel_scope.cancel()
    return Burst(seconds, kept, tuple(one for each in happened for one in each.of(Rejected)))


async def _run_node(
    genesis: Genesis,
    who: Identity,
    disk: Disk,
    happened: Happened,
    others: tuple[str, ...],
    *,
    task_status: trio.TaskStatus[Services],
) -> None:
    async with running_network(who, NetworkSettings()) as network:
        services = await assemble(
            role="validator",
            identity=who,
            network=network,
            disk=disk,
            genesis=genesis,
            clock=wall_clock,
            tell=happened,
            bootstrap=others,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(services.run)
            await services.ready.wait()
            task_status.started(services)


async def _wait_height(node: Services, height: int) -> None:
    assert node.story is not None  # noqa: S101 - for the type checker: it was given one
    chain = node.story.chain
    while chain.store.tip.link.height < height:
        await chain.head.wait_change()


async def _publish(node: Services, blocks: Sequence[Block]) -> None:
    assert node.story is not None  # noqa: S101 - as above
    await node.story.chain.submit_all(blocks, None)
    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(node.story.announcer.announce, block)
