"""Gossip: `libp2p.pubsub.pubsub.Pubsub`.

Symptoms: `stream_handler` lets the decoding error of one junk frame out, `push_msg` the error of a bad key or of a
raising validator, each ending the process; every message gets a task of its own, however many come; 32 messages wait
for a reader or for a peer and the rest are dropped without a word; two tasks writing to one stream mix their pieces;
whatever topics and message ids a peer names are kept and repeated, an id named a thousand times in an IWANT is answered
with a thousand copies; `_handle_new_peer` keeps writing into the dead connection of a peer that came back, and
`_handle_dead_peer` forgets the topics that the peer has just told on the new one.
"""

import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IHost, INetStream
from libp2p.io.exceptions import MessageTooLarge
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.rpc_queue import RpcQueue
from libp2p.pubsub.validators import signature_validator
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from loremesh.errors import Fault, InvalidMessage, ProtocolError, Unreachable
from loremesh.network.locks import EagerLock, KeyedLocks
from loremesh.network.pace import Allowance, Pace
from loremesh.network.seen import Seen
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.gossipsub import ByteBoundedQueue, Router, message_id
from loremesh.network.upstream.reading import BufferedReader
from loremesh.network.upstream.streams import StreamPipe, reset
from loremesh.primitives import KIB, PeerId
from loremesh.protocol.identity import check_peer_id

_log = logging.getLogger("loremesh.network")
ENVELOPE: Final = 4 * KIB
"""Room that a message's signature, key, topic and framing take beside its data, generously."""
_IDS: Final = 500
_LONGEST_BACK_OFF: Final = 3600
_PACE: Final = 0.005
_PATIENCE: Final = 1.0
_SEEN: Final = 64 * KIB
_SEEN_FOR: Final = 120.0
_SEQNO_BYTES: Final = 8
_TOPICS_PER_PEER: Final = 64
"""A story has three. Upstream starts three tasks for each."""
_SUBSCRIPTIONS: Final = 256
"""That a peer may begin and end at once; nobody needs to change its mind without end."""
_SUBSCRIPTIONS_PER_SECOND: Final = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """A gossip message whose signature holds."""

    topic: str
    data: bytes
    signer: PeerId
    forwarder: PeerId


