"""`upstream/pubsub.py` and `upstream/gossipsub.py`: gossip that is quick, whole, bounded, and true to its signer."""

import inspect
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loremesh.errors import Fault
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import GossipReceived, GossipRefused, PeerConnected
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.gossipsub import ByteBoundedQueue, Router, message_id
from loremesh.primitives import MIB, PeerId
from loremesh.testing.loopback import PATIENCE, TOPIC, anything, wait_event

from libp2p import new_host  # isort: skip
from libp2p.abc import INetStream  # isort: skip
from libp2p.crypto.keys import KeyPair  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.pubsub import pubsub as stock_pubsub  # isort: skip
from libp2p.pubsub import rpc_queue  # isort: skip
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub  # isort: skip
from libp2p.pubsub.pb import rpc_pb2  # isort: skip
from libp2p.pubsub.pubsub import Pubsub  # isort: skip
from libp2p.pubsub.rpc_queue import PriorityQueue  # isort: skip
from libp2p.utils import encode_varint_prefixed  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]
OTHER_TOPIC = "/loremesh/test/2"
GOSSIP = "/meshsub/1.1.0"


def signed(keys: KeyPair, data: bytes = b"data", **changes: Any) -> rpc_pb2.Message:
    """A message as its signer makes it; `changes` are signed too."""
    signer = ID.from_pubkey(keys.public_key).to_bytes()
    fields: dict[str, Any] = {"data": data, "topicIDs": [TOPIC], "from_id": signer, "seqno": secrets.token_bytes(8)}
    message = rpc_pb2.Message(**{**fields, **changes})
    message.signature = keys.private_key.sign(b"libp2p-pubsub:" + message.SerializeToString())
    return message


class Speaker:
    """A stranger that puts any message whatsoever on a gossip stream to a node."""

    def __init__(self, stream: INetStream, keys: KeyPair) -> None:
        self.keys = keys
        self.peer_id = PeerId(ID.from_pubkey(keys.public_key).to_bytes())
        self._stream = stream

    async def say(self, *messages: rpc_pb2.Message) -> None:
        await self._stream.write(encode_varint_prefixed(rpc_pb2.RPC(publish=messages).SerializeToString()))

    async def upkeep(self, control: rpc_pb2.ControlMessage) -> None:
        await self._stream.write(encode_varint_prefixed(rpc_pb2.RPC(control=control).SerializeToString()))


@pytest.fixture
async def node(start_node: StartNode) -> Behaviour:
    node = await start_node()
    await node.subscribe(TOPIC, anything)
    return node


@pytest.fixture
async def speaker(node: Behaviour, start_stock: StartStock) -> Speaker:
    keys = create_new_key_pair(secrets.token_bytes(32))
    host = await start_stock(keys)
    await host.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    await wait_event(node, PeerConnected)
    return Speaker(await host.new_stream(ID(node.peer_id), [GOSSIP]), keys)


async def heard_next(node: Behaviour, speaker: Speaker) -> GossipReceived:
    """What the node hears first: something said before, or this."""
    await speaker.say(signed(speaker.keys, b"last"))
    return await wait_event(node, GossipReceived)


async def test_a_signed_message_is_heard_once_however_often_it_is_said(node: Behaviour, speaker: Speaker) -> None:
    message = signed(speaker.keys, b"once")
    await speaker.say(message, message)
    await speaker.say(message)
    assert (await wait_event(node, GossipReceived)).data == b"once"
    assert (await heard_next(node, speaker)).data == b"last"


async def test_a_false_signature_is_refused_and_does_not_keep_the_true_message_out(
    node: Behaviour, speaker: Speaker
) -> None:
    author = create_new_key_pair(secrets.token_bytes(32))
    true = signed(author, b"true")
    false = rpc_pb2.Message.FromString(true.SerializeToString())
    false.data = b"false"
    await speaker.say(false, true)
    signer = PeerId(ID.from_pubkey(author.public_key).to_bytes())
    refused = await wait_event(node, GossipRefused)
    assert refused == GossipRefused(TOPIC, Fault.BAD_SIGNATURE, signer, speaker.peer_id)
    assert await wait_event(node, GossipReceived) == GossipReceived(TOPIC, b"true", signer, speaker.peer_id)


