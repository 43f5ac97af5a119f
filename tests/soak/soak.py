"""A soak: a validator and four executors as real processes, under clients and troubles for as long as you like.

    python tests/soak/soak.py [--minutes 30] [--json] [--keep]

Clients read and suggest all the time; meanwhile, in turn, a node is killed and started again, somebody joins late and
goes, a node is frozen, the network is cut in two, and a stranger breaks every rule there is. After each of these the
nodes must come to one head, and are measured at rest. It ends with 1 when anything is otherwise than it must be.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Final

import trio

from loremesh.primitives import Millis
from loremesh.protocol.genesis import Genesis, Parameters, genesis_to_toml
from loremesh.testing.node_processes import run_program
from soak_figures import Sample, Trend, scrape, trends
from soak_load import Load
from soak_nodes import PATIENCE, Nodes, SoakNode

_EXECUTORS: Final = 4
_EVERY: Final = 2.0
"""Seconds between two looks at every node."""
_LINE: Final = 10.0
_LAST: Final = 45.0
"""Seconds before the end in which no trouble begins."""
_LONG_FREEZES: Final = 10.0
"""Minutes that a soak must last to have room for freezes after which a node is taken for dead."""
_LONG_ENOUGH: Final = 600.0
"""Seconds of measuring from which a slope of memory means something: before, nodes still fill what they may fill."""
_MOST_SLOPE: Final = 1.0
"""MiB per 10 minutes."""
_MOST_GROWTH: Final = 8.0
"""MiB in a soak too short for slopes, from the end of its warm-up on."""
_MOST_MORE: Final = {"descriptors": 4.0, "tasks": 12.0, "threads": 4.0}
"""At rest, between the end of the warm-up and the end."""
_PARAMETERS: Final = Parameters(
    spacing=Millis(2000),
    min_spacing=Millis(700),
    solo_after=Millis(6000),
    half_life=Millis(20_000),
    initial_work=2**17,
    easiest_work=2**8,
)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold at the end."""

    name: str
    ok: bool
    found: str


