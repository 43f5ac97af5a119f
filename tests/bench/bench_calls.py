"""Calls through the mesh: what one costs beside OpenAI's SDK, how long a piece travels, who is found, who is lost.

Client, executor and backend are processes of their own. Journals are kept in memory where the machine has a file system
there: what a disk takes to make them durable is said beside.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import openai
import trio

import chat_backend
from chat_backend import CALM, QUICK
from durable import Fsyncs
from harness import BenchError, Row, Samples, Spread, at_least, at_most, compare, measure
from loremesh.backends.chat import ChatRequest
from loremesh.backends.openai import OpenAIBackend
from loremesh.config import Program, load_settings
from loremesh.errors import ServiceError
from loremesh.network.settings import NetworkSettings
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import ChatMessage
from loremesh.roles.mesh import Mesh, joined
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.discovery import Discovery
from loremesh.services.router import Chat
from nodes import PATIENCE, Running, program, running

_HERE: Final = Path(__file__).parent
_ASK: Final = (ChatMessage("user", "Who keeps the lamp?"),)
_CALLS: Final = 15
_ROUNDS: Final = 11
_LONG_ROUNDS: Final = 7
_LOOKUPS: Final = 5
_NODES: Final = 10
_KILLED: Final = 3
_CALLS_AFTER: Final = 100
_RARE: Final = "rare"
_CONFIG: Final = """
mine = false
[[backend]]
kind = "openai"
base_url = "http://127.0.0.1:{backend}/v1"
models = ["{quick}", "{calm}"]
"""
_PLAIN: Final = 'mine = false\n[[backend]]\nkind = "builtin"\nmodels = [{models}]\n'


def run() -> list[Row]:
    """Measure calls of one executor, then ten nodes of which three are killed."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        return [*trio.run(_one_executor, Path(folder)), *trio.run(_ten_nodes, Path(folder))]


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of our own in it


# ---- One executor ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Delays:
    """Takes pieces whose words are the times at which they were sent."""

    taken: list[float] = field(default_factory=list)
    _unread: str = ""

    async def deliver(self, piece: str) -> None:
        """Take a piece."""
        now = time.perf_counter()
        *words, self._unread = (self._unread + piece).split(" ")
        self.taken += [now - float(word) for word in words if word]
        await trio.lowlevel.checkpoint()


async def _one_executor(folder: Path) -> list[Row]:
    async with AsyncExitStack() as stack:
        port = stack.enter_context(chat_backend.running())
        url = f"http://127.0.0.1:{port}/v1"
        config = _CONFIG.format(backend=port, quick=QUICK, calm=CALM)
        executor = stack.enter_context(_executor(folder, "ann", config))
        mesh = await stack.enter_async_context(_client(folder / "client", executor.wait_event("ready")["addresses"][0]))
        backend = OpenAIBackend(base_url=url)
        stack.push_async_callback(backend.aclose)
        sdk = await stack.enter_async_context(openai.AsyncOpenAI(base_url=url, api_key="any", max_retries=0))

        async def through_mesh(model: str) -> Samples:
            delays = _Delays()
            await mesh.call(Chat(model, _ASK), delays.deliver)
            return delays.taken

        async def direct(model: str) -> Samples:
            delays = _Delays()
            request = ChatRequest(model, _ASK, continues=False, max_tokens=1024)
            await backend.chat(request, delays.deliver)
            return delays.taken

        async def by_sdk(model: str) -> Samples:
            async with await sdk.chat.completions.create(
                model=model, messages=[{"role": "user", "content": _ASK[0].content}], stream=True
            ) as stream:
                async for _ in stream:
                    pass
            return ()

        def times(ask: Callable[[str], object]) -> Samples:
            return [_timed(ask) for _ in range(_CALLS)]

        def overhead() -> Samples:
            alone = statistics.median(times(direct))
            return [one - alone for one in times(through_mesh)]

        def added() -> Samples:
            alone = statistics.median(trio.from_thread.run(direct, CALM))
            return [one - alone for one in trio.from_thread.run(through_mesh, CALM)]

        fsyncs = Fsyncs()
        fsyncs.sample()
        rows = [
            await trio.to_thread.run_sync(
                lambda: compare(
                    "a streamed answer of 32 words through client and executor, beyond the backend's call alone",
                    "ms",
                    overhead,
                    against="the openai SDK asking the backend, the call itself",
                    peer=lambda: times(by_sdk),
                    goal=at_most(1.5),
                    rounds=_ROUNDS,
                )
            ),
            await trio.to_thread.run_sync(
                lambda: measure(
                    "what the mesh adds to a piece's way from backend to reader, a word every 20 ms",
                    "ms",
                    added,
                    at_most(1),
                    rounds=_LONG_ROUNDS,
                )
            ),
        ]
        return [fsyncs.noted(rows[0]), rows[1]]


