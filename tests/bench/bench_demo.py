"""The demo's first block: how long after the last of its five nodes is ready, by the nodes' own clocks."""

import datetime as dt

from harness import Row, at_most, spread
from nodes import program, running

_RUNS = 3
_EXECUTORS = 4


def run() -> list[Row]:
    """Start the demo several times, each until its first block."""
    waits = [_first_block() for _ in range(_RUNS)]
    return [
        Row(
            f"first block of a demo with {_EXECUTORS} executors, after the last `ready`",
            "s",
            spread(waits, "s"),
            goal=at_most(5),
            rounds=_RUNS,
        )
    ]


def _first_block() -> float:
    ready: list[dt.datetime] = []
    first: dt.datetime | None = None
    with running(program("loremesh"), "demo", "--json", "--blocks", "100", "--executors", str(_EXECUTORS)) as demo:
        while first is None or len(ready) < _EXECUTORS + 1:
            _, event = demo.next_event()
            at = dt.datetime.fromisoformat(event["at"])
            if event["event"] == "ready":
                ready.append(at)
            elif event["event"] == "head" and event["height"] == 1:
                first = min(first or at, at)
    return max(0.0, (first - max(ready)).total_seconds())