@dataclass(slots=True)
class Soak:
    """One soak.

    Args:
        nodes: Its nodes.
        seconds: How long it lasts.
    """

    nodes: Nodes
    seconds: float
    load: Load
    began: float = field(default_factory=time.monotonic)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    rests: int = 0
    slowest_rest: float = 0.0
    """Seconds that it took at most until all were connected and had one head."""

    @property
    def at(self) -> float:
        """Seconds since the soak began."""
        return time.monotonic() - self.began

    @property
    def warm_up(self) -> float:
        """Seconds that are not measured: until half of the soak is over, caches fill."""
        return self.seconds / 2

    async def run(self) -> list[Check]:
        """Start the nodes, let everything happen to them, and look at what is left."""
        await self.start_nodes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.load.ask_all_the_time)
            nursery.start_soon(self.look_all_the_time)
            nursery.start_soon(self.show_all_the_time)
            await self.rest()
            for name, trouble in cycle(self.load.troubles.items()):
                if self.at >= self.seconds - _LAST:
                    break
                self.load.now = name
                await trouble()
                self.load.done[name] += 1
                await self.rest()
            self.load.now = "clients alone"
            await trio.sleep(max(0.0, self.seconds - self.at))
            await self.rest()
            nursery.cancel_scope.cancel()
        return [*await self.last_checks(), *self.figure_checks()]

    async def start_nodes(self) -> None:
        """Start all nodes, and wait until they have a story."""
        self.load.now = "start"
        await self.nodes.add("validator", "validator")
        for number in range(1, _EXECUTORS + 1):
            racing = ("--latency", "0.2,1.2", "--work-share", "0.05")
            await self.nodes.add(f"executor-{number}", "executor", *racing)
        await self.nodes.wait_all(2, self.nodes.all)

    async def rest(self) -> None:
        """Wait until all nodes are connected and have one head and no client is there; look at them then."""
        before, self.load.now = self.at, f"after {self.load.now}"
        others = len(self.nodes.all) - 1
        async with self.load.quiet:
            with trio.move_on_after(PATIENCE) as patience:
                while True:
                    found = [await self.look_at(node) for node in self.nodes.all]
                    whole = [one for one in found if one is not None and one.connected == others]
                    if len(whole) == len(self.nodes.all) and self.nodes.one_head():
                        for node, one in zip(self.nodes.all, whole, strict=True):
                            self.samples[node.name].append(replace(one, resting=True))
                        break
                    await trio.sleep(0.5)
            if patience.cancelled_caught:
                self.load.failures.append(f"not whole again in {PATIENCE:.0f} s {self.load.now}: {self.line()}")
        self.rests += 1
        self.slowest_rest = max(self.slowest_rest, self.at - before)

    async def look_at(self, node: SoakNode) -> Sample | None:
        """Take a node's figures, if it gives them."""
        life = len(node.lives) - 1
        if not node.runs or not node.http:
            return None
        sample = await scrape(node.http, self.at, life)
        if sample is not None:
            self.samples.setdefault(node.name, []).append(sample)
        return sample

    async def look_all_the_time(self) -> None:
        """Look at every node again and again."""
        while True:
            for node in self.nodes.all:
                await self.look_at(node)
            await trio.sleep(_EVERY)

    async def show_all_the_time(self) -> None:
        """Print a line from time to time."""
        while True:
            await trio.sleep(_LINE)
            say(self.line())

    def line(self) -> str:
        """Give one line of how it goes."""
        newest = [self.samples[node.name][-1] for node in self.nodes.all if node.name in self.samples]
        memory = " ".join(f"{one.memory / 2**20:.0f}" for one in newest)
        files = " ".join(f"{one.descriptors:.0f}" for one in newest)
        tasks = " ".join(f"{one.tasks:.0f}" for one in newest)
        minutes, seconds = divmod(int(self.at), 60)
        return (
            f"{minutes:3}:{seconds:02}  height {self.nodes.height()}  reorgs {len(self.reorgs())}  MB {memory}  "
            f"fds {files}  tasks {tasks}  clients {self.load.clients.total()}  {self.load.now}"
        )

    def reorgs(self) -> list[int]:
        """List how many blocks each reorganisation abandoned."""
        heads = [head for node in self.nodes.all for head in node.told("head")]
        return [head["reorg_depth"] for head in heads if head["reorg_depth"]]

    async def last_checks(self) -> list[Check]:
        """Read the story from every node, end them all, and look at what they leave behind."""
        self.load.now = "end"
        canons: dict[str, list[str]] = {}
        codes: dict[str, int] = {}
        async with trio.open_nursery() as nursery:
            for node in self.nodes.all:
                nursery.start_soon(self.read_canon, node, canons)
        async with trio.open_nursery() as nursery:
            for node in self.nodes.all:
                nursery.start_soon(self.end, node, codes)
        lost = 0
        for node in self.nodes.all:
            lost += len({head["hash"] for head in node.told("head")} - await node.kept())
        told = sum(len(node.told("head")) for node in self.nodes.all)
        # The story grew while one after the other was read: the newest blocks may have been another branch's.
        shared = max(0, min(map(len, canons.values()), default=0) - 2)
        same = len({tuple(canon[:shared]) for canon in canons.values()}) == 1 and len(canons) == len(self.nodes.all)
        refused = [
            f"{node.name}: {one}"
            for node in self.nodes.all
            for one in node.told("rejected") + node.told("banned")
            if one["peer_id"] not in self.load.strangers
        ]
        bugs = [node.name for node in self.nodes.all if "Traceback" in node.process.log()]
        return [
            Check(
                "one canon, recomputed from every node", same and shared > 0, f"{shared} blocks, {len(canons)} nodes"
            ),
            Check("no block is lost that was told of", not lost, f"{told} heads told, {lost} lost"),
            Check("nobody honest is refused or shut out", not refused, "; ".join(refused[:3]) or "nobody"),
            Check("nothing goes wrong", not self.load.failures, "; ".join(self.load.failures[:3]) or self.answered()),
            Check("troubles are got over", bool(self.load.done), self.got_over()),
            Check("one head after every trouble", bool(self.rests), self.healed()),
            Check("nodes end cleanly", not any(codes.values()) and not bugs, f"{sorted(codes.values())} {bugs or ''}"),
        ]

    async def read_canon(self, node: SoakNode, canons: dict[str, list[str]]) -> None:
        """Let a client recompute the canon of a node; note its hashes."""
        ended = await run_program("loremesh", "canon", "--json", "--bootstrap-nodes", node.address)
        if ended.code == 0:
            canons[node.name] = [block["hash"] for block in ended.json()["blocks"]]
        else:
            self.load.failures.append(f"the canon of {node.name}: {ended.err}")

    async def end(self, node: SoakNode, codes: dict[str, int]) -> None:
        """End a node; note its exit code."""
        codes[node.name] = await node.process.end()

    def healed(self) -> str:
        """Say how often all had one head, and what it took."""
        reorgs = self.reorgs()
        return (
            f"{self.rests} times, {self.slowest_rest:.0f} s after it at most; "
            f"{len(reorgs)} reorgs, the deepest of {max(reorgs, default=0)} blocks"
        )

    def answered(self) -> str:
        """Say what clients did."""
        return ", ".join(f"{many} {name}" for name, many in self.load.clients.items())

    def got_over(self) -> str:
        """Say what was got over."""
        lies = f" ({self.load.lies} lies)" if self.load.lies else ""
        return ", ".join(f"{many} {name}" for name, many in self.load.done.items()) + lies

    def trends(self) -> dict[str, dict[str, Trend | None]]:
        """Give the trend of every figure of every node."""
        return {name: trends(samples, self.warm_up) for name, samples in self.samples.items()}

    def summary(self, checks: list[Check]) -> dict[str, object]:
        """Give everything that was measured."""
        reorgs = self.reorgs()
        return {
            "minutes": self.at / 60,
            "height": self.nodes.height(),
            "reorgs": {"count": len(reorgs), "deepest": max(reorgs, default=0)},
            "rests": {"count": self.rests, "slowest": self.slowest_rest},
            "troubles": dict(self.load.done),
            "clients": dict(self.load.clients),
            "figures": {
                name: {figure: asdict(one) for figure, one in found.items() if one}
                for name, found in self.trends().items()
            },
            "checks": [asdict(check) for check in checks],
        }

    def figure_checks(self) -> list[Check]:
        """Judge memory, descriptors, tasks and threads of every node."""
        checks = []
        for name, found in self.trends().items():
            if memory := found["memory"]:
                checks.append(self.memory_check(name, memory))
            flat = {figure: one for figure in _MOST_MORE if (one := found[figure])}
            if flat:
                ok = all(one.last - one.first <= _MOST_MORE[figure] for figure, one in flat.items())
                shown = (f"{one.first:.0f} -> {one.last:.0f} {figure}" for figure, one in flat.items())
                checks.append(Check(f"{name} at rest", ok, ", ".join(shown)))
        return checks

    def memory_check(self, name: str, memory: Trend) -> Check:
        """Judge a node's memory: by its slope, or by its growth when the soak was short."""
        shown = f"{memory.first:.1f} -> {memory.last:.1f} MB, most {memory.most:.1f}, {memory.slope:+.2f} in 10 min"
        long = self.seconds - self.warm_up >= _LONG_ENOUGH and self.measured(name) >= _LONG_ENOUGH
        ok = memory.slope <= _MOST_SLOPE if long else memory.last - memory.first <= _MOST_GROWTH
        return Check(f"memory of {name}", ok, shown)

    def measured(self, name: str) -> float:
        """Give for how many seconds after the warm-up a node's longest life was looked at."""
        warm = [one for one in self.samples[name] if one.at >= self.warm_up]
        lives = {one.life for one in warm}
        spans = ([one.at for one in warm if one.life == life] for life in lives)
        return max((span[-1] - span[0] for span in spans), default=0.0)


