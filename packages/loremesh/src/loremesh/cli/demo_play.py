"""The demo's course: nodes start, the story grows, forks, heals, and comes to its end.

Every node is a process of its own that finds the others over libp2p; nothing is simulated but the time the built-in
generator pretends to think.
"""

import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio

from loremesh.cli.demo_malice import Stranger
from loremesh.cli.demo_nodes import DemoNode, demo_node, events_of, program, run_client
from loremesh.cli.demo_show import Show
from loremesh.config import Program, Settings, load_settings
from loremesh.errors import DeadlinePassed, ServiceError
from loremesh.primitives import Hash, Millis
from loremesh.protocol.genesis import Genesis, Parameters, Validator, genesis_to_toml, story_id
from loremesh.protocol.identity import NO_STORY, Identity, peer_id_from_text
from loremesh.roles.client import Visit, visit
from loremesh.roles.networking import wall_clock
from loremesh.storage.keys import write_key

_TITLE: Final = "The Reef Light"
_PREMISE: Final = (
    "Mara keeps the lighthouse at Gull Harbour. One morning the tide leaves a bottle on her step, and in it a map of "
    "an island that no chart has ever shown."
)
_SUGGESTION: Final = "The map changes whenever the tide turns."
_LATENCY: Final = "0.1,1.2"
_START_TIMEOUT: Final = 90.0
_BLOCK_TIMEOUT: Final = 30.0
_CUT_AT: Final = 2
_CUT_TIMEOUT: Final = 60.0
_HEAL_TIMEOUT: Final = 45.0
_WINNERS: Final = 3
_BACKLOG: Final = 1024


async def play(blocks: int, executors: int, malicious: bool, as_json: bool) -> None:  # noqa: FBT001 - trio.run passes positions
    """Run the demo.

    Args:
        blocks: Height to reach.
        executors: How many race, at least 2.
        malicious: Let a stranger lie to the validator while the race goes on.
        as_json: Print events as JSON lines, and the canon as the last line.

    Raises:
        DeadlinePassed: Something the demo waits for did not happen.
        ServiceError: A node ended by itself.
    """
    directory = Path(tempfile.mkdtemp(prefix="loremesh-demo-"))
    show = Show(as_json=as_json)
    show.opening(_TITLE, executors)
    try:
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_heed, signals)
                await _play_in(directory, blocks, executors, malicious, show, as_json=as_json)
                nursery.cancel_scope.cancel()
    except* KeyboardInterrupt:
        shutil.rmtree(directory, ignore_errors=True)  # nobody was told of it
        raise
    if as_json:
        shutil.rmtree(directory)  # nor here


async def _heed(signals: AsyncIterator[int]) -> None:
    """Turn Ctrl-C into an exception at a place where nothing is half done: Python's own comes between any two lines."""
    async for _ in signals:
        raise KeyboardInterrupt


async def _play_in(
    directory: Path,
    blocks: int,
    executors: int,
    malicious: bool,  # noqa: FBT001 - as the user gives it
    show: Show,
    *,
    as_json: bool,
) -> None:
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        course = _Course(show)
        await _start_nodes(directory, executors, course, stack, nursery)
        await course.meet()
        async with visit(_reader_settings(course.nodes)) as guest:
            nursery.start_soon(course.present, guest)
            await course.run(blocks, malicious)
            await course.stop_the_race()
            if not as_json:
                show.quote("loremesh tree", await course.ask("tree"))
            canon = await course.ask("canon", *(["--json"] if as_json else []))
            show.finale(canon, directory)
            nursery.cancel_scope.cancel()


@contextmanager
def _patience(what: str, seconds: float) -> Iterator[None]:
    with trio.move_on_after(seconds) as deadline:
        yield
    if deadline.cancelled_caught:
        raise DeadlinePassed(f"the demo waited {seconds:.0f} s in vain for {what}")


