"""Rounds of gossip on a fixed graph of nodes that are all in this process: what `gossip_ours` and `gossip_stock` share.

The graph is the first line of stdin. `ready` is printed once every link is there and meshes had time to form; from then
on every line read is a round and is answered by a line. `tests/js/gossip.js` does the same with js-libp2p.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

import trio

from loremesh.primitives import PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.codec import decode
from loremesh.protocol.genesis import story_id
from loremesh.protocol.validation import check_block_alone
from loremesh.protocol.wire import BlockAnnouncement, MessageType, expect
from loremesh.testing.builders import small_genesis

TOPIC: Final = "/loremesh/bench/blocks"
LOST_AFTER: Final = 10.0
"""Seconds after which a block that somebody has not got counts as lost."""
_MESHES_FORM: Final = 3.5
"""Seconds: three heartbeats."""
_GENESIS: Final = small_genesis()
_STORY: Final = story_id(_GENESIS)


@dataclass(frozen=True, slots=True)
class Graph:
    """Whose nodes are linked to whose, and whether each checks the blocks or nothing but their gossip signatures."""

    secrets: tuple[bytes, ...]
    edges: tuple[tuple[int, int], ...]
    is_checking: bool

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote."""
        secrets, edges, is_checking = json.loads(line)
        return cls(tuple(map(bytes.fromhex, secrets)), tuple((a, b) for a, b in edges), is_checking)

    def to_json(self) -> str:
        """Write the graph as one line."""
        return json.dumps([[secret.hex() for secret in self.secrets], self.edges, self.is_checking])


@dataclass(frozen=True, slots=True)
class Round:
    """Blocks to publish, each by the node of its number, so many seconds apart."""

    pause: float
    blocks: tuple[tuple[int, bytes], ...]

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote."""
        pause, blocks = json.loads(line)
        return cls(pause, tuple((publisher, bytes.fromhex(data)) for publisher, data in blocks))

    def to_json(self) -> str:
        """Write the round as one line."""
        return json.dumps([self.pause, [(publisher, data.hex()) for publisher, data in self.blocks]])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a round.

    Attributes:
        taken: Seconds from publishing each block until the last node had it; not of those that got lost.
        arrivals: How often any node got any block.
        busy: Seconds of processor time, all threads of the process.
    """

    taken: tuple[float, ...]
    arrivals: int
    busy: float

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Read what `to_json` wrote."""
        taken, arrivals, busy = json.loads(line)
        return cls(tuple(taken), arrivals, busy)

    def to_json(self) -> str:
        """Write the outcome as one line."""
        return json.dumps([self.taken, self.arrivals, self.busy])


class Node(Protocol):
    """What a round needs of a node, whoever made it."""

    def address(self) -> str:
        """Tell where it can be dialled."""

    async def connect(self, address: str) -> None:
        """Dial another node."""

    async def publish(self, data: bytes) -> None:
        """Send a block to everybody."""


Heard = Callable[[bytes], None]
"""Takes in that a node got a block of somebody else's."""
Check = Callable[[PeerId, bytes], None]
"""Looks at a message, given its signer and data; raises ProtocolError to refuse it."""
Start = Callable[[bytes, Check, Heard], AbstractAsyncContextManager[Node]]
"""Runs a node that has this secret key and is subscribed to `TOPIC`."""


def main(start: Start) -> None:
    """Play the rounds that stdin asks for."""
    logging.getLogger("libp2p").setLevel(logging.ERROR)
    trio.run(_play, start)


async def _play(start: Start) -> None:
    graph = Graph.from_json(await _line())
    tally = _Tally(len(graph.secrets) - 1)
    look = check_block if graph.is_checking else _look_at_nothing
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(start(secret, look, tally.on_arrival)) for secret in graph.secrets]
        for dialler, dialled in graph.edges:
            await nodes[dialler].connect(nodes[dialled].address())
        await trio.sleep(_MESHES_FORM)
        _say("ready")
        while line := await _line():
            _say((await _play_round(nodes, tally, Round.from_json(line))).to_json())


@dataclass(slots=True)
class _Tally:
    others: int
    missing: dict[bytes, int] = field(default_factory=dict)
    finished: dict[bytes, float] = field(default_factory=dict)
    arrivals: int = 0
    changed: trio.Event = field(default_factory=trio.Event)

    def on_arrival(self, data: bytes) -> None:
        self.arrivals += 1
        self.missing[data] = self.missing.get(data, self.others) - 1
        if self.missing[data] == 0:
            self.finished[data] = time.perf_counter()
            self.changed.set()


async def _play_round(nodes: list[Node], tally: _Tally, plan: Round) -> Outcome:
    tally.missing.clear()
    tally.finished.clear()
    tally.arrivals = 0
    started: dict[bytes, float] = {}
    busy = time.process_time()
    begin = trio.current_time()
    for number, (publisher, data) in enumerate(plan.blocks):
        await trio.sleep_until(begin + number * plan.pause)
        started[data] = time.perf_counter()
        await nodes[publisher].publish(data)
    with trio.move_on_after(LOST_AFTER):
        while len(tally.finished) < len(started):
            await tally.changed.wait()
            tally.changed = trio.Event()
    await trio.sleep_until(begin + len(plan.blocks) * plan.pause)  # a share of the upkeep for every block
    taken = tuple(tally.finished[data] - before for data, before in started.items() if data in tally.finished)
    return Outcome(taken, tally.arrivals, time.process_time() - busy)


def check_block(signer: PeerId, data: bytes) -> None:
    """Check an announced block as our nodes do, but for its place in the chain."""
    announcement = expect(data, signer, MessageType.BLOCK_ANNOUNCEMENT, BlockAnnouncement)
    check_block_alone(_GENESIS, _STORY, decode(Block, announcement.body))


def _look_at_nothing(_signer: PeerId, _data: bytes) -> None:
    pass


async def _line() -> str:
    return await trio.to_thread.run_sync(sys.stdin.readline)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
