"""A network of py-libp2p's own Kademlia, of which one node provides a key, and one that keeps no record looks it up.

Usage: python lookup_stock.py NODES. Each line on stdin is a number of lookups; the answer is their seconds as JSON.
Nothing of `loremesh.network` may be imported here: it mends py-libp2p for the whole process.
"""

import json
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.network.config import ConnectionConfig
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

_KEY: Final = "model/rare"
_PATIENCE: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Node:
    host: IHost
    dht: KadDHT

    async def connect(self, other: "_Node") -> None:
        """Dial a node, and have each in the other's table."""
        [address, *_] = other.host.get_addrs()
        await self.host.connect(info_from_p2p_addr(address))
        await self.dht.add_peer(other.host.get_id(), skip_server_mode_check=True)


@asynccontextmanager
async def _running(mode: DHTMode) -> AsyncIterator[_Node]:
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(
        key_pair=create_new_key_pair(secrets.token_bytes(32)),
        listen_addrs=listen,
        connection_config=ConnectionConfig(min_connections=0, low_watermark=0),
    )
    dht = KadDHT(host, mode)
    async with host.run(listen_addrs=listen), background_trio_service(dht):
        yield _Node(host, dht)


async def _main(size: int) -> None:
    async with AsyncExitStack() as stack:
        first, *others = [await stack.enter_async_context(_running(DHTMode.SERVER)) for _ in range(size)]
        for node in others:
            await node.connect(first)
            await first.dht.add_peer(node.host.get_id(), skip_server_mode_check=True)
        for node in others:
            await node.dht.refresh_routing_table()
        with trio.fail_after(_PATIENCE):
            while not await others[0].dht.find_providers(_KEY):
                await others[-1].dht.provide(_KEY)
                await trio.sleep(0.2)
        # It comes later than the record, which would be given to it too.
        asker = await stack.enter_async_context(_running(DHTMode.CLIENT))
        await asker.connect(first)
        _say("ready")
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            _say(json.dumps([await _look_up(asker) for _ in range(int(line))]))


async def _look_up(asker: _Node) -> float:
    asker.dht.provider_store.providers.clear()  # it keeps what it found
    before = time.perf_counter()
    found = await asker.dht.find_providers(_KEY)
    taken = time.perf_counter() - before
    assert found
    return taken


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    trio.run(_main, int(sys.argv[1]))
