"""A peer that breaks every rule there is, and what an honest node makes of it.

Without arguments it starts an honest node of its own, lies to it in every way, and shows what the node refused and why.
With `--bootstrap-nodes` it lies to a node of yours; that node's own `rejected` and `banned` events tell the rest.

Run it: python examples/malicious_miner.py [--bootstrap-nodes MULTIADDR]
"""

import argparse
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from loremesh.config import Program, load_settings
from loremesh.primitives import Millis
from loremesh.protocol.genesis import Genesis, Parameters, genesis_to_toml
from loremesh.roles.node import VALIDATOR, Node, run_node
from loremesh.services.happenings import Banned, Happening, Rejected
from loremesh.testing.malicious import attack, say_text

PARAMETERS = Parameters(
    spacing=Millis(500), min_spacing=Millis(200), solo_after=Millis(1500), initial_work=2**12, easiest_work=2**8
)


@dataclass
class Ledger:
    """What the honest node has told of."""

    refused: Counter[str] = field(default_factory=Counter)
    banned: int = 0

    def tell(self, happening: Happening) -> None:
        """Take a happening of the node."""
        match happening:
            case Rejected(what, fault, _, _):
                self.refused[f"{what}: {fault}"] += 1
            case Banned():
                self.banned += 1
            case _:
                pass


def say(event: dict[str, object]) -> None:
    """Leave the lies themselves out; their refusals are shown at the end."""
    if event["event"] != "lie":
        say_text(event)


async def be_lied_to(directory: Path) -> None:
    """Start an honest node, lie to it, and show what it refused."""
    genesis = Genesis(
        title="The Honest Lamp",
        premise="A keeper writes down only what she has seen, and strangers tell her what she has not.",
        language="en",
        # The liars' branch needs some past to stand in.
        time=Millis(time.time_ns() // 1_000_000 - 60_000),
        parameters=PARAMETERS,
    )
    (directory / "genesis.toml").write_text(genesis_to_toml(genesis), encoding="utf-8")
    flags = {
        "data_dir": str(directory / "node"),
        "genesis": str(directory / "genesis.toml"),
        "listen_address": "/ip4/127.0.0.1/tcp/0",
        "log_level": "error",
    }
    ledger = Ledger()

    async def run(task_status: trio.TaskStatus[Node]) -> None:
        settings = load_settings(Program.VALIDATOR, flags, {})
        await run_node(settings, VALIDATOR, ledger.tell, task_status=task_status)

    async with trio.open_nursery() as nursery:
        node: Node = await nursery.start(run)
        await attack(node.network.addresses()[0], say)
        print("what the honest node refused:")
        for reason, count in sorted(ledger.refused.items()):
            print(f"  {count:3} x {reason}")
        print(f"{ledger.refused.total()} lies refused, {ledger.banned} names shut out; the node goes on")
        nursery.cancel_scope.cancel()


def main() -> None:
    """Lie to a node of yours, or to one that is gone afterwards."""
    parser = argparse.ArgumentParser(description="Break every rule towards one node, and see it refused.")
    parser.add_argument("--bootstrap-nodes", metavar="MULTIADDR", help="the node, ending in /p2p/<peer id>")
    address = parser.parse_args().bootstrap_nodes
    if address is not None:
        trio.run(partial(attack, address, say_text))
        return
    with tempfile.TemporaryDirectory() as directory:
        trio.run(be_lied_to, Path(directory))


if __name__ == "__main__":
    main()