@pytest.mark.parametrize(
    "from_id", [b"", b"\x00", b"\xff" * 39, b"\x12\x20" + bytes(32), bytes.fromhex("002508021221") + b"\x05" * 33]
)
@pytest.mark.parametrize("key", [b"", b"\xff\xff"])
async def test_a_signer_that_is_no_peer_is_the_forwarders_fault(
    node: Behaviour, speaker: Speaker, from_id: bytes, key: bytes
) -> None:
    message = signed(speaker.keys, from_id=from_id)
    message.key = key
    await speaker.say(message)
    refused = await wait_event(node, GossipRefused)
    assert refused == GossipRefused(TOPIC, Fault.BAD_KEY, speaker.peer_id, speaker.peer_id)


async def test_a_message_without_signature_or_with_an_odd_number_is_refused(node: Behaviour, speaker: Speaker) -> None:
    unsigned = signed(speaker.keys)
    unsigned.signature = b""
    for message in (unsigned, signed(speaker.keys, seqno=b""), signed(speaker.keys, seqno=bytes(9))):
        await speaker.say(message)
        assert (await wait_event(node, GossipRefused)).fault is Fault.BAD_SIGNATURE


@pytest.mark.parametrize("topics", [[], ["unheard of"], [TOPIC, TOPIC], [TOPIC, "unheard of"]])
async def test_a_message_of_no_one_subscribed_topic_is_not_heard(
    node: Behaviour, speaker: Speaker, topics: list[str]
) -> None:
    await speaker.say(signed(speaker.keys, b"lost", topicIDs=topics))
    assert (await heard_next(node, speaker)).data == b"last"


async def test_a_beat_tells_each_peer_only_what_concerns_it() -> None:
    assert await told_by(Router(NetworkSettings())) == {"one": [TOPIC], "two": [OTHER_TOPIC]}


async def test_canary_a_stock_beat_still_tells_peers_what_concerns_others() -> None:
    told = await told_by(GossipSub([PROTOCOL_ID_V11], 6, 4, 12))
    assert told["two"] == [TOPIC, OTHER_TOPIC], "upstream minds its lists now: Router._emit_control_msgs can go"


async def told_by(router: GossipSub) -> dict[str, list[str]]:
    """Have two peers grafted to a topic each; tell which topics each of them hears of."""
    told: dict[str, list[str]] = {}

    async def emit(control: rpc_pb2.ControlMessage, peer_id: ID) -> None:
        told[peer_id.to_bytes().decode()] = [graft.topicID for graft in control.graft]

    vars(router)["emit_control_message"] = emit
    await router._emit_control_msgs({ID(b"one"): [TOPIC], ID(b"two"): [OTHER_TOPIC]}, {}, {})
    return told


async def test_nobody_around_a_hub_is_left_out(start_node: StartNode) -> None:
    hub, *leaves = [await start_node() for _ in range(16)]
    for one in (hub, *leaves):
        await one.subscribe(TOPIC, anything)
    for leaf in leaves:
        await leaf.connect(hub.addresses()[0], PATIENCE)
        await wait_event(leaf, PeerConnected)
    for speaker in leaves[:3]:
        word = secrets.token_bytes(8)
        await speaker.publish(TOPIC, word)
        for listener in (one for one in (hub, *leaves) if one is not speaker):
            while (await wait_event(listener, GossipReceived)).data != word:
                pass
    _, pruned = hub._router.mesh_heartbeat()
    assert not pruned
    assert len(hub._router.mesh[TOPIC]) == len(leaves)  # more than the twelve of the specification's example


async def test_a_node_with_an_empty_mesh_is_still_heard(node: Behaviour, start_node: StartNode) -> None:
    other = await start_node()
    await other.subscribe(TOPIC, anything)
    await other.connect(node.addresses()[0], PATIENCE)
    await node._pubsub.wait_for_subscription(ID(other.peer_id), TOPIC, PATIENCE)
    await wait_event(node, PeerConnected)
    node._router.mesh[TOPIC].clear()
    assert set(node._router._get_peers_to_send([TOPIC], ID(node.peer_id), ID(node.peer_id))) == {ID(other.peer_id)}
    await node.publish(TOPIC, b"to everyone")
    assert (await wait_event(other, GossipReceived)).data == b"to everyone"


