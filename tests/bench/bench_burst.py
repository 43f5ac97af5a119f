"""A thousand blocks published at once by one of five nodes, until all five have all of them on their disks.

All nodes are in one process. Beside it what py-libp2p's own nodes deliver of the same thousand blocks, every limit at
its default.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from durable import Fsyncs
from harness import BenchError, Row, Spread, at_least, at_most, spread
from loremesh.protocol.block import Block
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.storage.store import Store
from loremesh.testing.builders import ANN, small_genesis
from loremesh.testing.burst import Burst, publish_burst
from loremesh.testing.orchard import Orchard, name_of
from stories import paragraph_of

_BLOCKS = 1000
_NODES = 5
_ROUNDS = 3
_PATIENCE = 180.0


def run() -> list[Row]:
    """Measure bursts, ours and theirs."""
    genesis = small_genesis()
    orchard = Orchard(genesis)
    blocks, tip = [], orchard.root
    for number in range(_BLOCKS):
        [block] = orchard.grow(tip, 1, ANN, text=paragraph_of(100, number))
        blocks.append(block)
        tip = name_of(block)
    fsyncs, bursts = Fsyncs(), []
    for _ in range(_ROUNDS):
        fsyncs.sample()
        bursts.append(trio.run(_ours, genesis, blocks))
    delivered, took = _stock([encode(block) for block in blocks])
    what = f"{_BLOCKS} blocks of 100 words at once to {_NODES} nodes"
    stock = "py-libp2p's gossip, its defaults"
    return [
        fsyncs.noted(
            Row(
                f"{what}, until the last is durable everywhere",
                "s",
                spread([burst.seconds for burst in bursts], "s"),
                goal=at_most(10),
                rounds=_ROUNDS,
            )
        ),
        Row(
            f"{what}: delivered",
            "%",
            spread([100 * sum(burst.kept) / (_BLOCKS * _NODES) for burst in bursts], "%"),
            stock,
            Spread(delivered, delivered, delivered),
            goal=at_least(100),
            rounds=_ROUNDS,
            note=f"the last that {stock}, delivered came after {took:.2f} s",
        ),
    ]


async def _ours(genesis: Genesis, blocks: Sequence[Block]) -> Burst:
    async with AsyncExitStack() as stack:
        disks = []
        for _ in range(_NODES):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            disk = await stack.enter_async_context(Store.open(Path(folder)))
            await disk.save_genesis(story_id(genesis), encode(genesis))
            disks.append(disk)
        return await publish_burst(genesis, ANN, blocks, disks)


def _stock(messages: Sequence[bytes]) -> tuple[float, float]:
    """Give the percentage that came, and the seconds until the last of it had."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("burst_stock.py")],
        input="\n".join(message.hex() for message in messages),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"py-libp2p's nodes ended with exit code {done.returncode}")
    share, seconds = json.loads(done.stdout)
    return 100 * share, seconds
