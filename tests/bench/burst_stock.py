"""A burst through py-libp2p's own nodes, as they come: every limit at its default.

One node publishes every message of stdin (one line of hexadecimal digits each) at once; all five listen. Prints the
share of what was due that arrived, and after how many seconds the last message did. Nothing of `loremesh.network` may
be imported here: it mends py-libp2p for the whole process.
"""

import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import combinations

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.pubsub.gossipsub import PROTOCOL_ID, PROTOCOL_ID_V11, PROTOCOL_ID_V12, GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

_NODES = 5
_TOPIC = "burst"
_MESHES_FORM = 3.0
_QUIET = 3.0
"""Seconds without a message after which no more are waited for: by then nothing repairs what was lost."""
_LONGEST = 60.0


@asynccontextmanager
async def _node() -> AsyncIterator[tuple[IHost, Pubsub]]:
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(key_pair=create_new_key_pair(), listen_addrs=listen)
    # The degrees have no defaults; these are those of the specification.
    router = GossipSub([PROTOCOL_ID_V12, PROTOCOL_ID_V11, PROTOCOL_ID], degree=6, degree_low=4, degree_high=12)
    talk = Pubsub(host, router)
    async with host.run(listen_addrs=listen), background_trio_service(talk), background_trio_service(router):
        await talk.wait_until_ready()
        yield host, talk


async def _burst(messages: list[bytes]) -> tuple[int, float]:
    """Publish `messages`; give how many arrived, all nodes together, and when the last of them did."""
    arrived: list[float] = []

    async def listen(talk: Pubsub) -> None:
        subscription = await talk.subscribe(_TOPIC)
        while True:
            await subscription.get()
            arrived.append(time.perf_counter())

    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(_node()) for _ in range(_NODES)]
        nursery = await stack.enter_async_context(trio.open_nursery())
        for _, talk in nodes:
            nursery.start_soon(listen, talk)
        for (one, _), (other, _) in combinations(nodes, 2):
            await one.connect(info_from_p2p_addr(other.get_addrs()[0]))
        await trio.sleep(_MESHES_FORM)
        began = time.perf_counter()
        for message in messages:
            await nodes[0][1].publish(_TOPIC, message)
        with trio.move_on_after(_LONGEST):
            heard = -1
            while len(arrived) > heard:
                heard = len(arrived)
                await trio.sleep(_QUIET)
        nursery.cancel_scope.cancel()
    return len(arrived), max(arrived, default=began) - began


def main() -> None:
    """Do one burst and tell of it."""
    logging.disable()  # it warns of every message that it drops
    messages = [bytes.fromhex(line) for line in sys.stdin]
    count, seconds = trio.run(_burst, messages)
    sys.stdout.write(json.dumps([count / (len(messages) * _NODES), seconds]))


if __name__ == "__main__":
    main()
