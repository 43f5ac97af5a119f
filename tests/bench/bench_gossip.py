"""Gossip of a 1 KB block to the last of 20 nodes and of 50: ours, py-libp2p's and js-libp2p's on the same graph.

Every side is a process of its own with all its nodes in it, linked by TCP, noise and yamux on loopback. One node after
the other publishes. Timed is a block from the call that publishes it to its arrival at the last of the other nodes; one
that does not get there counts as ten seconds.
"""

import dataclasses
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from gossip_graph import LOST_AFTER, Graph, Outcome, Round
from harness import BenchError, Goal, Peer, Row, Samples, at_most, compare_all
from loremesh.protocol.block import header_hash
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import new_store, on_block
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import BlockAnnouncement, MessageType, seal
from loremesh.testing.builders import block_on, identity, parent_of, small_genesis
from npm import JS, set_up
from stories import LATER, paragraph_of

_HERE: Final = Path(__file__).parent
_ROUNDS: Final = 5
_WARM_UP: Final = 3
_WORDS: Final = 100
_DISTINCT: Final = 61
"""Blocks come again after so many: long after their last arrival."""
_PATIENCE: Final = 60.0

Rival = tuple[str, list[str], Goal | None]
"""Somebody to be measured against: a name, the program that runs the nodes, the goal."""


@dataclass(frozen=True, slots=True)
class _Pace:
    """How many blocks a round has, and how many seconds lie between two of them."""

    blocks: int
    pause: float


_SHORT: Final = _Pace(12, 1 / 3)
_LONG: Final = _Pace(200, 1 / 3)
"""A thousand blocks in five rounds."""
_SLOW: Final = _Pace(4, 1.0)
"""For 50 nodes: at three blocks a second py-libp2p would be measured in a jam of its own."""


def run() -> list[Row]:
    """Measure as many blocks as it takes to see the ratios."""
    return _measure(_SHORT)


def run_full() -> list[Row]:
    """Measure a thousand blocks of each side."""
    return _measure(_LONG)


def _measure(pace: _Pace) -> list[Row]:
    ours = [sys.executable, str(_HERE / "gossip_ours.py")]
    stock = [sys.executable, str(_HERE / "gossip_stock.py")]
    js = [set_up(), str(JS / "gossip.js")]
    names = tuple(f"gossip {place}" for place in range(50))
    few, many = _graph(names[:20], 70), _graph(names, 190)
    checking = dataclasses.replace(few, is_checking=True)
    rivals: list[Rival] = [("py-libp2p, limits lifted", stock, at_most(0.75)), ("js-libp2p", js, at_most(1.0))]
    without_goals: list[Rival] = [(name, command, None) for name, command, _ in rivals]
    return [
        *_compare("a block to the last of 20 nodes", few, pace, ours, rivals),
        *_compare("the same, each node checks the block as ours do", checking, _SHORT, ours, without_goals[:1]),
        *_compare("a block to the last of 50 nodes, one a second", many, _SLOW, ours, without_goals),
    ]


def _compare(what: str, graph: Graph, pace: _Pace, command: list[str], rivals: Sequence[Rival]) -> list[Row]:
    announced = _announcements(graph)
    with ExitStack() as stack:
        ours, *sides = (
            stack.enter_context(_side(one, graph, announced, pace))
            for one in (command, *(rival for _, rival, _ in rivals))
        )
        for side in (ours, *sides):
            side.warm_up()
        peers = [Peer(name, side.play, goal) for (name, _, goal), side in zip(rivals, sides, strict=True)]
        rows = compare_all(what, "ms", ours.play, peers, rounds=_ROUNDS, attempts=1)
    return [
        dataclasses.replace(row, note=f"ours {ours.account}; theirs {side.account}")
        for row, side in zip(rows, sides, strict=True)
    ]


def _graph(names: tuple[str, ...], edges: int) -> Graph:
    """Give a connected graph, the same in every run: a ring through all nodes, and chords at random."""
    size = len(names)
    links = {(place, (place + 1) % size) for place in range(size)}
    chance = random.Random(size)
    while len(links) < edges:
        one, other = chance.sample(range(size), 2)
        if (other, one) not in links:
            links.add((one, other))
    return Graph(tuple(identity(name).secret for name in names), tuple(sorted(links)), is_checking=False)


def _announcements(graph: Graph) -> list[tuple[int, bytes]]:
    """Give announcements of blocks of one chain, each with the place of the node that produced the block."""
    genesis = small_genesis()
    store = new_store(genesis, LATER)
    people = [Identity.new(secret) for secret in graph.secrets]
    announcements = []
    for number in range(_DISTINCT):
        place = number % len(people)
        block = block_on(genesis, parent_of(store), people[place], text=paragraph_of(_WORDS, number))
        store = on_block(store, block)
        header = block.header
        announcement = BlockAnnouncement(
            header.height, header_hash(header), header.producer, header.time, encode(block)
        )
        frame = seal(people[place], MessageType.BLOCK_ANNOUNCEMENT, announcement, header.time)
        announcements.append((place, frame))
    return announcements


@dataclass(slots=True)
class _Side:
    """A process with all nodes of one kind."""

    process: "subprocess.Popen[str]"
    blocks: Iterator[tuple[int, bytes]]
    pace: _Pace
    published: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def start(self, graph: Graph) -> None:
        """Have the nodes made and linked."""
        self._write(graph.to_json())
        if self._read().strip() != "ready":
            raise BenchError("a side of the gossip bench said something else than that it is ready")

    def warm_up(self) -> None:
        """Have a few blocks gossiped that do not count."""
        self._ask(_WARM_UP)

    def play(self) -> Samples:
        """Do one round; give the seconds each block took."""
        outcome = self._ask(self.pace.blocks)
        self.published += self.pace.blocks
        self.outcomes.append(outcome)
        return [*outcome.taken, *[LOST_AFTER] * (self.pace.blocks - len(outcome.taken))]

    @property
    def account(self) -> str:
        """Tell how many blocks reached all nodes, and what one arrival at one node cost."""
        delivered = sum(len(outcome.taken) for outcome in self.outcomes)
        busy = sum(outcome.busy for outcome in self.outcomes) / sum(outcome.arrivals for outcome in self.outcomes)
        return f"delivered {delivered} of {self.published}, {1000 * busy:.2f} ms of processor time an arrival"

    def _ask(self, blocks: int) -> Outcome:
        self._write(Round(self.pace.pause, tuple(islice(self.blocks, blocks))).to_json())
        return Outcome.from_json(self._read())

    def _write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"a side of the gossip bench ended with exit code {self.process.wait(_PATIENCE)}")
        return line


@contextmanager
def _side(command: list[str], graph: Graph, announced: list[tuple[int, bytes]], pace: _Pace) -> Iterator[_Side]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        side = _Side(process, cycle(announced), pace)
        try:
            side.start(graph)
            yield side
        finally:
            process.kill()