async def _start_nodes(
    directory: Path, executors: int, course: "_Course", stack: AsyncExitStack, nursery: trio.Nursery
) -> None:
    """Start the validator, then the executors all at once: they find each other through it."""
    names = ["validator", *(f"executor-{number}" for number in range(1, executors + 1))]
    keys = {name: Identity.generate(secrets.token_bytes(32)) for name in names}
    for name, key in keys.items():
        (directory / name).mkdir()
        write_key(directory / name / "key", key)
    genesis = _genesis(keys["validator"])
    course.story = story_id(genesis)
    file = directory / "genesis.toml"
    file.write_text(genesis_to_toml(genesis), encoding="utf-8")

    async def start(name: str, command: list[str], *known: str) -> None:
        command = [*command, "--genesis", str(file)]
        node = await stack.enter_async_context(demo_node(name, directory / name, command, *known))
        course.nodes.append(node)
        nursery.start_soon(course.listen, node)

    await start(names[0], [program("loremesh-validator")])
    await course.wait_ready()
    for name in names[1:]:
        racing = [program("loremesh-executor"), "--latency", _LATENCY]
        await start(name, racing, course.nodes[0].address)


def _reader_settings(nodes: list[DemoNode]) -> Settings:
    addresses = ",".join(node.address for node in nodes)
    return load_settings(Program.CLIENT, {"bootstrap_nodes": addresses}, {})


def _genesis(validator: Identity) -> Genesis:
    return Genesis(
        title=_TITLE,
        premise=_PREMISE,
        language="en",
        time=wall_clock(),
        validators=(Validator(validator.peer_id),),
        tracker=(validator.peer_id,),
        # Somewhat faster than the default, so that a whole story fits into half a minute.
        parameters=Parameters(spacing=Millis(2500), min_spacing=Millis(1200), solo_after=Millis(7500)),
    )


