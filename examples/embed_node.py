"""Embed the library: two whole nodes in one process, from their parts, writing a story until it has three blocks.

Each node is a disk, a network and services put together by `assemble`; `mine` joins the race. Leave any part out: a
node without `mine` reads along, a node without a genesis is an anchor.

Run it: python examples/embed_node.py
"""

import secrets
import tempfile
import time
from pathlib import Path

import trio

from loremesh.backends.builtin import BuiltinBackend
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Millis
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import Genesis, Parameters, story_id
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.roles.assembly import Services, assemble
from loremesh.roles.mining import mine
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.happenings import Happening, Head, PeerChanged
from loremesh.storage.store import Store

HEIGHT = 3


async def run_node(
    directory: Path, genesis: Genesis, bootstrap: tuple[str, ...], *, task_status: trio.TaskStatus[Services]
) -> None:
    """Run one node until cancelled; it keeps its story in `directory`."""
    identity = Identity.generate(secrets.token_bytes(32))

    def tell(happening: Happening) -> None:
        match happening:
            case PeerChanged(peer, change):
                print(f"{directory.name}: peer …{peer_id_text(peer)[-8:]} {change}")
            case Head(height, name, _, _):
                print(f"{directory.name}: block {height} ({name.hex()[:8]})")
            case _:
                pass

    async with Store.open(directory) as disk, running_network(identity, NetworkSettings()) as network:
        await disk.save_genesis(story_id(genesis), encode(genesis))
        services = await assemble(
            role="executor",
            identity=identity,
            network=network,
            disk=disk,
            genesis=genesis,
            clock=wall_clock,
            tell=tell,
            bootstrap=bootstrap,
        )
        assert services.story is not None  # noqa: S101 - it was given a genesis
        async with trio.open_nursery() as nursery:
            await nursery.start(services.run)
            backend = BuiltinBackend(latency=(0.0, 0.3))
            nursery.start_soon(mine, services, services.story, backend)
            task_status.started(services)


async def run(directory: Path) -> None:
    """Start two nodes, wait for the story, and compare what they have."""
    genesis = Genesis(
        title="Two Lamps",
        premise="Two keepers on two rocks write one logbook by signalling to each other at night.",
        language="en",
        time=Millis(time.time_ns() // 1_000_000),
        parameters=Parameters(
            spacing=Millis(500), min_spacing=Millis(200), solo_after=Millis(1500), initial_work=2**12, easiest_work=2**8
        ),
    )
    async with trio.open_nursery() as nursery:
        ann: Services = await nursery.start(run_node, directory / "ann", genesis, ())
        bob: Services = await nursery.start(run_node, directory / "bob", genesis, ann.network.addresses())
        assert ann.story is not None  # noqa: S101 - it was given a genesis
        assert bob.story is not None  # noqa: S101 - it was given a genesis
        while bob.story.chain.store.tip.link.height < HEIGHT:
            await bob.story.chain.head.wait_change()
        store = bob.story.chain.store
        names = [store.canon[height] for height in range(1, HEIGHT + 1)]
        writers = {peer_id_text(ann.identity.peer_id): "ann", peer_id_text(bob.identity.peer_id): "bob"}
        nursery.cancel_scope.cancel()
    for name in names:
        link = store.entries[name].link
        assert link.producer is not None  # noqa: S101 - only a genesis has none
        print(f"{link.height} {name.hex()[:8]} won by {writers[peer_id_text(link.producer)]}")


def main() -> None:
    """Run in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory))


if __name__ == "__main__":
    main()
