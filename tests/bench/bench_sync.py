"""A long chain: fetched whole by a new node from another over loopback, durably, and taken in again at a restart.

Beside the slower of two bare loops over the same blocks: decode, check and apply without any I/O; and SQLite with
synchronous=FULL in batches of 100. The node that fetches runs alone in a process of its own.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import apsw
import psutil
import trio

from harness import Row, Spread, at_least, at_most, spread
from loremesh.primitives import Hash
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import new_store, on_block
from loremesh.protocol.genesis import story_id
from loremesh.protocol.validation import good_signatures
from loremesh.storage.store import Store
from loremesh.storage.writes import StoredBlock
from loremesh.testing.builders import small_genesis
from nodes import validator
from stories import LATER, long_chain

_BLOCKS, _FULL = 20_000, 100_000
_SAMPLE: Final = 3000
_BATCH: Final = 100
_RESTARTS: Final = 3


def run() -> list[Row]:
    """Measure with a chain that takes little time to make."""
    return _measure(_BLOCKS)


def run_full() -> list[Row]:
    """Measure with a chain as long as the goals speak of."""
    return _measure(_FULL)


def _measure(blocks: int) -> list[Row]:
    """Measure one cold sync, between two rounds of the bare loops, then restarts of the node that made it."""
    with tempfile.TemporaryDirectory() as folder:
        sample = trio.run(_keep, Path(folder, "kept"), blocks)
        with validator(Path(folder, "kept")) as (_, address, _):
            before = _bare(sample, Path(folder))
            cold = Path(folder, "cold")
            seconds, peak = _fetch(cold, address, blocks)
            after = _bare(sample, Path(folder))
        restarts = [_restart(cold) for _ in range(_RESTARTS)]
    loops = {name: statistics.mean((before[name], after[name])) for name in before}
    slower = max(loops, key=lambda name: loops[name])
    shown = ", ".join(f"{name} {taken * 1e6:.0f} µs" for name, taken in loops.items())
    story = f"{blocks} blocks of 17 words"
    return [
        Row(
            f"cold sync of {story}, each",
            "µs",
            _once(seconds * 1e6),
            f"bare loop: {slower}",
            _once(loops[slower] * 1e6),
            loops[slower] / seconds,
            at_least(0.35),
            note=f"{1 / seconds:.0f} blocks/s; {shown}",
        ),
        Row("most memory of the node that fetched them", "MiB", _once(peak), goal=at_most(300)),
        Row(
            f"restart with {story}: from the start of the process to `ready`",
            "s",
            spread([one.seconds for one in restarts], "s"),
            goal=at_most(2),
            rounds=_RESTARTS,
            note=f"{statistics.median(one.busy for one in restarts):.2f} s of processor time",
        ),
        Row("most memory of the node that restarted", "MiB", _once(max(one.peak for one in restarts))),
    ]


async def _keep(directory: Path, blocks: int) -> list[StoredBlock]:
    """Put a chain into a new data directory; give its beginning."""
    genesis = small_genesis()
    sample: list[StoredBlock] = []
    made = long_chain(genesis, blocks)
    async with Store.open(directory) as store:
        await store.save_genesis(story_id(genesis), encode(genesis))
        while several := [_stored(block) for block in islice(made, 1000)]:
            await store.save_blocks(several)
            sample += several[: _SAMPLE - len(sample)]
    return sample


def _stored(block: Block) -> StoredBlock:
    return StoredBlock(header_hash(block.header), block.header.parent, block.header.height, encode(block))


def _fetch(directory: Path, address: str, blocks: int) -> tuple[float, float]:
    """Let a new node fetch the chain; give seconds per block, from its first batch to its last, and its peak MiB."""
    with validator(directory, "--bootstrap-nodes", address) as (node, _, _):
        heads = [(came, event["height"]) for came, event in node.seen if event["event"] == "head"]
        while not heads or heads[-1][1] < blocks:
            came, event = node.next_event()
            if event["event"] == "head":
                heads.append((came, event["height"]))
        peak = _peak(node.process.pid)
    (began, first), (ended, last) = heads[0], heads[-1]
    return (ended - began) / (last - first), peak


@dataclass(frozen=True, slots=True)
class _Restart:
    seconds: float
    busy: float
    """Seconds of processor time until then."""
    peak: float
    """MiB."""


def _restart(directory: Path) -> _Restart:
    with validator(directory) as (node, _, _):
        used = psutil.Process(node.process.pid).cpu_times()
        [ready] = [came for came, event in node.seen if event["event"] == "ready"]
        return _Restart(ready - node.began, used.user + used.system, _peak(node.process.pid))


def _peak(pid: int) -> float:
    """Read how many MiB a process has ever had in memory at once."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    [kib] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(kib) / 1024


def _bare(sample: list[StoredBlock], folder: Path) -> dict[str, float]:
    """Time both bare loops; seconds per block."""
    return {"validate": _validate(sample), "store": _store(sample, folder)}


def _validate(sample: list[StoredBlock]) -> float:
    store = new_store(small_genesis(), LATER)
    good_signatures.clear()
    began = time.perf_counter()
    for stored in sample:
        store = on_block(store, decode(Block, stored.data))
    taken = time.perf_counter() - began
    assert store.head == sample[-1].hash
    return taken / len(sample)


def _store(sample: list[StoredBlock], folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        connection = apsw.Connection(f"{place}/bare.sqlite")
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "FULL")
        connection.execute("create table block (hash blob primary key, data blob not null)")
        rows: list[tuple[Hash, bytes]] = [(stored.hash, stored.data) for stored in sample]
        began = time.perf_counter()
        for start in range(0, len(rows), _BATCH):
            with connection:
                connection.executemany("insert into block values (?, ?)", rows[start : start + _BATCH])
        taken = time.perf_counter() - began
        connection.close()
    return taken / len(sample)


def _once(value: float) -> Spread:
    return Spread(value, value, value)
