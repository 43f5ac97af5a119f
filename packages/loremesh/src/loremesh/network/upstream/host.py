"""Identify: `libp2p.host.basic_host.BasicHost._schedule_identify`, and `PingService`.

Symptoms: identify runs as a trio system task, which outlives the host and whose failure ends the process with
TrioInternalError; nothing says when it is done; a peer may have a megabyte of addresses and protocols kept, and
identify/push lets it tell them again and again; `PingService.ping` measures whole milliseconds and answers 0, and of
every peer that ever sent a ping something is kept.
"""

import secrets
import time
from contextlib import suppress
from typing import Final

import trio
from libp2p.crypto.secp256k1 import create_new_key_pair
from libp2p.host.basic_host import BasicHost, _IdentifyNotifee
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PING_LENGTH, PingService
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from loremesh.errors import Unreachable
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream import closing, reading
from loremesh.network.upstream.gate import Gate
from loremesh.network.upstream.negotiating import EagerClient
from loremesh.network.upstream.peerstore import BoundedPeerStore
from loremesh.network.upstream.streams import StreamPipe, contain
from loremesh.network.upstream.swarm import BoundedSwarm

PING_PROTOCOL: Final = str(PING)
_KEPT: Final = 64
_KEPT_FOR: Final = 2 * 60 * 60


class QuietHost(BasicHost):
    """A host on a bounded swarm, that identifies a peer when told to, once, and advertises what it is told."""

    def __init__(self, secret: bytes, gate: Gate, settings: NetworkSettings) -> None:
        reading.install()
        closing.install()
        key_pair = create_new_key_pair(secret)
        peer_id = ID.from_pubkey(key_pair.public_key)
        peerstore = BoundedPeerStore(peer_id, lambda peer: bool(self.swarm.get_connections(peer)))
        peerstore.add_key_pair(peer_id, key_pair)
        self.swarm = BoundedSwarm(peer_id, peerstore, gate, settings)
        self._known = peerstore
        self.advertised: list[Multiaddr] = []
        super().__init__(
            self.swarm,
            negotiate_timeout=max(1, int(settings.handshake_timeout)),
            addrs_factory=lambda _: self.advertised,
            disable_identify_address_discovery=True,
        )
        self.multiselect_client = EagerClient()
        self.swarm.notifees = [known for known in self.swarm.notifees if not isinstance(known, _IdentifyNotifee)]
        self.remove_stream_handler(ID_PUSH)
        self._pings = PingService(self)
        self.set_stream_handler(PING, self._pings.handle_ping)
        self.swarm.set_stream_handler(contain(self._swarm_stream_handler))

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        """Do nothing: `identify` is called where its failure belongs to somebody."""

    async def identify(self, peer_id: ID) -> None:
        """Ask a peer who it says it is: its protocols and addresses go to the peerstore. Failure leaves them empty."""
        await self._identify_peer(peer_id, reason="connected")
        store = self.get_peerstore()
        with suppress(PeerStoreError):  # it told none
            addresses, protocols = store.addrs(peer_id), store.get_protocols(peer_id)
            if len(addresses) > _KEPT:
                store.clear_addrs(peer_id)
                store.add_addrs(peer_id, addresses[:_KEPT], _KEPT_FOR)
            if len(protocols) > _KEPT:
                store.set_protocols(peer_id, protocols[:_KEPT])

    def forget(self, peer_id: ID) -> None:
        """Let the next connection of a peer that is gone be identified afresh, and keep little of it until then."""
        self._identified_peers.pop(peer_id, None)
        self._known.on_gone(peer_id)
        self._pings._inbound_streams.pop(peer_id, None)  # noqa: SLF001 - upstream keeps an empty set of each that asked


async def ping(pipe: StreamPipe) -> float:
    """Measure one round trip on a stream of the ping protocol, in seconds.

    Raises:
        Unreachable: The stream broke, or what came back is not what was sent.
    """
    payload = secrets.token_bytes(PING_LENGTH)
    started = time.perf_counter()
    await pipe.write(payload)
    answer = b""
    while len(answer) < PING_LENGTH:
        piece = await pipe.read(PING_LENGTH - len(answer))
        if not piece:
            break
        answer += piece
    if answer != payload:
        raise Unreachable("the answer to a ping was something else")
    await trio.lowlevel.checkpoint()
    return time.perf_counter() - started
