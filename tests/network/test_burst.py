"""A burst over real connections: a thousand blocks published at once by one of five nodes end at all of them."""

import time
from collections.abc import Callable

import trio

from loremesh.network.settings import NetworkSettings
from loremesh.protocol.block import Block
from loremesh.protocol.identity import Identity
from loremesh.roles.assembly import Services, assemble
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.happenings import Rejected
from loremesh.testing.builders import ANN, BOB, CAT, DAN, EASY, identity, small_genesis
from loremesh.testing.happened import Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard

GENESIS = small_genesis(EASY)
BLOCKS = 1000
PATIENCE = 60.0


async def run_node(who: Identity, happened: Happened, *others: str, task_status: trio.TaskStatus[Services]) -> None:
    async with running_network(who, NetworkSettings()) as network:
        services = await assemble(
            role="validator",
            identity=who,
            network=network,
            disk=MemoryDisk(),
            genesis=GENESIS,
            clock=wall_clock,
            tell=happened,
            bootstrap=others,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(services.run)
            await services.ready.wait()
            task_status.started(services)


async def wait_height(services: Services, height: int) -> None:
    assert services.story is not None
    chain = services.story.chain
    while chain.store.tip.link.height < height:
        await chain.head.wait_change()


async def publish_at_once(services: Services, blocks: list[Block]) -> None:
    assert services.story is not None
    await services.story.chain.submit_all(blocks, None)
    async with trio.open_nursery() as nursery:
        for block in blocks:
            nursery.start_soon(services.story.announcer.announce, block)


async def test_a_thousand_blocks_published_at_once_end_at_five_real_nodes(
    nursery: trio.Nursery, record_property: Callable[[str, object], None]
) -> None:
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, BLOCKS, ANN)
    happened = [Happened() for _ in range(5)]

    async def start(number: int, who: Identity, *others: str) -> Services:
        async def run(task_status: trio.TaskStatus[Services]) -> None:
            await run_node(who, happened[number], *others, task_status=task_status)

        services: Services = await nursery.start(run)
        return services

    first = await start(0, ANN)
    places = first.network.addresses()
    others = [await start(number, who, *places) for number, who in enumerate((BOB, CAT, DAN, identity("eve")), 1)]
    began = time.perf_counter()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(publish_at_once, first, blocks)
            for services in others:
                waiting.start_soon(wait_height, services, BLOCKS)
    took = time.perf_counter() - began
    record_property("seconds", round(took, 1))
    for services in others:
        assert services.story is not None
        assert len(services.story.chain.store.entries) == BLOCKS + 1
    assert not [one for each in happened for one in each.of(Rejected)]
    nursery.cancel_scope.cancel()
