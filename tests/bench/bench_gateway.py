"""The gateway, with an executor behind it over libp2p, against LiteLLM's proxy in front of the same backend."""

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

import chat_backend
import litellm_proxy
from chat_backend import SMALL as MODEL
from harness import BenchError, Goal, Peer, Row, Samples, Side, Spread, at_least, at_most, compare_all, measure, timed
from http_load import Load, ask
from nodes import program, running

_ROUNDS: Final = 7
_ATTEMPTS: Final = 2
_SEQUENTIAL: Final = 30
_WARM: Final = 40
_AT_ONCE: Final = (16, 64)
_OURS: Final = "gateway and executor, journals on"
_FSYNCS: Final = 50
_PAGE: Final = 4096
_LITELLM: Final = f"LiteLLM {litellm_proxy.VERSION}, one worker"
_CONFIG: Final = """
mine = false
[[backend]]
kind = "openai"
base_url = "http://127.0.0.1:{backend}/v1"
models = ["{model}"]
concurrency = 128
price = 100
"""


@dataclass(slots=True)
class _Server:
    """One of the two, and how it fared."""

    port: int
    process: psutil.Process
    calls: int = 0
    failed: int = 0

    def ask(self, *, calls: int, at_once: int = 1, stream: bool) -> Load:
        """Make calls, and count them."""
        load = ask(self.port, MODEL, calls=calls, at_once=at_once, stream=stream)
        self.calls += calls
        self.failed += load.failed
        if not load.whole:
            raise BenchError(f"no call was answered at port {self.port}")
        return load

    @property
    def memory(self) -> float:
        """MiB."""
        return _mib(self.process)


def run() -> list[Row]:
    """Measure single calls, then many at once, then what both take of memory."""
    litellm = litellm_proxy.set_up()
    with (
        tempfile.TemporaryDirectory() as folder,
        chat_backend.running() as backend,
        _executor(Path(folder), backend) as (executor, address),
        _gateway(Path(folder), address) as ours,
        litellm_proxy.running(litellm, backend, MODEL) as (port, process),
    ):
        theirs = _Server(port, process)
        for server in (ours, theirs):
            for stream in (False, True):
                server.ask(calls=_WARM, at_once=4, stream=stream)
        return [
            *(_sequential(ours, theirs, backend, stream=stream) for stream in (False, True)),
            _first_piece(ours, theirs),
            *(_at_once(ours, theirs, at_once, stream=stream) for at_once in _AT_ONCE for stream in (False, True)),
            _memory(ours, theirs, executor),
            _failures(ours, theirs),
            _fsync(Path(folder)),
        ]


def _sequential(ours: _Server, theirs: _Server, backend: int, *, stream: bool) -> Row:
    def overhead(server: _Server) -> Samples:
        direct = statistics.median(ask(backend, MODEL, calls=_SEQUENTIAL, stream=stream).whole)
        return [one - direct for one in server.ask(calls=_SEQUENTIAL, stream=stream).whole]

    what = f"what a {'streamed' if stream else 'whole'} answer takes beyond the backend's own time"
    return _compared(what, "ms", lambda: overhead(ours), lambda: overhead(theirs), at_most(0.8))


def _first_piece(ours: _Server, theirs: _Server) -> Row:
    def first(server: _Server) -> Samples:
        return server.ask(calls=_SEQUENTIAL, stream=True).first

    return _compared("time to the first piece of a stream", "ms", lambda: first(ours), lambda: first(theirs), None)


def _at_once(ours: _Server, theirs: _Server, at_once: int, *, stream: bool) -> Row:
    def each(server: _Server) -> Samples:
        load = server.ask(calls=3 * at_once, at_once=at_once, stream=stream)
        return [load.took / len(load.whole)]

    what = f"{at_once} {'streams' if stream else 'whole answers'} at once, time for each"
    return _compared(what, "ms", lambda: each(ours), lambda: each(theirs), at_least(2))


def _compared(what: str, unit: str, ours: Side, theirs: Side, goal: Goal | None) -> Row:
    peer = Peer(_LITELLM, theirs, goal)
    [row] = compare_all(what, unit, ours, [peer], rounds=_ROUNDS, attempts=_ATTEMPTS, note=_OURS)
    return row


def _memory(ours: _Server, theirs: _Server, executor: psutil.Process) -> Row:
    mine, others = ours.memory, theirs.memory
    note = f"the gateway's process; the executor's, where the backends are, takes {_mib(executor):.0f} MiB"
    what = "resident memory after all this"
    return Row(what, "MiB", _one(mine), _LITELLM, _one(others), mine / others, at_most(0.8), note=note)


def _failures(ours: _Server, theirs: _Server) -> Row:
    shares = [100 * server.failed / server.calls for server in (ours, theirs)]
    note = f"of {ours.calls} and {theirs.calls} calls"
    return Row("calls that failed", "%", _one(shares[0]), _LITELLM, _one(shares[1]), goal=at_most(0), note=note)


def _fsync(folder: Path) -> Row:
    with (folder / "page").open("wb", buffering=0) as file:

        def write(page: bytes) -> None:
            file.write(page)
            os.fsync(file.fileno())

        return measure("one page made durable on this disk", "ms", lambda: timed(write, [bytes(_PAGE)] * _FSYNCS), None)


def _mib(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _one(value: float) -> Spread:
    return Spread(value, value, value)


@contextmanager
def _executor(folder: Path, backend: int) -> Iterator[tuple[psutil.Process, str]]:
    config = folder / "executor.toml"
    config.write_text(_CONFIG.format(backend=backend, model=MODEL))
    where = ("--data-dir", str(folder / "executor"), "--listen-address", "/ip4/127.0.0.1/tcp/0")
    with running(program("loremesh-executor"), "--config", str(config), "--json", *where) as node:
        address = node.wait_event("ready")["addresses"][0]
        yield psutil.Process(node.process.pid), address


@contextmanager
def _gateway(folder: Path, address: str) -> Iterator[_Server]:
    where = ("--data-dir", str(folder / "gateway"), "--bootstrap-nodes", address, "--listen", "127.0.0.1:0", "--json")
    with running(program("loremesh"), "gateway", *where) as node:
        port = int(node.wait_event("ready")["base_url"].split(":")[2].partition("/")[0])
        yield _Server(port, psutil.Process(node.process.pid))
