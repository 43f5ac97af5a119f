"""A node that does not mine: what it takes of a core and of memory over a minute, with a story and a peer."""

import statistics
import tempfile
import time
from pathlib import Path

import psutil

from harness import Row, Spread, at_most
from nodes import keep_story, validator

_BLOCKS = 100
_SETTLE = 10.0
_SECONDS = 60.0


def run() -> list[Row]:
    """Measure both of two validators that keep one story, the one having fetched it from the other."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        keep_story(Path(folder), _BLOCKS)
        with (
            validator(Path(folder)) as (first, address, story),
            validator(Path(other), "--bootstrap-nodes", address) as (second, _, same_story),
        ):
            assert same_story == story
            processes = [psutil.Process(node.process.pid) for node in (first, second)]
            time.sleep(_SETTLE)
            before = [_busy(process) for process in processes]
            start = time.perf_counter()
            time.sleep(_SECONDS)
            seconds = time.perf_counter() - start
            shares = [100 * (_busy(process) - was) / seconds for process, was in zip(processes, before, strict=True)]
            memory = [process.memory_info().rss / 2**20 for process in processes]
    note = f"both of two validators with {_BLOCKS} blocks, over {seconds:.0f} s"
    return [
        Row("processor time of a node", "%", _spread(shares), goal=at_most(1), note=f"{note}; 100 % is one core"),
        Row("resident memory of a node", "MiB", _spread(memory), goal=at_most(150), note=note),
    ]


def _busy(process: psutil.Process) -> float:
    times = process.cpu_times()
    seconds: float = times.user + times.system + times.children_user + times.children_system
    return seconds


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), max(values), max(values))
