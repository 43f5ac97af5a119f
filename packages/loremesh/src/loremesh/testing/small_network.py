"""Whole nodes on a network in memory: the services of the real programs, composed as the programs compose them.

Under `run_jumping` hours of a story pass in seconds; two runs with the same seeds tell the same story.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from loremesh.backends.base import Backend
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.genesis import Genesis, Parameters
from loremesh.protocol.identity import Identity
from loremesh.protocol.tracker import TrackerState
from loremesh.roles.assembly import Disk, Services, Story, assemble
from loremesh.services.canon import newest_paragraphs
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Clock, Head, PeerChanged
from loremesh.services.miner import Miner
from loremesh.testing.builders import identity, small_genesis
from loremesh.testing.happened import PATIENCE, Happened
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.pretending import PretendBackend, PretendSearch
from loremesh.testing.virtual_time import virtual_clock

RACE = Parameters(initial_work=64, easiest_work=16)
"""Miners at a few hashes per second keep the usual pace."""


@dataclass(slots=True)
class SmallNode:
    """A node that runs, or ran."""

    identity: Identity
    network: MemoryNode
    disk: Disk
    services: Services
    happened: Happened
    backend: PretendBackend
    search: PretendSearch
    clock: Clock
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> PeerId:
        """Its name."""
        return self.identity.peer_id

    @property
    def address(self) -> str:
        """Where it can be dialled when it runs."""
        return self.network.place

    @property
    def story(self) -> Story:
        """The services of its story; an anchor has none."""
        assert self.services.story is not None  # noqa: S101 - asked of nodes with a story only
        return self.services.story

    @property
    def chain(self) -> ChainService:
        """Its chain."""
        return self.story.chain

    @property
    def head(self) -> Hash:
        """The head that it has told of."""
        return self.chain.head.value

    @property
    def height(self) -> int:
        """The height of its head."""
        return self.chain.store.entries[self.head].link.height

    async def canon(self) -> list[Block]:
        """Give the canonical blocks, oldest first."""
        store = self.chain.store
        names = [store.canon[height] for height in range(1, store.tip.link.height + 1)]
        found = await self.chain.load(names)
        return [decode(Block, found[name]) for name in names]

    async def wait_height(self, height: int) -> None:
        """Wait until its head is at least that high."""
        await self.happened.wait(Head, lambda head: head.height >= height)

    async def wait_joined(self, other: PeerId) -> None:
        """Wait until it has told that another joined."""
        await self.happened.wait(PeerChanged, lambda one: one == PeerChanged(other, "joined"))

    async def stop(self) -> None:
        """End it as a signal would: it says goodbye."""
        self.scope.cancel()
        await self.ended.wait()

    async def kill(self) -> None:
        """End it as SIGKILL would: nobody is told, and only what its disk has kept remains."""
        self.network.vanish()
        await self.stop()


class SmallNetwork:
    """Starts nodes of one story in a nursery.

    Args:
        nursery: Runs them.
        genesis: Of the story.
        latency: Of every link, in seconds one way.
        seed: Of latencies, pauses and search times.
    """

    def __init__(
        self, nursery: trio.Nursery, genesis: Genesis | None = None, *, latency: float = 0.02, seed: int = 0
    ) -> None:
        self.genesis = genesis or small_genesis(RACE)
        self.between = MemoryNetwork(latency=latency, seed=seed)
        self.clock: Clock = virtual_clock(self.genesis.time)
        self._nursery = nursery
        self._seed = seed

    async def start(
        self,
        name: str,
        *bootstrap: SmallNode,
        mines: bool = False,
        disk: Disk | None = None,
        genesis: Genesis | None = None,
        anchor: bool = False,
        rate: float = 10.0,
        thinks: tuple[float, float] = (0.0, 0.0),
        max_reorg: int | None = None,
        skew: int = 0,
        happened: Happened | None = None,
    ) -> SmallNode:
        """Start a node; it is ready soon after.

        Args:
            name: The same name is the same identity, at the same address.
            bootstrap: Nodes to connect to first.
            mines: Whether it races.
            disk: The disk of a node that ended, to carry on from; None: an empty one.
            genesis: Of another story than everybody's.
            anchor: Keep no story at all.
            rate: Hashes per second of its search.
            thinks: Seconds its backend takes, least and most.
            max_reorg: As `assemble` has it.
            skew: Milliseconds that its clock is ahead of the others'.
            happened: Hears what it tells; None: a new one.
        """
        who = identity(name)
        network = self.between.node(who, NetworkSettings())
        happened = happened or Happened()
        kept = disk or MemoryDisk()

        def clock() -> int:
            return self.clock() + skew

        services = await assemble(
            role="executor" if mines else "validator",
            identity=who,
            network=network,
            disk=kept,
            genesis=None if anchor else genesis or self.genesis,
            clock=clock,
            tell=happened,
            bootstrap=tuple(other.address for other in bootstrap),
            max_reorg=max_reorg,
        )
        seed = self._seed * 1000 + int.from_bytes(who.peer_id[-2:], "big")
        backend = PretendBackend(seed, *thinks)
        node = SmallNode(who, network, kept, services, happened, backend, PretendSearch(seed + 1, rate), clock)
        await self._nursery.start(self._run, node, mines)
        return node

    async def _run(self, node: SmallNode, mines: bool, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: FBT001 - a nursery passes positions
        try:
            with node.scope:
                async with trio.open_nursery() as below:
                    # As in a program: the network outlives the services, so that they can say goodbye.
                    outliving = await below.start(_shielded, node.network)
                    try:
                        async with trio.open_nursery() as nursery:
                            await nursery.start(node.services.run)
                            if mines:
                                nursery.start_soon(self.miner(node).run)
                            task_status.started()
                    finally:
                        outliving.cancel()
        finally:
            node.ended.set()

    def miner(self, node: SmallNode, backend: Backend | None = None) -> Miner:
        """Make the miner of a node; with another backend than the node's own."""

        async def canon(tip: Hash, most: int) -> tuple[str, ...]:
            return await newest_paragraphs(node.chain, tip, most)

        return Miner(
            identity=node.identity,
            chain=node.chain,
            canon=canon,
            backend=backend or node.backend,
            search=node.search,
            publish=node.story.announcer.announce,
            clock=node.clock,
            may_mine=node.services.ready.wait,
        )


async def _shielded(network: MemoryNode, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope(shield=True) as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(network.run)
            task_status.started(scope)


async def wait_agreement(nodes: Iterable[SmallNode], height: int = 1) -> Hash:
    """Wait until all nodes have one head, at least `height` high; give it.

    Raises:
        trio.TooSlowError: They did not agree.
    """
    nodes = list(nodes)

    def is_reached() -> bool:
        return len({node.head for node in nodes}) == 1 and nodes[0].height >= height

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def watch(node: SmallNode) -> None:
                while not is_reached():
                    await node.chain.head.wait_change()
                nursery.cancel_scope.cancel()

            for node in nodes:
                nursery.start_soon(watch, node)
    return nodes[0].head


def tracker_of(node: SmallNode) -> PeerId | None:
    """Give whom a node takes for the tracker."""
    return node.story.tracker.tracker


def trackers(nodes: Iterable[SmallNode]) -> set[PeerId]:
    """Give those who take themselves for the tracker."""
    return {node.peer_id for node in nodes if node.story.tracker.office.state is TrackerState.TRACKER}