def say(line: str) -> None:
    """Print a line for whoever watches."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def show(checks: list[Check]) -> None:
    """Print the table."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        sys.stdout.write(f"{'ok ' if check.ok else 'BAD'}  {check.name:{width}}  {check.found}\n")


def genesis(directory: Path) -> Path:
    """Write the story's genesis."""
    story = Genesis(
        title="The Long Watch",
        premise="A keeper counts the ships that pass, and the ships that do not.",
        language="en",
        time=Millis(time.time_ns() // 1_000_000 - 60_000),  # a stranger's branch needs some past to stand in
        parameters=_PARAMETERS,
    )
    file = directory / "genesis.toml"
    file.write_text(genesis_to_toml(story), encoding="utf-8")
    return file


async def soak(directory: Path, minutes: float, *, as_json: bool) -> bool:
    """Soak; tell whether everything held."""
    async with trio.open_nursery() as nursery:
        nodes = Nodes(nursery, directory, genesis(directory))
        run = Soak(nodes, 60 * minutes, Load(nodes, random.Random(5), long=minutes >= _LONG_FREEZES))
        checks = await run.run()
        nursery.cancel_scope.cancel()
    if as_json:
        sys.stdout.write(json.dumps(run.summary(checks)) + "\n")
    else:
        show(checks)
    return all(check.ok for check in checks)


def main() -> None:
    """Soak for as long as asked."""
    parser = argparse.ArgumentParser(description="Keep a small network under load and troubles, and measure it.")
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--json", action="store_true", help="print what was measured as one JSON object")
    parser.add_argument("--keep", action="store_true", help="keep the nodes' folders and logs, and say where")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end the nodes too
    directory = Path(tempfile.mkdtemp(prefix="loremesh-soak-"))
    try:
        held = trio.run(lambda: soak(directory, arguments.minutes, as_json=arguments.json))
    finally:
        if arguments.keep:
            say(f"{directory} has the nodes' folders and logs")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
