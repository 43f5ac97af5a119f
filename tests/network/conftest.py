"""Nodes of ours, and hosts of stock py-libp2p that play strangers, on loopback."""

import secrets
from collections.abc import Awaitable, Callable
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
from libp2p.network.config import ConnectionConfig  # isort: skip
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE  # isort: skip
from libp2p.security.noise.transport import Transport as Noise  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]


@pytest.fixture
async def start_node(nursery: trio.Nursery) -> StartNode:
    """Start a node of ours, which runs until the test ends."""

    async def start(settings: NetworkSettings | None = None, secret: bytes | None = None) -> Behaviour:
        node = make_node(settings, secret)
        await nursery.start(node.run)
        return node

    return start


@pytest.fixture
async def start_stock(nursery: trio.Nursery) -> Callable[..., Awaitable[Any]]:
    """Start a host of stock py-libp2p that only dials; keyword arguments go to upstream's `new_host`."""

    async def start(key_pair: KeyPair | None = None, **arguments: Any) -> Any:
        key_pair = key_pair or create_new_key_pair(secrets.token_bytes(32))
        arguments.setdefault("sec_opt", {NOISE: Noise(key_pair, noise_privkey=new_x25519_key_pair().private_key)})
        quiet = ConnectionConfig(min_connections=0, low_watermark=0)
        host = new_host(key_pair=key_pair, connection_config=quiet, **arguments)

        async def run(task_status: trio.TaskStatus[None]) -> None:
            async with host.run(listen_addrs=[]):
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True), trio.move_on_after(3):
                        await host.close()

        await nursery.start(run)
        return host

    return start
