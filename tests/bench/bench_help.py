"""How long `--help` takes from a cold start: a new process each time, against a Python that does nothing."""

import subprocess
import sys
import time
from pathlib import Path

from harness import BenchError, Row, Samples, Side, at_most, compare, measure

_PROGRAMS = ("loremesh", "loremesh-validator", "loremesh-executor")
_STARTS = 3
_ROUNDS = 7


def run() -> list[Row]:
    """Measure each program against its absolute goal, and the first beside an empty Python."""
    folder = Path(sys.executable).parent
    for program in _PROGRAMS:
        if not (folder / program).exists():
            raise BenchError(f"{program} is not installed beside {Path(sys.executable).name}; run `make setup`")
    rows = [
        measure(f"{program} --help", "ms", _starts([str(folder / program), "--help"]), at_most(250), rounds=_ROUNDS)
        for program in _PROGRAMS
    ]
    empty = _starts([sys.executable, "-c", "pass"])
    rows.append(
        compare(
            "loremesh --help",
            "ms",
            _starts([str(folder / "loremesh"), "--help"]),
            against="python -c pass",
            peer=empty,
            goal=None,
            rounds=_ROUNDS,
        )
    )
    return rows


def _starts(command: list[str]) -> Side:
    def start() -> Samples:
        taken = []
        for _ in range(_STARTS):
            before = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)
            taken.append(time.perf_counter() - before)
        return taken

    return start