class ContainedPubsub(Pubsub):
    """Pubsub that no message can break, that delivers straight to `admit` and follows a peer to its new connection.

    Args:
        admit: Called with each message whose signature holds, once, never with our own; takes it in, or raises
            ProtocolError to refuse it, or says False to drop it without a word.
        refuse: Called with the topic, the fault, the signer and the forwarder of each message that is not.
        is_denied: Tells peers that are not to be heard.
    """

    def __init__(
        self,
        host: IHost,
        router: Router,
        settings: NetworkSettings,
        *,
        admit: Callable[[Message], bool],
        refuse: Callable[[str, Fault, PeerId, PeerId], None],
        is_denied: Callable[[PeerId], bool],
    ) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            msg_id_constructor=message_id,
            max_subscriptions_per_rpc=_TOPICS_PER_PEER,
            max_subscriptions_per_peer=_TOPICS_PER_PEER,
            max_inbound_rpc_size=settings.max_frame + ENVELOPE,
        )
        self._gossip = router
        self._take = admit
        self._refuse = refuse
        self._is_denied = is_denied
        self._me = PeerId(host.get_id().to_bytes())
        self._handled = Seen(_SEEN, _SEEN_FOR)
        self._writing: weakref.WeakKeyDictionary[INetStream, EagerLock] = weakref.WeakKeyDictionary()
        self._registering = KeyedLocks[ID]()

    # inbound

    async def stream_handler(self, stream: INetStream) -> None:
        """Read one peer's gossip until its stream ends.

        Raises:
            InvalidMessage: A frame that is no gossip.
        """
        try:
            await self.continuously_read_stream(stream)
        except StreamError:
            _log.debug("the gossip stream of %s ended", stream.muxed_conn.peer_id)
        await reset(stream)

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Read frames one after the other: a peer that sends faster than we check waits, and costs no memory."""
        peer_id = stream.muxed_conn.peer_id
        reader = BufferedReader(stream)
        pace, subscriptions = Pace(), Allowance(_SUBSCRIPTIONS, _SUBSCRIPTIONS_PER_SECOND)
        while True:
            try:
                frame = await read_varint_prefixed_bytes_limited(reader, self.max_inbound_rpc_size)
                rpc = rpc_pb2.RPC.FromString(frame)
            except MessageTooLarge as error:
                raise InvalidMessage(Fault.FRAME_TOO_LONG, "gossip") from error
            except DecodeError as error:
                raise InvalidMessage(Fault.WRONG_SHAPE, "gossip that is not protobuf") from error
            # A frame that is there already is read without a pause, and checking one takes a while: others run between.
            await pace.rest()
            rpc.ClearField("senderRecord")  # addresses come from identify; checking one costs more than the rest
            for number, message in enumerate(rpc.publish):
                if number:
                    await pace.rest()
                await self.push_msg(peer_id, message, pace)
            if len(rpc.subscriptions) > _TOPICS_PER_PEER or not subscriptions.take(len(rpc.subscriptions)):
                raise InvalidMessage(Fault.TOO_LARGE, f"{len(rpc.subscriptions)} subscriptions")
            for subscription in rpc.subscriptions:
                self.handle_subscription(peer_id, subscription)
                await trio.lowlevel.checkpoint()
            if rpc.HasField("control"):
                await self.router.handle_rpc(self._pertinent(rpc.control), peer_id)

    def _pertinent(self, control: rpc_pb2.ControlMessage) -> rpc_pb2.RPC:
        """Keep what is about our topics, each thing once, and not too much of it."""
        kept = rpc_pb2.ControlMessage()
        for topic in {graft.topicID for graft in control.graft} & self.topic_ids:
            kept.graft.add(topicID=topic)
        for topic, wait in {prune.topicID: prune.backoff for prune in control.prune}.items():
            if topic in self.topic_ids:
                kept.prune.add(topicID=topic, backoff=min(wait, _LONGEST_BACK_OFF))
        for ihave in control.ihave[:_TOPICS_PER_PEER]:
            if ihave.topicID in self.topic_ids:
                kept.ihave.add(topicID=ihave.topicID, messageIDs=list(dict.fromkeys(ihave.messageIDs))[:_IDS])
        wanted = dict.fromkeys(one for iwant in control.iwant for one in iwant.messageIDs)
        if wanted:
            kept.iwant.add(messageIDs=list(wanted)[:_IDS])
        return rpc_pb2.RPC(control=kept)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message, pace: Pace | None = None) -> None:
        """Check a message, deliver it and pass it on; our own go out unchecked. `pace` is told how long that takes."""
        forwarder = PeerId(msg_forwarder.to_bytes())
        topic = msg.topicIDs[0] if len(msg.topicIDs) == 1 else ""
        if topic not in self.topic_ids or message_id(msg) in self._handled:
            return
        try:
            signer = check_peer_id(msg.from_id)
        except InvalidMessage as error:
            self._refuse(topic, error.fault, forwarder, forwarder)
            return
        if forwarder != self._me:
            if signer == self._me or self._is_denied(signer) or self._is_denied(forwarder):
                return
            try:
                with nullcontext() if pace is None else pace.work():
                    is_taken = self._admit(Message(topic, msg.data, signer, forwarder), msg)
            except ProtocolError as error:
                self._refuse(topic, error.fault, signer, forwarder)
                return
            if not is_taken:
                return
        else:
            self._remember(msg)
        await self.router.publish(msg_forwarder, msg)

    def _admit(self, message: Message, msg: rpc_pb2.Message) -> bool:
        if len(msg.seqno) != _SEQNO_BYTES or not _is_signed(msg):
            # Not remembered: else a forger could keep the true message of that id from us.
            raise InvalidMessage(Fault.BAD_SIGNATURE, "gossip")
        self._remember(msg)
        return self._take(message)

    def _remember(self, msg: rpc_pb2.Message) -> None:
        self._mark_msg_seen(msg)  # what the router asks when it is told of messages
        self._handled.add(message_id(msg), trio.current_time())

    def _is_msg_seen(self, msg: rpc_pb2.Message) -> bool:
        return message_id(msg) in self._handled

    # outbound

    async def publish(self, topic_id: str | list[str], data: bytes) -> None:
        """Send a message to the topic, as slowly as the slowest of its peers takes it, but within a second."""
        with trio.move_on_after(_PATIENCE):
            while any(map(_is_half_full, self.peer_queues.values())):  # noqa: ASYNC110 - upstream has no event for it
                await trio.sleep(_PACE)
        await super().publish(topic_id, data)

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> bool:
        """Write one frame; frames of different tasks do not mix."""
        if (lock := self._writing.get(stream)) is None:
            lock = self._writing[stream] = EagerLock()
        async with lock:
            return await super().write_msg(stream, rpc_msg)

    # peers that come, come back, and go

    async def _handle_new_peer(self, peer_id: ID) -> None:
        async with self._registering.of(peer_id):
            await self._register(peer_id)

    async def _register(self, peer_id: ID) -> None:
        if peer_id in self.peers and self._is_current(self.peers[peer_id]):
            return
        if not self._peer_is_connected(peer_id):
            raise SwarmException("gone already")  # else opening a stream would dial it again
        older = self.peers.get(peer_id)
        self._drop_stream(peer_id)
        await super()._handle_new_peer(peer_id)
        if older is not None:
            # Not reset: js-libp2p takes a broken stream for a peer that is gone, and says nothing to it any more.
            self.manager.run_task(StreamPipe(older).linger)
        if (queue := self.peer_queues.get(peer_id)) is not None:
            queue._queue = ByteBoundedQueue(queue._queue)  # noqa: SLF001 - upstream passes no size through
            queue.max_message_size = self.max_inbound_rpc_size
        for topic in [topic for topic, peers in self.peer_topics.items() if peer_id in peers]:
            await self._gossip.on_peer_subscribed(peer_id, topic)

    def _is_current(self, stream: INetStream) -> bool:
        connections = self.host.get_network().get_connections(stream.muxed_conn.peer_id)
        return bool(connections) and connections[-1].muxed_conn is stream.muxed_conn

    def _drop_stream(self, peer_id: ID) -> None:
        if self.peers.pop(peer_id, None) is not None:
            if (queue := self.peer_queues.pop(peer_id, None)) is not None:
                queue.close()
            self.router.remove_peer(peer_id)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        if not self._peer_is_connected(peer_id):
            super()._handle_dead_peer(peer_id)
            return
        # Its topics stay known: it told them on a stream of its own, and will not tell them again.
        self._drop_stream(peer_id)
        self._schedule_peer_stream_retry(peer_id)

    async def welcome(self, peer_id: ID) -> None:
        """Have a gossip stream to the peer on its newest connection.

        Raises:
            Unreachable: It speaks no gossip, or is gone.
        """
        try:
            await self._handle_new_peer(peer_id)
        except Exception as error:
            raise Unreachable(f"no gossip stream: {error}") from error


def _is_half_full(queue: RpcQueue) -> bool:
    waiting = queue._queue  # noqa: SLF001 - as above
    return isinstance(waiting, ByteBoundedQueue) and waiting.is_half_full


def _is_signed(msg: rpc_pb2.Message) -> bool:
    try:
        return signature_validator(msg)
    except Exception as error:  # noqa: BLE001 - a stranger's key and signature: anything may come out of upstream
        _log.debug("a signature could not even be checked: %r", error)
        return False
