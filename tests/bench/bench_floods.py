"""Floods against a validator: honest calls with the flood and without it in turn, and the validator's memory."""

import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import trio

from harness import BenchError, Row, at_most, spread
from loremesh.primitives import MIB, Millis
from loremesh.protocol.genesis import genesis_to_toml
from loremesh.testing.builders import EASY, small_genesis
from loremesh.testing.floods import SIZES, Watch, flood, watched
from nodes import validator

_FLOODER = Path(__file__).parents[1] / "hostile" / "flooder.py"
_LOOK_AGAIN = 30.0


def run() -> list[Row]:
    """Measure floods of trimmed size."""
    return [_measure(kind, trimmed, 0.0) for kind, (trimmed, _) in SIZES.items()]


def run_full() -> list[Row]:
    """Measure floods of full size, and memory again 30 s after each."""
    return [_measure(kind, full, _LOOK_AGAIN) for kind, (_, full) in SIZES.items()]


def _measure(kind: str, count: int, look_again: float) -> Row:
    if not Path("/proc/self/schedstat").exists():
        raise BenchError("this reads a process's memory and work in /proc, which only Linux has")
    with tempfile.TemporaryDirectory() as folder:
        genesis = Path(folder) / "genesis.toml"
        past = Millis(time.time_ns() // 1_000_000 - 60_000)
        # Work that is none: a flood of blocks costs its sender nothing but signatures.
        genesis.write_text(genesis_to_toml(replace(small_genesis(EASY), time=past)), encoding="utf-8")
        with validator(Path(folder) / "data", "--genesis", str(genesis)) as (node, address, _):
            watch = trio.run(_flood, node.process, address, look_again, kind, address, str(count), str(genesis))
    taken = [call.took for call in watch.flooded]
    notes = (
        f"ratio of p99, of p50 {watch.ratio(50):.2f}",
        f"of the node's work meanwhile {watch.ratio(99, of=lambda call: call.work):.2f}",
        f"{len(taken)} calls",
        f"memory {watch.base / MIB:.0f} MB, +{(watch.peak - watch.base) / MIB:.1f} at most",
        f"{watch.left / watch.base:.2f} x {f'{look_again:.0f} s later' if look_again else 'after'}",
    )
    return Row(
        f"calls under {kind.replace('-', ' ')}, {count:,}{' MiB' if kind == 'unread' else ''}",
        "ms",
        spread(taken, "ms"),
        "without",
        spread([call.took for call in watch.quiet], "ms"),
        ratio=watch.ratio(99),
        goal=at_most(2),
        note=", ".join(notes),
    )


async def _flood(process: "subprocess.Popen[str]", address: str, look_again: float, *arguments: str) -> Watch:
    async with watched(process.pid, address) as watch:
        await flood(watch, _FLOODER, *arguments, look_again=look_again)
    return watch