def test_canary_stock_meshes_still_prune_what_they_then_tell_nothing() -> None:
    source = inspect.getsource(GossipSub._handle_topic_heartbeat)
    assert "True" in source, "upstream tells peers in back-off now: Router.gossip_heartbeat can go"
    assert "flood" not in inspect.getsource(GossipSub.publish), "upstream floods now: Router._get_peers_to_send can go"


async def test_a_message_goes_to_each_peer_as_it_is_and_says_nothing_of_us(node: Behaviour) -> None:
    sent: list[tuple[ID, rpc_pb2.RPC]] = []
    vars(node._router)["send_rpc"] = lambda peer_id, rpc: sent.append((peer_id, rpc))
    node._pubsub.peer_topics[TOPIC] = {ID(b"one"), ID(b"two")}
    await node.publish(TOPIC, b"data")
    assert {peer_id for peer_id, _ in sent} == {ID(b"one"), ID(b"two")}
    assert [[field.name for field, _ in rpc.ListFields()] for _, rpc in sent] == [["publish"]] * 2


def test_canary_a_stock_message_still_carries_a_record_of_who_passes_it_on() -> None:
    assert "senderRecord" in inspect.getsource(GossipSub.publish), "gone now: Router.publish can go"


async def test_who_subscribes_later_is_told_what_was_just_said(node: Behaviour, start_node: StartNode) -> None:
    other = await start_node()
    await other.connect(node.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    await node._pubsub.wait_for_peer(ID(other.peer_id), PATIENCE)
    await node.publish(TOPIC, b"early")
    await other.subscribe(TOPIC, anything)
    assert (await wait_event(other, GossipReceived)).data == b"early"


async def test_a_peer_that_prunes_us_cannot_make_us_dial(
    node: Behaviour, speaker: Speaker, start_node: StartNode
) -> None:
    stranger = await start_node()
    record = stranger._host.get_peerstore().get_local_record()
    assert record is not None
    exchange = rpc_pb2.PeerInfo(peerID=stranger.peer_id, signedPeerRecord=record.marshal_envelope())
    prune = rpc_pb2.ControlPrune(topicID=TOPIC, peers=[exchange])
    place = Multiaddr(stranger.addresses()[0].partition("/p2p/")[0])
    node._host.get_peerstore().add_addrs(ID(stranger.peer_id), [place], 600)
    await speaker.upkeep(rpc_pb2.ControlMessage(prune=[prune]))
    await node._router._do_px([exchange])
    assert (await heard_next(node, speaker)).data == b"last"
    assert stranger.peer_id not in node.connected()


async def test_upkeep_about_topics_that_are_not_ours_leaves_nothing_behind(node: Behaviour, speaker: Speaker) -> None:
    topics = [f"topic {number}" for number in range(100)]
    await speaker.upkeep(
        rpc_pb2.ControlMessage(
            graft=[rpc_pb2.ControlGraft(topicID=topic) for topic in topics],
            prune=[rpc_pb2.ControlPrune(topicID=topic, backoff=2**40) for topic in topics],
            ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"id"]) for topic in topics],
        )
    )
    assert (await heard_next(node, speaker)).data == b"last"
    assert not node._router.back_off
    assert not node._router.graft_flood_tracking
    assert not node._router.ihave_message_limits


async def test_a_message_asked_for_a_thousand_times_at_once_is_sent_once(node: Behaviour) -> None:
    ids = [b"\xff id"] * 1000
    control = rpc_pb2.ControlMessage(iwant=[rpc_pb2.ControlIWant(messageIDs=ids), rpc_pb2.ControlIWant(messageIDs=ids)])
    (kept,) = node._pubsub._pertinent(control).control.iwant
    assert list(kept.messageIDs) == [b"\xff id"]


def test_what_waits_for_a_peer_is_bounded_in_bytes_and_in_messages() -> None:
    long, short = (rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(size))]) for size in (1 * MIB, 10))
    queue = ByteBoundedQueue(PriorityQueue())
    assert sum(queue.push(long) for _ in range(20)) == 7
    assert queue.is_half_full
    emptied = ByteBoundedQueue(queue)
    assert (len(queue), len(emptied)) == (0, 7)
    assert sum(queue.push(short) for _ in range(2000)) == 1024