def _timed(ask: Callable[[str], object]) -> float:
    before = time.perf_counter()
    trio.from_thread.run(ask, QUICK)  # type: ignore[arg-type]  # each of them is asynchronous
    return time.perf_counter() - before


@contextmanager
def _executor(folder: Path, name: str, config: str, *flags: str) -> Iterator[Running]:
    file = folder / f"{name}.toml"
    file.write_text(config)
    where = ("--data-dir", str(folder / name), "--listen-address", "/ip4/127.0.0.1/tcp/0")
    with running(program("loremesh-executor"), "--config", str(file), "--json", *where, *flags) as node:
        yield node


@asynccontextmanager
async def _client(directory: Path, address: str) -> AsyncIterator[Mesh]:
    settings = load_settings(Program.CLIENT, {"bootstrap_nodes": address, "data_dir": str(directory)}, {})
    async with joined(settings) as mesh:
        yield mesh


# ---- Ten nodes ------------------------------------------------------------------------------------------------------


async def _ten_nodes(folder: Path) -> list[Row]:
    with ExitStack() as stack:
        where = ("--data-dir", str(folder / "validator"), "--listen-address", "/ip4/127.0.0.1/tcp/0", "--json")
        validator = stack.enter_context(running(program("loremesh-validator"), *where))
        address = validator.wait_event("ready")["addresses"][0]
        flags = ("--bootstrap-nodes", address)
        executors = []
        for number in range(_NODES - 1):
            models = ['"builtin"', f'"{_RARE}"'] if number == 0 else ['"builtin"']
            config = _PLAIN.format(models=", ".join(models))
            executors.append(stack.enter_context(_executor(folder, f"executor{number}", config, *flags)))
        for executor in executors:
            executor.wait_event("ready")
        return [await _lookup(address), await _killed(folder, address, executors)]


async def _lookup(address: str) -> Row:
    identity = Identity.new(os.urandom(32))
    async with running_network(identity, NetworkSettings(listen_addresses=(), dht_server=False)) as network:
        await network.connect(address)

        async def find() -> float:
            finder = Discovery(identity, network, wall_clock)  # a new one knows nobody
            before = time.perf_counter()
            await finder.find(_RARE)
            return time.perf_counter() - before

        with _stock_nodes() as theirs:
            return await trio.to_thread.run_sync(
                lambda: compare(
                    f"find who serves a model, {_NODES} nodes, from a client with no record of it",
                    "ms",
                    lambda: [trio.from_thread.run(find) for _ in range(_LOOKUPS)],
                    against="py-libp2p's Kademlia, find_providers",
                    peer=lambda: _ask(theirs),
                    goal=at_most(0.5),
                    rounds=_LONG_ROUNDS,
                    note="ours asks the validator it is connected to for signed cards; each of ours is a process",
                )
            )


@contextmanager
def _stock_nodes() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, str(_HERE / "lookup_stock.py"), str(_NODES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as theirs:
        try:
            assert theirs.stdout is not None
            if theirs.stdout.readline() != "ready\n":
                raise BenchError(f"py-libp2p's nodes stopped with exit code {theirs.wait(PATIENCE)}")
            yield theirs
        finally:
            theirs.kill()


def _ask(theirs: "subprocess.Popen[str]") -> Samples:
    assert theirs.stdin is not None
    assert theirs.stdout is not None
    theirs.stdin.write(f"{_LOOKUPS}\n")
    theirs.stdin.flush()
    line = theirs.stdout.readline()
    if not line:
        raise BenchError(f"py-libp2p's nodes stopped with exit code {theirs.wait(PATIENCE)}")
    taken: list[float] = json.loads(line)
    return taken


async def _killed(folder: Path, address: str, executors: list[Running]) -> Row:
    async with _client(folder / "asker", address) as mesh:
        with trio.fail_after(PATIENCE):
            while await _known(mesh) != len(executors):  # noqa: ASYNC110 - a card that comes is no event here
                await trio.sleep(1)
        for executor in executors[:_KILLED]:
            executor.process.kill()
        taken = list[float]()
        for _ in range(_CALLS_AFTER):
            before = time.perf_counter()
            try:
                await mesh.call(Chat("builtin", _ASK), _pass_over)
            except ServiceError:
                continue
            taken.append(time.perf_counter() - before)
    share = 100 * len(taken) / _CALLS_AFTER
    note = f"{_CALLS_AFTER} calls, p50 {statistics.median(taken) * 1000:.0f} ms, slowest {max(taken) * 1000:.0f} ms"
    what = f"calls answered by a client that knows {_NODES} nodes of which {_KILLED} were just killed"
    return Row(what, "%", Spread(share, share, share), goal=at_least(95), note=note)


async def _known(mesh: Mesh) -> int:
    return sum(len(one.executors) for one in await mesh.models() if one.id == "builtin")


async def _pass_over(_piece: str) -> None:
    await trio.lowlevel.checkpoint()
