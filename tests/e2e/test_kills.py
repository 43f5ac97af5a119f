"""Whichever node of a story is killed, and when: the others go on with the same canon, and it comes back with its own.

Each node here is a process that gets SIGKILL, so nothing is said or written any more. What is promised then:

- the canon as it was before the kill, but for its newest blocks, which may still have been another branch's, is the
  beginning of every canon after it;
- what is left goes on, and a client that knows all addresses reads it from whoever lives;
- the killed node's store has every block that it ever told of as its head; started again, it joins the others.
"""

import signal
from collections.abc import Callable
from pathlib import Path

import trio

from loremesh.storage.store import Store
from loremesh.testing.node_processes import NodeProcess, StartNode, run_program

WriteGenesis = Callable[..., Path]
UNSETTLED = 4
"""Blocks that another branch may still replace: as many as the slowest of machines lets two nodes write in parallel."""
GROWTH = UNSETTLED + 2
MINERS = ["ann", "bob", "cat", "dan"]


class Cast:
    """A validator and four executors, each under its name, through all their lives."""

    def __init__(self, start: StartNode, directory: Path, genesis: Path) -> None:
        self.start, self.directory, self.genesis = start, directory, genesis
        self.nodes: dict[str, NodeProcess] = {}
        self.places: dict[str, str] = {}
        self.told: dict[str, set[str]] = {}

    async def enter(self, name: str) -> NodeProcess:
        """Start a node, for the first time or again where it was."""
        where = ["--genesis", str(self.genesis)]
        if known := [place for other, place in self.places.items() if other != name]:
            where += ["--bootstrap-nodes", ",".join(known)]
        if name in self.places:
            where += ["--listen-address", self.places[name].partition("/p2p/")[0]]
        if name == "validator":
            node = await self.start(name, *where, role="validator")
        else:
            node = await self.start(name, *where, "--latency", "0.1,0.6", "--work-share", "0.1")
        self.nodes[name] = node
        self.places[name] = await node.wait_address()
        return node

    async def kill(self, *names: str) -> None:
        """Kill nodes at once."""
        for name in names:
            self.nodes[name].send(signal.SIGKILL)
        for name in names:
            node = self.nodes.pop(name)
            assert await node.wait_end() == -signal.SIGKILL
            self.told.setdefault(name, set()).update(head["hash"] for head in node.told("head"))

    async def check_store(self, name: str) -> None:
        """Check that a dead node's store has all it told of."""
        async with Store.open(self.directory / name) as store:
            kept = {one.hash.hex() async for found in store.blocks() for one in found}
        assert self.told[name] <= kept, f"{name} lost {len(self.told[name] - kept)} blocks"

    async def canon(self) -> list[str]:
        """Read the canon as a client does that knows where everybody was, the dead included."""
        ended = await run_program("loremesh", "canon", "--json", "--bootstrap-nodes", ",".join(self.places.values()))
        assert ended.code == 0, ended.err
        return [block["hash"] for block in ended.json()["blocks"]]

    def height(self) -> int:
        return max(node.height for node in self.nodes.values())

    async def grow(self, blocks: int) -> None:
        """Wait until everybody who lives has told of so many more blocks."""
        height = self.height() + blocks
        for node in self.nodes.values():
            await node.wait("head", min_height=height)

    async def tracker(self) -> str:
        """Wait until one of the living has just told of a block of its own: the miner of the newest, the tracker."""
        names = {node.told("ready")[0]["peer_id"]: name for name, node in self.nodes.items()}
        first = self.nodes["ann"]
        newest = await first.wait("head", min_height=first.height + 1)
        return names[newest["producer"]]


async def test_the_canon_outlives_each_node_and_all_at_once_and_each_comes_back_with_its_own(
    start: StartNode, write_genesis: WriteGenesis, tmp_path: Path
) -> None:
    cast = Cast(start, tmp_path, write_genesis(spacing=1000))
    for name in ("validator", *MINERS):
        await cast.enter(name)
    await cast.grow(GROWTH)
    before = await cast.canon()

    # The one with the address that all others joined by; the tracker, which mined the newest block; a rival; everybody.
    for victims in (["validator"], [await cast.tracker()], ["dan"], ["validator", *MINERS]):
        settled = before[:-UNSETTLED]
        await cast.kill(*victims)
        for name in victims:
            await cast.check_store(name)
        if cast.nodes:
            await cast.grow(GROWTH)
            assert (await cast.canon())[: len(settled)] == settled
        async with trio.open_nursery() as nursery:
            for name in victims:
                nursery.start_soon(cast.enter, name)
        for name in victims:
            await cast.nodes[name].wait("head", min_height=len(before))
        await cast.grow(GROWTH)
        after = await cast.canon()
        assert after[: len(settled)] == settled
        assert len(after) > len(before)
        before = after

    for node in cast.nodes.values():
        assert not node.told("evidence")
        assert not node.told("rejected")
        assert "Traceback" not in node.log()
    await cast.kill("validator", *MINERS)
    for name in ("validator", *MINERS):
        await cast.check_store(name)