class SlowStream:
    """Takes what is written in two pieces."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    async def write(self, data: bytes) -> None:
        for piece in (data[:10], data[10:]):
            await trio.lowlevel.checkpoint()
            self.pieces.append(piece)


async def are_frames_whole(pubsub: Pubsub) -> bool:
    stream = SlowStream()
    frames = [rpc_pb2.RPC(publish=[rpc_pb2.Message(data=letter * 50)]) for letter in (b"a", b"b")]
    async with trio.open_nursery() as nursery:
        for frame in frames:
            nursery.start_soon(pubsub.write_msg, stream, frame)  # type: ignore[arg-type]  # all it does is write
    whole = {b"".join(stream.pieces[:2]), b"".join(stream.pieces[2:])}
    return whole == {encode_varint_prefixed(frame.SerializeToString()) for frame in frames}


def stock_gossip() -> Pubsub:
    host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)))
    return Pubsub(host, GossipSub([PROTOCOL_ID_V11], 6, 4, 12))


async def test_frames_written_at_once_do_not_mix(node: Behaviour) -> None:
    assert await are_frames_whole(node._pubsub)


async def test_canary_stock_frames_written_at_once_still_mix() -> None:
    assert not await are_frames_whole(stock_gossip()), "upstream's frames are whole now: write_msg can go"


async def test_the_topics_of_a_peer_whose_stream_broke_stay_known(node: Behaviour, start_node: StartNode) -> None:
    other = await start_node()
    await other.subscribe(TOPIC, anything)
    await other.connect(node.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    await node._pubsub.wait_for_subscription(ID(other.peer_id), TOPIC, PATIENCE)
    node._pubsub._handle_dead_peer(ID(other.peer_id))
    assert ID(other.peer_id) in node._pubsub.peer_topics[TOPIC]
    await node._pubsub.wait_for_peer(ID(other.peer_id), PATIENCE)
    await node.publish(TOPIC, b"on a new stream")
    assert (await wait_event(other, GossipReceived)).data == b"on a new stream"


async def test_canary_stock_gossip_still_forgets_the_topics_of_a_peer_whose_stream_broke() -> None:
    pubsub = stock_gossip()
    pubsub.peer_topics = {TOPIC: {ID(b"peer")}}
    vars(pubsub)["_peer_is_connected"] = lambda _: True
    vars(pubsub)["_schedule_peer_stream_retry"] = lambda _: None
    pubsub._handle_dead_peer(ID(b"peer"))
    assert not pubsub.peer_topics, "upstream remembers now: ContainedPubsub._handle_dead_peer can go"


def test_canary_stock_queues_are_still_short_and_beats_still_rare() -> None:
    defaults = {name: one.default for name, one in inspect.signature(GossipSub.__init__).parameters.items()}
    remedy = "upstream's defaults have changed: look through upstream/pubsub.py"
    assert (stock_pubsub.SUBSCRIPTION_CHANNEL_SIZE, rpc_queue.OutBoundQueueSize) == (32, 32), remedy
    assert (defaults["heartbeat_interval"], defaults["max_messages_per_topic_per_second"]) == (120, 10.0), remedy
    assert (defaults["adaptive_gossip_enabled"], defaults["spam_protection_enabled"]) == (True, True), remedy


def test_a_message_is_named_as_other_implementations_name_it() -> None:
    keys = create_new_key_pair(secrets.token_bytes(32))
    message = signed(keys, seqno=b"12345678")
    assert message_id(message) == keys.public_key.serialize() + b"12345678"


async def test_our_cache_names_messages_as_everyone_does(node: Behaviour, speaker: Speaker) -> None:
    message = signed(speaker.keys, b"kept")
    await speaker.say(message)
    await wait_event(node, GossipReceived)
    assert node._router.mcache.get(message_id(message)) is not None


async def test_a_message_missed_is_fetched_at_the_next_beat(start_node: StartNode) -> None:
    """Whoever joins the topic after a message was sent hears of it: gossip repairs short gaps by itself."""
    early, late = await start_node(), await start_node()
    await early.subscribe(TOPIC, anything)
    await early.publish(TOPIC, b"before you came")
    await late.subscribe(TOPIC, anything)
    await late.connect(early.addresses()[0], PATIENCE)
    assert (await wait_event(late, GossipReceived)).data == b"before you came"
