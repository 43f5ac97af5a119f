"""`make bench`: run the benchmarks, print ratios and raw figures; a missed goal is shown as `short`, not a failure.

Usage: python tests/bench/run.py [--only NAME] [--full] [--json FILE]. Exit code 1 when a bench could not be run.
"""

import argparse
import dataclasses
import datetime as dt
import importlib
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Final, Protocol

import psutil

from harness import BenchError, Row, Spread

BENCHES: Final = (
    "codec",
    "validation",
    "builtin",
    "connect",
    "help",
    "canon",
    "demo",
    "idle",
    "storage",
    "chain",
    "sync",
    "burst",
    "receipts",
    "calls",
    "gossip",
    "floods",
    "gateway",
)


class Bench(Protocol):
    """What a module `bench_NAME` offers; some have a `run_full` too, which takes longer."""

    __doc__: str | None

    def run(self) -> list[Row]:
        """Measure everything the bench is about."""
        ...


def main() -> int:
    """Run the benches asked for."""
    parser = argparse.ArgumentParser(description="Measure loremesh against its peers.")
    parser.add_argument("--only", choices=BENCHES, help="run one bench")
    parser.add_argument("--full", action="store_true", help="the long version of the benches that have one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE as well")
    arguments = parser.parse_args()
    machine = _machine()
    _say(", ".join(f"{key} {value}" for key, value in machine.items()))
    results: dict[str, list[Row]] = {}
    broken = []
    for name in [arguments.only] if arguments.only else BENCHES:
        _say("")
        try:
            bench: Bench = importlib.import_module(f"bench_{name}")
            _say(f"{name}: {(bench.__doc__ or '').splitlines()[0]}")
            results[name] = getattr(bench, "run_full", bench.run)() if arguments.full else bench.run()
        except BenchError as error:
            _say(f"  not run: {error}")
            broken.append(name)
        except Exception:  # noqa: BLE001 - one bench that breaks does not take the others' figures with it
            traceback.print_exc()
            broken.append(name)
        else:
            for row in results[name]:
                _show(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(_report(machine, results), indent=2) + "\n")
    if broken:
        _say(f"\nnot run: {', '.join(broken)}")
    return 1 if broken else 0


def _machine() -> dict[str, str]:
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _show(row: Row) -> None:
    _say(f"  {row.what}")
    _say(f"    {'ours':40} {_figures(row.ours, row.unit)}")
    if row.peer_name is not None and row.peer is not None:
        _say(f"    {row.peer_name:40} {_figures(row.peer, row.unit)}")
    parts = []
    if row.ratio is not None:
        parts.append(f"ratio {row.ratio:.3g}")
    if row.goal is not None:
        unit = f" {row.unit}" if row.ratio is None else ""
        parts.append(f"goal {row.goal.sign} {row.goal.value:g}{unit}: {row.verdict}")
    parts.append(f"{row.rounds} round{'s' if row.rounds > 1 else ''}, {row.discarded} noisy")
    parts += [row.note] if row.note else []
    _say(f"    {'; '.join(parts)}")


def _figures(spread: Spread, unit: str) -> str:
    return "  ".join(f"{name} {value:8.2f}" for name, value in dataclasses.asdict(spread).items()) + f" {unit}"


def _report(machine: dict[str, str], results: dict[str, list[Row]]) -> dict[str, object]:
    rows = {
        name: [{**dataclasses.asdict(row), "verdict": row.verdict} for row in measured]
        for name, measured in results.items()
    }
    return {"machine": machine, "benches": rows}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
