"""A whole network in one process and in virtual time: the real services, on links that fail as a seed says.

Everything random comes from the scenario's seed: links, weather, plan, pauses, search times, and the order in which
trio runs tasks that could run at the same time (`run_jumping`). So a failing seed fails again in the same way, and the
digest of all that nodes told, in order, is the same in every run.

Source: docs/simulator.md.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final

import trio

from loremesh.primitives import PeerId
from loremesh.protocol.fork_choice import Store
from loremesh.services.happenings import Happening, Head
from loremesh.testing.builders import identity, small_genesis, suggestion
from loremesh.testing.happened import Happened
from loremesh.testing.hostile import MALICES, Malice, Villain
from loremesh.testing.invariants import Invariants
from loremesh.testing.memory_link import Passage
from loremesh.testing.orchard import Orchard
from loremesh.testing.scenarios import (
    Blow,
    Heal,
    Kill,
    Mute,
    Partition,
    Restart,
    Scenario,
    Silence,
    Step,
    Suggest,
)
from loremesh.testing.small_network import RACE, SmallNetwork, SmallNode
from loremesh.testing.virtual_time import run_jumping

_SLICE: Final = 0.5
"""Virtual seconds between two looks at every node; whatever tells of a head is looked at in that moment as well."""
_BOOTSTRAP: Final = 3
_JOINS_AFTER: Final = 0.1
_MOST_SKEW: Final = 100
"""Milliseconds that a clock is ahead of the others, or behind."""
_FOREVER: Final = 1e7
_DECIDE: Final = 2
"""Blocks of honest miners after which no header of a liar is a head any more."""


class InvariantBroken(AssertionError):
    """An honest node did what it never may. The message says when, and how to see it again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What happened.

    Attributes:
        blocks: Valid blocks of all branches together; every node has them all.
        height: Of the head that all agree on.
        branches: Ends of branches, the head's included.
        deepest_reorg: Most blocks that one node abandoned at once.
        kills: Nodes that were killed and came back.
        bans: How many pairs there are of an honest node and a hostile one that it shut out.
        agreed_after: Virtual seconds from the miners' rest to agreement.
        seconds: Virtual seconds altogether.
        told: How many things nodes told their operators.
        digest: Of all that was told, by whom and when: equal in every run of a scenario.
    """

    blocks: int
    height: int
    branches: int
    deepest_reorg: int
    kills: int
    bans: int
    agreed_after: float
    seconds: float
    told: int
    digest: str


class _Ear(Happened):
    """Keeps what one node tells, and passes it on once there is a node to name."""

    def __init__(self, simulation: "Simulation", number: int) -> None:
        Happened.__init__(self)
        self._simulation = simulation
        self._number = number

    def __call__(self, happening: Happening) -> None:
        """Take a happening."""
        Happened.__call__(self, happening)
        self._simulation.on_happening(self._number, happening)


def simulate(scenario: Scenario) -> Report:
    """Run a scenario.

    Raises:
        InvariantBroken: What must always hold did not, or the nodes did not agree in time.
    """
    simulation = Simulation(scenario)
    try:
        report = run_jumping(simulation.run, seed=scenario.seed)
    except BaseException as error:
        error.add_note(f"seen by: {scenario.command()}")
        raise
    if report is None:
        raise InvariantBroken(f"{simulation.broken}\nseen by: {scenario.command()}")
    return report


@dataclass(slots=True)
class Simulation:
    """One run of a scenario."""

    scenario: Scenario
    broken: str = ""
    """What did not hold, once something did not."""
    _nodes: dict[int, SmallNode] = field(default_factory=dict)
    """The honest ones."""
    _villains: dict[PeerId, Malice] = field(default_factory=dict)
    _at_it: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Of what the hostile ones do of their own accord."""
    _down: set[int] = field(default_factory=set)
    _digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _told: int = 0
    _kills: int = 0
    _deepest: int = 0
    _agreed_after: float = 0.0
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _network: SmallNetwork = field(init=False)
    _invariants: Invariants = field(init=False)

    async def run(self) -> Report | None:
        """Play the scenario in trio; None when something did not hold."""
        genesis = small_genesis(RACE)
        self._invariants = Invariants(Orchard(genesis), self._break)
        report = None
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._network = SmallNetwork(nursery, genesis, latency=self.scenario.latency, seed=self.scenario.seed)
                nursery.start_soon(self._look)
                await self._play(nursery)
                await self._settle()
                report = self._report()
                nursery.cancel_scope.cancel()
        return None if self.broken else report

    def on_happening(self, number: int, happening: Happening) -> None:
        """Take in what a node tells."""
        self._digest.update(f"{trio.current_time():.6f} {number} {happening!r}\n".encode())
        self._told += 1
        if isinstance(happening, Head):
            self._deepest = max(self._deepest, happening.reorg_depth)
        if number in self._nodes and not self.broken:
            self._invariants.on_happening(self._nodes[number], happening)

    def _break(self, what: str) -> None:
        if not self.broken:
            self.broken = f"seed {self.scenario.seed}, after {trio.current_time():.3f} s: {what}"
            self._scope.cancel()

    async def _look(self) -> None:
        while True:
            await trio.sleep(_SLICE)
            for node in self._nodes.values():
                self._invariants.check(node)

    # the plan

    async def _play(self, nursery: trio.Nursery) -> None:
        names = [f"hostile {number}" for number in range(self.scenario.hostile)]
        self._villains = {identity(name).peer_id: malice for name, malice in zip(names, cycle(MALICES), strict=False)}
        self._invariants.liars = frozenset(self._villains)
        for number in range(self.scenario.nodes):
            await self._start(number)
            await trio.sleep(_JOINS_AFTER)
        nursery.start_soon(self._be_hostile, names)
        for step in self.scenario.steps():
            await trio.sleep_until(step.at)
            await self._do(step)
        await trio.sleep_until(self.scenario.minutes * 60)
        for number in sorted(self._down):
            await self._start(number)

    async def _be_hostile(self, names: Sequence[str]) -> None:
        with self._at_it:
            async with trio.open_nursery() as nursery:
                for number, name in enumerate(names):
                    node = await self._network.start(name, *list(self._nodes.values())[:_BOOTSTRAP])
                    dice = random.Random(f"{self.scenario.seed}/{name}")  # noqa: S311 - repeatable is the point
                    honest = [one.peer_id for one in self._nodes.values()]
                    villain = Villain(node, self._network.genesis, honest, dice)
                    nursery.start_soon(MALICES[number % len(MALICES)].act, villain)

    async def _start(self, number: int) -> None:
        before = self._nodes.get(number)
        bootstrap = [self._nodes[other] for other in range(_BOOTSTRAP) if other != number and other in self._nodes]
        self._down.discard(number)
        self._nodes[number] = await self._network.start(
            f"node {number}",
            *bootstrap,
            mines=number < self.scenario.miners,
            disk=before.disk if before is not None else None,
            rate=30 / self.scenario.miners,
            thinks=(0.2, 1.5),
            skew=number * 37 % (2 * _MOST_SKEW) - _MOST_SKEW,
            happened=_Ear(self, number),
        )

    async def _do(self, step: Step) -> None:
        between = self._network.between
        names = [identity(f"node {number}").peer_id for number in range(self.scenario.nodes)]
        match step.action:
            case Partition(order, size):
                shuffled, liars = [names[number] for number in order], list(self._villains)
                between.partition([*shuffled[:size], *liars[::2]], [*shuffled[size:], *liars[1::2]])
            case Heal():
                between.heal()
            case Mute(sender, receiver):
                between.mute(names[sender], names[receiver])
            case Silence(one, other):
                between.link(names[one], names[other]).turn(Passage.SILENT)
            case Blow(weather):
                between.set_weather(weather)
            case Kill(number) if number not in self._down:
                self._down.add(number)
                self._kills += 1
                await self._nodes[number].kill()
            case Restart(number) if number in self._down:
                await self._start(number)
            case Suggest(number, text) if number not in self._down:
                await self._suggest(self._nodes[number], text)
            case _:
                pass

    async def _suggest(self, node: SmallNode, text: str) -> None:
        reader = identity("a reader " + text)
        transaction = suggestion(reader, self._network.genesis, text)
        if await node.chain.add_transaction(transaction):
            await node.story.announcer.relay(transaction)

    # the end

    async def _settle(self) -> None:
        """Let everybody rest, the liars first, and wait until all have one head and every valid block.

        Of many headers on one parent nodes keep different ones, until an honest block decides between them.
        """
        self._at_it.cancel()
        if self.scenario.hostile:
            await self._wait_height(self._greatest_height() + _DECIDE)
        for node in self._nodes.values():
            node.backend.least = node.backend.most = _FOREVER
        rested = trio.current_time()
        await trio.sleep(2.0)  # what was being written is published
        while not self._agree():
            if trio.current_time() - rested > self.scenario.bound:
                self._break(self._disagreement())
                await trio.sleep_forever()
            await trio.sleep(_SLICE)
        self._agreed_after = trio.current_time() - rested
        for peer_id, malice in self._villains.items():
            if malice.is_provable and not self._invariants.banned.get(peer_id):
                self._break(f"nobody shut out whoever {malice.name}")

    def _greatest_height(self) -> int:
        return max(node.height for node in self._nodes.values())

    async def _wait_height(self, height: int) -> None:
        began = trio.current_time()
        while self._greatest_height() < height:
            if trio.current_time() - began > self.scenario.bound:
                self._break(f"no block {height} within {self.scenario.bound:g} s")
                await trio.sleep_forever()
            await trio.sleep(_SLICE)

    def _agree(self) -> bool:
        return len({node.head for node in self._nodes.values()}) == 1 and not any(
            self._invariants.missing(node) for node in self._nodes.values()
        )

    def _disagreement(self) -> str:
        heads = {node.head for node in self._nodes.values()}
        lacking = [number for number, node in self._nodes.items() if self._invariants.missing(node)]
        return f"no agreement within {self.scenario.bound:g} s: {len(heads)} heads, nodes {lacking} lack blocks"

    def _report(self) -> Report:
        store: Store = self._nodes[0].chain.store
        self._digest.update(store.head)
        return Report(
            blocks=len(self._invariants.orchard.blocks),
            height=store.tip.link.height,
            branches=len(store.tips),
            deepest_reorg=self._deepest,
            kills=self._kills,
            bans=sum(map(len, self._invariants.banned.values())),
            agreed_after=self._agreed_after,
            seconds=trio.current_time(),
            told=self._told,
            digest=self._digest.hexdigest(),
        )
