"""Mining with any backend: what an executor does, and what a program that embeds the library can do too."""

import trio

from loremesh.backends.base import Backend
from loremesh.primitives import Hash
from loremesh.roles.assembly import Services, Story
from loremesh.roles.networking import wall_clock
from loremesh.services.canon import newest_paragraphs
from loremesh.services.miner import Miner
from loremesh.services.search import Search


async def mine(services: Services, story: Story, backend: Backend, work_share: float = 0.2) -> None:
    """Race to write the next block of a node's story until cancelled.

    Args:
        services: Of the node, running.
        story: The node's story.
        backend: Writes the paragraphs; stays open.
        work_share: Share of one core that the search for work may use, above 0 and up to 1.

    Raises:
        MachineError: The process that searches cannot be started, or died.
    """
    search = Search(work_share)

    async def canon(tip: Hash, most: int) -> tuple[str, ...]:
        return await newest_paragraphs(story.chain, tip, most)

    async with trio.open_nursery() as nursery:
        miner = Miner(
            identity=services.identity,
            chain=story.chain,
            canon=canon,
            backend=backend,
            search=search,
            publish=story.announcer.announce,
            clock=wall_clock,
            may_mine=services.ready.wait,
        )
        await nursery.start(search.run)
        nursery.start_soon(miner.run)
