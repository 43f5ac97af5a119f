"""Nodes of ours, and hosts of stock py-libp2p that play strangers, on loopback."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.testing.loopback import make_node

# After our own, which sets what upstream reads when it is imported.
from libp2p import new_host  # isort: skip
from libp2p.crypto.keys import KeyPair  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair  # isort: skip
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE  # isort: skip
from libp2p.security.noise.transport import Transport as Noise  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]


@pytest.fixture
async def start_node(nursery: trio.Nursery) -> StartNode:
    """Start a node of ours, which runs until the test ends."""

    async def start(settings: NetworkSettings | None = None, secret: bytes | None = None) -> Behaviour:
        node = make_node(settings, secret)
        await nursery.start(node.run)
        return node

    return start


@pytest.fixture
async def start_stock(nursery: trio.Nursery) -> AsyncIterator[StartStock]:
    """Start a host of stock py-libp2p that only dials; keyword arguments go to upstream's `new_host`."""
    stopping = trio.Event()
    stopped: list[trio.Event] = []

    async def start(key_pair: KeyPair | None = None, **arguments: Any) -> Any:
        key_pair = key_pair or create_new_key_pair(secrets.token_bytes(32))
        arguments.setdefault("sec_opt", {NOISE: Noise(key_pair, noise_privkey=new_x25519_key_pair().private_key)})
        host = new_host(key_pair=key_pair, **arguments)
        vars(host.get_network())["auto_connector"].maybe_connect = trio.lowlevel.checkpoint
        done = trio.Event()
        stopped.append(done)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            # Behind a shield: stock code that is cancelled leaves its sockets open.
            with trio.CancelScope(shield=True) as shield:
                async with host.run(listen_addrs=[]):
                    task_status.started()
                    await stopping.wait()
                    with trio.move_on_after(3):
                        await host.close()
                    shield.cancel()
            done.set()

        await nursery.start(run)
        return host

    yield start
    stopping.set()
    for done in stopped:
        await done.wait()