class _Course:
    """What is waited for, and what is done to the nodes.

    Args:
        show: Presents it.
    """

    def __init__(self, show: Show) -> None:
        self.nodes: list[DemoNode] = []
        """The validator first."""
        self.story = NO_STORY
        self._show = show
        self._producers: set[str] = set()
        self._news = trio.Event()
        self._stranger: Stranger | None = None
        self._said, self._to_present = trio.open_memory_channel[tuple[DemoNode, dict[str, Any]] | trio.Event](_BACKLOG)

    async def listen(self, node: DemoNode) -> None:
        """Take in what a node says; when somebody ends it who is not the demo, start it again."""
        while True:
            async for event in events_of(node):
                if event["event"] == "head":
                    self._producers.add(event["producer"])
                if self._stranger is not None:
                    self._stranger.take(node, event)
                if event["event"] == "ready":
                    self._show.listens(node)
                await self._said.send((node, event))
                self._ring()
            if node.stopping:
                return
            self._show.killed(node)
            await node.start_again(other for other in self.nodes if other is not node)
            self._ring()

    def _ring(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def present(self, guest: Visit) -> None:
        """Show what the nodes say; the text of a block is read from the node that told of it, as any client would."""
        async for said in self._to_present:
            if isinstance(said, trio.Event):
                said.set()
                continue
            node, event = said
            text = ""
            if event["event"] == "ready" and node.lives > 1:
                with suppress(ServiceError):  # it may have been ended again
                    await guest.network.connect(node.address)
            if self._show.wants_text(event):
                name = Hash(bytes.fromhex(event["hash"]))
                with suppress(ServiceError):  # the node is busy: the paragraph stands in the canon at the end
                    blocks = await guest.puller.blocks(peer_id_from_text(node.peer_id), self.story, [name])
                    text = blocks[0].content.text if blocks else ""
            self._show.event(node, event, self.nodes, text)

    async def _catch_up(self) -> None:
        """Wait until all that was said so far is shown, so that what the course says of it stands below it."""
        shown = trio.Event()
        await self._said.send(shown)
        await shown.wait()

    async def meet(self) -> None:
        """Wait until all nodes are ready and know each other."""
        await self.wait_ready()
        everybody = len(self.nodes) - 1
        await self._wait(
            "the nodes to find each other",
            lambda: all(len(node.peers) >= everybody for node in self.nodes),
            _START_TIMEOUT,
        )
        self._show.network_stands(self.nodes)

    async def wait_ready(self) -> None:
        """Wait until all nodes there are listen."""
        await self._wait("the nodes to listen", lambda: all(node.ready.is_set() for node in self.nodes), _START_TIMEOUT)

    async def ask(self, *arguments: str) -> str:
        """Run a client command against the nodes; give what it printed.

        Raises:
            ServiceError: It failed, and nobody had killed the validator meanwhile.
        """
        addresses = ",".join(node.address for node in self.nodes)
        validator = self.nodes[0]
        while True:
            life = validator.lives
            try:
                return await run_client(*arguments, "--bootstrap-nodes", addresses)
            except ServiceError:
                if validator.has_lived_on(life):
                    raise
            await self._wait("the validator to listen", lambda: validator.ready.is_set(), _START_TIMEOUT)  # noqa: PLW0108 - each life has an event of its own

    async def run(self, blocks: int, malicious: bool) -> None:  # noqa: FBT001 - as the user gives it
        """Let the story grow, fork, heal, take up a suggestion, hear a stranger's lies, and come to its end."""
        await self._grow_to(min(_CUT_AT, blocks))
        if blocks > _CUT_AT:
            await self.ask("suggest", _SUGGESTION, "--no-wait", *self._own_folder())
            self._show.suggested(_SUGGESTION)
            await self._fork()
            await self._heal()
        if malicious:
            await self._be_lied_to()
        await self._grow_to(blocks)
        wanted = min(_WINNERS, len(self.nodes) - 1)
        await self._wait(
            f"{wanted} different winners", lambda: len(self.nodes[0].winners()) >= wanted, 10 * _BLOCK_TIMEOUT
        )
        await self._wait("one head everywhere", self._agree, _HEAL_TIMEOUT)
        if self._stranger is not None:
            self._check_no_lie()

    async def _be_lied_to(self) -> None:
        """Let a stranger lie to the validator while the others race; nothing of it may come into the story."""
        self._stranger = Stranger(self.nodes[0], self._show)
        await self._stranger.lie()
        await self._grow_to(max(node.height for node in self.nodes) + 1)

    def _check_no_lie(self) -> None:
        assert self._stranger is not None  # noqa: S101 - asked before
        if self._stranger.names & self._producers:
            raise ServiceError("a block of the stranger is in the canon")
        self._show.unmoved(self.nodes)

    async def stop_the_race(self) -> None:
        """End the executors; the validator alone still serves what they wrote."""
        await self._catch_up()
        self._show.race_ends()
        for node in self.nodes[1:]:
            node.stopping = True
            node.process.terminate()
        with _patience("the executors to end", _HEAL_TIMEOUT):
            for node in self.nodes[1:]:
                await node.process.wait()
        await self._catch_up()
        self._show.race_is_over(self.nodes[0])

    async def _fork(self) -> None:
        """Cut half of the executors off until both sides have gone on alone."""
        here, there = self._sides()
        before = max(node.height for node in self.nodes)
        for node in there:
            node.deny(here)
        self._show.cut(there)

        def forked() -> bool:
            heights = sorted(max(node.height for node in side) for side in (here, there))
            # One side is ahead, so that the better branch is plainly the longer one.
            return before < heights[0] < heights[1]

        await self._wait("both sides to go on", forked, _CUT_TIMEOUT)
        await self._catch_up()
        self._show.forked(here, there)

    def _sides(self) -> tuple[list[DemoNode], list[DemoNode]]:
        """Give the validator with half of the executors, and the other half."""
        cut_off = (len(self.nodes) - 1) // 2
        return self.nodes[:-cut_off], self.nodes[-cut_off:]

    async def _heal(self) -> None:
        _, there = self._sides()
        for node in there:
            node.deny([])
        self._show.healing()
        await self._wait("the fork to heal", self._agree, _HEAL_TIMEOUT)
        await self._catch_up()
        self._show.healed(self.nodes)

    async def _grow_to(self, height: int) -> None:
        while (now := max(node.height for node in self.nodes)) < height:

            def grown(at: int = now) -> bool:
                return max(node.height for node in self.nodes) > at

            await self._wait(f"block {now + 1}", grown, _BLOCK_TIMEOUT)

    async def _wait(self, what: str, is_so: Callable[[], bool], seconds: float) -> None:
        with _patience(what, seconds):
            while not is_so():
                await self._news.wait()

    def _agree(self) -> bool:
        return len({node.head for node in self.nodes}) == 1

    def _own_folder(self) -> tuple[str, str]:
        return ("--data-dir", str(self.nodes[0].directory.parent / "reader"))
