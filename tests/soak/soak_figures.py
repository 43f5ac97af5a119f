"""What a soak measures of its nodes, and what it makes of it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final

import trio

from loremesh.primitives import MIB

TEN_MINUTES: Final = 600.0
_PATIENCE: Final = 5.0
_SPANS: Final = 60
"""Into which the samples of a trend are put together, at most."""
_NAMES: Final = {
    "process_resident_memory_bytes": "memory",
    "process_open_fds": "descriptors",
    "loremesh_tasks": "tasks",
    "loremesh_threads": "threads",
    "loremesh_connected_peers": "connected",
    "loremesh_head_height_blocks": "height",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One node at one moment.

    Attributes:
        at: Seconds since the soak began.
        life: Which life of the node this is of, from 0.
        resting: Whether nothing else was going on: no client, no stranger, everybody connected.
        memory: Resident, in bytes.
    """

    at: float
    life: int
    resting: bool
    memory: float
    descriptors: float
    tasks: float
    threads: float
    connected: float
    height: float


async def scrape(address: str, at: float, life: int) -> Sample | None:
    """Ask a node for its figures as Prometheus would; None: it did not answer."""
    host, _, port = address.rpartition(":")
    said = b""
    with trio.move_on_after(_PATIENCE) as patience:
        try:
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(f"GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                async for piece in stream:
                    said += piece
        except (OSError, trio.BrokenResourceError):
            return None  # it is being killed or started
    if patience.cancelled_caught:
        return None
    lines = [line.partition(" ") for line in said.decode().splitlines()]
    values = {_NAMES[name]: float(value) for name, _, value in lines if name in _NAMES}
    return Sample(at, life, resting=False, **values) if len(values) == len(_NAMES) else None


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure of a node's longest life went after its warm-up."""

    first: float
    last: float
    most: float
    slope: float
    """Per 10 minutes: the median of the slopes between the medians of spans, after Theil (1950) and Sen (1968)."""


def trend(samples: Iterable[tuple[float, float]]) -> Trend | None:
    """Give the trend of a figure; None of a single sample.

    Args:
        samples: Seconds and value, in order.
    """
    points = list(samples)
    if len(points) < 2:
        return None
    values = [value for _, value in points]
    return Trend(values[0], values[-1], max(values), _slope(points) * TEN_MINUTES)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Give the slope that peaks do not change, be they high or at one end: while a stranger lies, say."""
    spans = min(_SPANS, len(points))
    cuts = [number * len(points) // spans for number in range(spans + 1)]
    groups = [list(zip(*points[start:end], strict=True)) for start, end in pairwise(cuts)]
    middles = [(statistics.median(times), statistics.median(values)) for times, values in groups]
    slopes = [
        (value - before) / (time - earlier)
        for (earlier, before), (time, value) in combinations(middles, 2)
        if time > earlier  # a sample at rest is there twice
    ]
    slope: float = statistics.median(slopes) if slopes else 0.0
    return slope


def longest_life(samples: Sequence[Sample]) -> list[Sample]:
    """Give the samples of the life that lasted longest."""
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        lives.setdefault(sample.life, []).append(sample)
    return max(lives.values(), key=lambda life: life[-1].at - life[0].at, default=[])


def trends(samples: Sequence[Sample], since: float) -> dict[str, Trend | None]:
    """Give the trends of one node's longest life.

    Args:
        samples: Of the node.
        since: Seconds of warm-up.

    Returns:
        `memory` in MiB of all samples; `descriptors`, `tasks`, `threads` of those that were taken at rest.
    """
    warm = [sample for sample in longest_life(samples) if sample.at >= since]
    resting = [sample for sample in warm if sample.resting]
    found = {"memory": trend((one.at, one.memory / MIB) for one in warm)}
    for name in ("descriptors", "tasks", "threads"):
        found[name] = trend((one.at, getattr(one, name)) for one in resting)
    return found
