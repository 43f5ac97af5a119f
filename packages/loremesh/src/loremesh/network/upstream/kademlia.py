"""Lookups: `libp2p.kad_dht.KadDHT`.

Symptoms: `protocol_prefix` is ignored, so every node would join the public IPFS network; an inbound lookup stream may
stay open without a word, and twelve of those stop a server answering anyone; more than ten provider records in ten
seconds from one peer are dropped without a word while `provide` says True; records are kept for as many keys as anyone
cares to invent; keys that look like hexadecimal are taken for bytes; answers name a peer several times.
"""

import hashlib
import logging
from typing import Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.peer.peerinfo import PeerInfo

from loremesh.network.upstream.streams import reset

_log = logging.getLogger("loremesh.network")
PROTOCOL: Final = TProtocol("/loremesh/kad/1.0.0")
_STREAM_LIFE: Final = 30.0
_STREAMS: Final = 64
_KEYS: Final = 10_000
_RECORDS_PER_WINDOW: Final = 100


def key_of(key: str) -> bytes:
    """Turn a key into what Kademlia keeps: the SHA-256 multihash of its text, so that a CID names it elsewhere."""
    return b"\x12\x20" + hashlib.sha256(key.encode()).digest()


class BoundedProviders(ProviderStore):
    """Keeps records for so many keys and no more; a new key then takes the place of the oldest."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep a record."""
        while len(self.providers) >= _KEYS and key not in self.providers:
            self.providers.pop(next(iter(self.providers)))
        super().add_provider(key, provider)


class BoundedKademlia(KadDHT):
    """Kademlia under our own protocol id; a server answers lookups, a client only asks."""

    def __init__(self, host: IHost, *, server: bool) -> None:
        for module in (common, kad_dht, peer_routing, provider_store, value_store):
            module.PROTOCOL_ID = PROTOCOL  # type: ignore[attr-defined]  # process-wide: upstream asks its constant
        super().__init__(host, DHTMode.SERVER if server else DHTMode.CLIENT, strict_validation=True)
        self.provider_store = BoundedProviders(host, self.peer_routing)
        self._inbound_limiter = trio.CapacityLimiter(_STREAMS)
        self._provider_rate_max = _RECORDS_PER_WINDOW

    async def handle_stream(self, stream: INetStream) -> None:
        """Answer lookups on one stream, for a while."""
        with trio.move_on_after(_STREAM_LIFE):
            await super().handle_stream(stream)
            return
        await reset(stream)
