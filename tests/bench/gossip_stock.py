"""Nodes of py-libp2p's own parts for `gossip_graph`, with the limits lifted that would lose or delay our blocks.

Nothing of `loremesh.network` may be imported here: it mends py-libp2p for the whole process.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.pubsub import pubsub
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import DefaultMaxMessageSize, RpcQueue
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from gossip_graph import TOPIC, Check, Heard, Node, main
from loremesh.errors import ProtocolError
from loremesh.primitives import PeerId

_MANY = 4096
_HEARTBEAT = 1


@dataclass(frozen=True, slots=True)
class Stock:
    """One of py-libp2p's nodes."""

    host: IHost
    pubsub: Pubsub

    def address(self) -> str:
        """Tell where it can be dialled."""
        return str(self.host.get_addrs()[0])

    async def connect(self, address: str) -> None:
        """Dial another node; not by `host.connect`, which then waits for a quarter of a second."""
        where = Multiaddr(address)
        swarm = self.host.get_network()
        assert isinstance(swarm, Swarm)
        await swarm.dial_addr(where, ID.from_string(str(where.value_for_protocol("p2p"))))

    async def publish(self, data: bytes) -> None:
        """Send a block to everybody."""
        await self.pubsub.publish(TOPIC, data)


@asynccontextmanager
async def start(secret: bytes, check: Check, heard: Heard) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts."""
    key_pair = create_new_key_pair(secret)
    listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
    host = new_host(
        key_pair=key_pair,
        listen_addrs=listen,
        sec_opt={NOISE: Noise(key_pair, noise_privkey=new_x25519_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        connection_config=ConnectionConfig(max_connections=_MANY, min_connections=0, low_watermark=0),
    )
    router = GossipSub(
        [PROTOCOL_ID_V11],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=_HEARTBEAT,
        adaptive_gossip_enabled=False,
        eclipse_protection_enabled=False,
        spam_protection_enabled=False,
    )
    talk = Pubsub(host, router, strict_signing=True)

    def is_good(_forwarder: ID, message: rpc_pb2.Message) -> bool:
        try:
            check(PeerId(message.from_id), message.data)
        except ProtocolError:
            return False
        return True

    async with (
        host.run(listen_addrs=listen),
        background_trio_service(talk),
        background_trio_service(router),
        trio.open_nursery() as nursery,
    ):
        await talk.wait_until_ready()
        talk.set_topic_validator(TOPIC, is_good, is_async_validator=False)
        subscription = await talk.subscribe(TOPIC)

        async def read() -> None:
            while True:
                message = await subscription.get()
                if message.from_id != host.get_id().to_bytes():
                    heard(message.data)

        nursery.start_soon(read)
        yield Stock(host, talk)
        nursery.cancel_scope.cancel()


def lift_limits() -> None:
    """Let more than 32 messages wait for a reader, and for a peer."""
    pubsub.SUBSCRIPTION_CHANNEL_SIZE = _MANY
    RpcQueue.__init__.__defaults__ = (_MANY, DefaultMaxMessageSize)


if __name__ == "__main__":
    lift_limits()
    main(start)
