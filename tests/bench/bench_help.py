"""How long `--help` takes from a cold start: a new process each time, against a Python that does nothing."""

import sys

from harness import Row, Side, at_most, compare, measure
from nodes import program, run_timed

_PROGRAMS = ("loremesh", "loremesh-validator", "loremesh-executor")
_STARTS = 3
_ROUNDS = 7


def run() -> list[Row]:
    """Measure each program against its absolute goal, and the first beside an empty Python."""
    rows = [
        measure(f"{name} --help", "ms", _starts([program(name), "--help"]), at_most(250), rounds=_ROUNDS)
        for name in _PROGRAMS
    ]
    rows.append(
        compare(
            "loremesh --help",
            "ms",
            _starts([program("loremesh"), "--help"]),
            against="python -c pass",
            peer=_starts([sys.executable, "-c", "pass"]),
            goal=None,
            rounds=_ROUNDS,
        )
    )
    return rows


def _starts(command: list[str]) -> Side:
    return lambda: [run_timed(command)[0] for _ in range(_STARTS)]
