"""The gossip mesh: `libp2p.pubsub.gossipsub.GossipSub`.

Symptoms: the heartbeat comes every 120 s, and after half a minute of adapting every 60 s; our own bursts count as spam;
`_emit_control_msgs` sends the GRAFTs, PRUNEs and IHAVEs of one peer to the next one too; peers in back-off get no IHAVE
and a node whose mesh is empty sends its own message to nobody, so that of eighteen nodes around one hub twelve hear and
say nothing for a minute; what is sent between a peer's subscription and its GRAFT never reaches it; a PRUNE makes
`_do_px` dial sixteen addresses of the sender's choice; message ids carry a prefix that other implementations do not, so
IHAVE and IWANT never match; queues count messages, not bytes; the record of recent deliveries, kept for the adaptive
mode, only grows.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from libp2p.peer.id import ID
from libp2p.pubsub import mcache
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.rpc_queue import PriorityQueue

from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB

PROTOCOL: Final = PROTOCOL_ID_V11
_QUEUE: Final = 1024
_QUEUE_BYTES: Final = 8 * MIB


def message_id(message: rpc_pb2.Message) -> bytes:
    """Name a message as js-libp2p does: the signer's key (the peer id without its multihash header), then seqno."""
    return bytes(message.from_id[2:] + message.seqno)


class Router(GossipSub):
    """GossipSub v1.1 that beats every second and tells each peer only what concerns it."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__(
            [PROTOCOL],
            degree=6,
            degree_low=4,
            # Nobody is pruned for being one too many: a node with many connections is a hub, and those around it may
            # have no other. The number of connections is the bound; players keep at most ten.
            degree_high=settings.max_connections,
            heartbeat_interval=settings.heartbeat_interval,  # type: ignore[arg-type]  # upstream sleeps this long
            adaptive_gossip_enabled=False,
            eclipse_protection_enabled=False,
            spam_protection_enabled=False,
        )
        self._is_gossiping = False
        mcache.default_msg_id_fn = message_id  # type: ignore[assignment]  # what the cache of recent messages asks

    async def _emit_control_msgs(
        self,
        peers_to_graft: dict[ID, list[str]],
        peers_to_prune: dict[ID, list[str]],
        peers_to_gossip: dict[ID, dict[str, list[bytes]]],
    ) -> None:
        for peer, topics in peers_to_graft.items():
            recent = {topic: self.mcache.window(topic) for topic in topics}
            peers_to_gossip.setdefault(peer, {}).update({topic: ids for topic, ids in recent.items() if ids})
        # One peer per call: upstream's lists run over from peer to peer, but not from call to call.
        for peer in {*peers_to_graft, *peers_to_prune, *peers_to_gossip}:
            await super()._emit_control_msgs(
                {peer: peers_to_graft[peer]} if peer in peers_to_graft else {},
                {peer: peers_to_prune[peer]} if peer in peers_to_prune else {},
                {peer: peers_to_gossip[peer]} if peer in peers_to_gossip else {},
            )
        now = int(time.time())
        for topic, peers in list(self.back_off.items()):
            self.back_off[topic] = {peer: until for peer, until in peers.items() if until > now}
        self.recent_message_deliveries.clear()  # kept for the adaptive mode alone, and never emptied without it

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Pass a message on, to each peer as it is: who wants our address asks with identify."""
        assert self.pubsub is not None  # noqa: S101 - attached by its constructor
        self.mcache.put(pubsub_msg)
        rpc = rpc_pb2.RPC(publish=[pubsub_msg])
        origin = ID(pubsub_msg.from_id)
        for peer_id in self._get_peers_to_send(pubsub_msg.topicIDs, msg_forwarder, origin):
            if self.scorer is None or self.scorer.allow_publish(peer_id, list(pubsub_msg.topicIDs)):
                self.send_rpc(peer_id, rpc)
        now = int(time.time())
        self.time_since_last_publish.update(dict.fromkeys(pubsub_msg.topicIDs, now))

    async def handle_graft(self, graft_msg: rpc_pb2.ControlGraft, sender_peer_id: ID) -> None:
        """Take a peer into a topic's mesh, and tell it what it missed between subscribing and now."""
        await super().handle_graft(graft_msg, sender_peer_id)
        await self._tell_recent(graft_msg.topicID, sender_peer_id)

    async def emit_graft(self, topic: str, id: ID) -> None:  # noqa: A002 - upstream's
        """Ask a peer into a topic's mesh, and tell it what it missed."""
        await super().emit_graft(topic, id)
        await self._tell_recent(topic, id)

    async def _tell_recent(self, topic: str, peer_id: ID) -> None:
        recent = self.mcache.window(topic) if peer_id in self.mesh.get(topic, ()) else []
        if recent:
            await self.emit_ihave(topic, recent, peer_id)

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        """Choose who gets a message: the mesh; for our own, everyone in the topic (v1.1's flood publishing)."""
        assert self.pubsub is not None  # noqa: S101 - attached by its constructor
        if origin != self.pubsub.my_id:
            return super()._get_peers_to_send(topic_ids, msg_forwarder, origin, msg_id)
        return {peer for topic in topic_ids for peer in self.pubsub.peer_topics.get(topic, ())}

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """Choose whom to tell of recent messages, peers in back-off too: they need it most."""
        self._is_gossiping = True
        try:
            return super().gossip_heartbeat()
        finally:
            self._is_gossiping = False

    def _check_back_off(self, peer: ID, topic: str) -> bool:
        return not self._is_gossiping and super()._check_back_off(peer, topic)

    async def _do_px(self, px_peers: list[rpc_pb2.PeerInfo]) -> None:
        """Do nothing: this node dials whom it is told to."""


class ByteBoundedQueue(PriorityQueue):
    """What waits for one peer, bounded in messages and in bytes."""

    def __init__(self, waiting: PriorityQueue) -> None:
        super().__init__(_QUEUE)
        self._bytes = 0
        while (rpc := waiting.pop()) is not None:
            self.push(rpc)

    @property
    def is_half_full(self) -> bool:
        """Tells a publisher to slow down."""
        return len(self) > _QUEUE // 2 or self._bytes > _QUEUE_BYTES // 2

    def push(self, rpc: rpc_pb2.RPC, priority: bool = False) -> bool:  # noqa: FBT001, FBT002 - upstream's
        """Take a message in, unless too much waits already."""
        size = rpc.ByteSize()
        is_taken = self._bytes + size <= _QUEUE_BYTES and super().push(rpc, priority)
        self._bytes += size if is_taken else 0
        return is_taken

    def pop(self) -> rpc_pb2.RPC | None:
        """Give the next message, if there is one."""
        rpc = super().pop()
        self._bytes -= 0 if rpc is None else rpc.ByteSize()
        return rpc
