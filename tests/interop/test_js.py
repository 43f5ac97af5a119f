"""An unmodified js-libp2p node takes part, and is refused what our own nodes are refused."""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID

from loremesh.errors import Fault, InvalidMessage, Unreachable
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, GossipReceived, GossipRefused, PeerConnected, PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB, Height, PeerId
from loremesh.protocol.identity import Identity, peer_id_from_text, peer_id_text
from loremesh.protocol.wire import SYNC_PROTOCOL, MessageType, Status, expect
from loremesh.roles.networking import wall_clock
from loremesh.services.serving import SyncServer
from loremesh.testing.loopback import PATIENCE, patient, wait_event

StartJs = Callable[..., Awaitable[Any]]
StartNode = Callable[..., Awaitable[Behaviour]]
TOPIC = "/loremesh/test/1"
GOSSIP = "/meshsub/1.1.0"
NO_MESH = {"D": 0, "Dlo": 0, "Dhi": 0, "Dout": 0, "Dscore": 0, "floodPublish": False}


def only_good(_signer: PeerId, data: bytes) -> None:
    if not data.startswith(b"good"):
        raise InvalidMessage(Fault.WRONG_SHAPE)


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await is_so():  # noqa: ASYNC110 - another process has no event for us
            await trio.sleep(0.05)


async def meet(node: Behaviour, js: Any) -> None:
    assert await js.do("dial", address=node.addresses()[0]) == peer_id_text(node.peer_id)
    while (await wait_event(node, PeerConnected)).peer_id != peer_id_from_text(js.peer_id):
        pass


async def share_topic(js: Any, *nodes: Behaviour) -> None:
    for node in nodes:
        await node.subscribe(TOPIC, only_good)
    await js.do("subscribe", topic=TOPIC)

    js_id = ID(peer_id_from_text(js.peer_id))

    async def is_shared() -> bool:
        # Either tells the other on a stream of its own: what it publishes before it has one reaches nobody.
        told = {peer_id_text(node.peer_id) for node in nodes} <= set(await js.do("subscribers", topic=TOPIC))
        return told and all(js_id in node._pubsub.peer_topics.get(TOPIC, ()) for node in nodes)

    await until(is_shared)


async def hear(node: Behaviour, data: bytes) -> GossipReceived:
    while (event := await wait_event(node, GossipReceived)).data != data:
        pass
    return event


async def hear_in_js(js: Any, data: bytes) -> Any:
    with trio.fail_after(PATIENCE):
        while (event := await js.gossip.receive())["data"] != data.hex():
            pass
    return event


async def test_it_connects_either_way_is_identified_and_pinged(start_node: StartNode, start_js: StartJs) -> None:
    node, js = await start_node(), await start_js()
    name = peer_id_text(node.peer_id)
    await meet(node, js)

    async def is_identified() -> bool:
        return {"/loremesh/kad/1.0.0", GOSSIP, "/ipfs/ping/1.0.0"} <= set(await js.do("protocols", peer=name))

    await until(is_identified)
    assert await js.do("ping", peer=name) >= 0
    js_id = peer_id_from_text(js.peer_id)
    assert 0 < await node.ping(js_id, PATIENCE) < PATIENCE
    assert js.addresses[0] in map(str, node._swarm.endpoints_of(ID(js_id)))
    await node.disconnect(js_id)
    await wait_event(node, PeerDisconnected)
    assert await node.connect(js.addresses[0], PATIENCE) == js_id


@pytest.mark.parametrize("place", ["/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.1/udp/0/quic-v1"])
async def test_a_websocket_and_quic_do_as_well_either_way(start_node: StartNode, start_js: StartJs, place: str) -> None:
    node = await start_node(NetworkSettings(listen_addresses=(place,)))
    js = await start_js(quic="quic" in place, listen=[place])
    name, js_id = peer_id_text(node.peer_id), peer_id_from_text(js.peer_id)
    await meet(node, js)
    await share_topic(js, node)
    assert await js.do("ping", peer=name) >= 0
    await node.publish(TOPIC, b"good" + bytes(500_000))
    await hear_in_js(js, b"good" + bytes(500_000))
    await js.do("publish", topic=TOPIC, data=(b"good" + bytes(400_000)).hex())
    await hear(node, b"good" + bytes(400_000))
    await node.disconnect(js_id)
    await wait_event(node, PeerDisconnected)
    assert await node.connect(js.addresses[0], PATIENCE) == js_id
    assert 0 < await node.ping(js_id, PATIENCE) < PATIENCE


async def test_it_is_reached_through_our_relay_and_reaches_others_through_it(
    start_node: StartNode, start_js: StartJs
) -> None:
    relay, caller = await start_node(NetworkSettings(relay=True)), await start_node()
    circuit = f"{relay.addresses()[0]}/p2p-circuit"
    js = await start_js(listen=[circuit])
    assert f"{circuit}/p2p/{js.peer_id}" in js.addresses
    assert await caller.connect(f"{circuit}/p2p/{js.peer_id}", PATIENCE) == peer_id_from_text(js.peer_id)
    assert 0 < await caller.ping(peer_id_from_text(js.peer_id), PATIENCE) < PATIENCE
    assert await js.do("ping", peer=peer_id_text(caller.peer_id)) >= 0

    hidden = await start_node(NetworkSettings(listen_addresses=(circuit,)))
    with trio.fail_after(PATIENCE):
        while not hidden.addresses():  # noqa: ASYNC110 - the surface has no event for it
            await trio.sleep(0.05)
    assert await js.do("dial", address=hidden.addresses()[0]) == peer_id_text(hidden.peer_id)
    assert await js.do("ping", peer=peer_id_text(hidden.peer_id)) >= 0
    assert 0 < await hidden.ping(peer_id_from_text(js.peer_id), PATIENCE) < PATIENCE


async def test_a_key_of_another_kind_is_refused_over_quic_too(start_node: StartNode, start_js: StartJs) -> None:
    node = await start_node(NetworkSettings(listen_addresses=("/ip4/127.0.0.1/udp/0/quic-v1",)))
    js = await start_js(quic=True, key="Ed25519", listen=["/ip4/127.0.0.1/udp/0/quic-v1"])
    with pytest.raises(Unreachable, match="another kind"):
        await node.connect(js.addresses[0].partition("/p2p/")[0], PATIENCE)
    assert node.connected() == ()


async def test_after_dialling_each_other_at_once_gossip_still_passes(start_node: StartNode, start_js: StartJs) -> None:
    for _ in range(3):
        node, js = await start_node(), await start_js()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.connect, js.addresses[0], PATIENCE)
            nursery.start_soon(partial(js.do, "dial", address=node.addresses()[0]))
        await share_topic(js, node)
        for number in range(5):
            word = b"good %d" % number
            await node.publish(TOPIC, word)
            await hear_in_js(js, word)
            await js.do("publish", topic=TOPIC, data=(word + b"!").hex())
            await hear(node, word + b"!")
            await trio.sleep(0.5)  # a connection that is to go would be gone by then


async def test_a_node_with_a_key_of_another_kind_is_refused(start_node: StartNode, start_js: StartJs) -> None:
    node, js = await start_node(), await start_js(key="Ed25519")
    with pytest.raises(Unreachable, match="another kind"):
        await node.connect(js.addresses[0].partition("/p2p/")[0], PATIENCE)
    assert node.connected() == ()


async def test_each_finds_what_the_other_provides(start_node: StartNode, start_js: StartJs) -> None:
    anchor, provider, js = await start_node(), await start_node(), await start_js()
    await provider.connect(anchor.addresses()[0], PATIENCE)
    await wait_event(provider, PeerConnected)
    await meet(anchor, js)
    await provider.provide("role/executor")

    async def is_found() -> bool:
        return peer_id_text(provider.peer_id) in await js.do("providers", key="role/executor")

    await until(is_found)
    await js.do("provide", key="role/reader")

    async def finds() -> bool:
        return peer_id_from_text(js.peer_id) in {
            one.peer_id for one in await provider.find_providers("role/reader", PATIENCE)
        }

    await until(finds)


async def test_gossip_passes_through_it_and_to_it_both_ways(start_node: StartNode, start_js: StartJs) -> None:
    left, right, js = await start_node(), await start_node(), await start_js()
    await meet(left, js)
    await meet(right, js)
    await share_topic(js, left, right)

    async def is_meshed() -> bool:
        return set(await js.do("mesh", topic=TOPIC)) == {peer_id_text(left.peer_id), peer_id_text(right.peer_id)}

    await until(is_meshed)
    for speaker, listener in ((left, right), (right, left)):
        words = [b"good" + secrets.token_bytes(8) for _ in range(20)]
        for word in words:
            await speaker.publish(TOPIC, word)
        for word in words:
            assert (await hear_in_js(js, word))["from"] == peer_id_text(speaker.peer_id)
        assert sorted([(await wait_event(listener, GossipReceived)).data for _ in words]) == sorted(words)
    await js.do("publish", topic=TOPIC, data=b"good own".hex())
    for node in (left, right):
        assert (await hear(node, b"good own")).signer == peer_id_from_text(js.peer_id)
        assert await js.do("score", peer=peer_id_text(node.peer_id)) >= 0


async def test_what_it_only_hears_of_is_asked_for_and_given_and_its_score_of_us_does_not_fall(
    start_node: StartNode, start_js: StartJs
) -> None:
    far, near = await start_node(), await start_node()
    js = await start_js(gossip=NO_MESH)
    await far.connect(near.addresses()[0], PATIENCE)
    await wait_event(near, PeerConnected)
    await meet(near, js)
    await share_topic(js, near, far)
    # Without a mesh nothing comes but by IHAVE, once in a heartbeat, and IWANT.
    words = [b"good" + secrets.token_bytes(8) for _ in range(25)]
    for word in words:
        await far.publish(TOPIC, word)
        await hear(near, word)
    heard = set[str]()
    with trio.fail_after(PATIENCE):
        while len(heard) < len(words):
            heard.add((await js.gossip.receive())["data"])
    own = [b"good" + secrets.token_bytes(8) for _ in range(25)]
    for word in own:
        await js.do("publish", topic=TOPIC, data=word.hex())
    assert {(await wait_event(far, GossipReceived)).data for _ in own} == set(own)
    # Broken promises count after three seconds, at the next heartbeat.
    for _ in range(5):
        assert await js.do("score", peer=peer_id_text(near.peer_id)) >= 0
        await trio.sleep(1)


async def start_anchor(nursery: trio.Nursery) -> Behaviour:
    """Start a node that answers about blocks, and keeps no story."""
    identity = Identity.new(secrets.token_bytes(32))
    node = Behaviour(identity, patient())
    node.serve(SYNC_PROTOCOL, SyncServer(identity, None, wall_clock, None).serve)
    await nursery.start(node.run)
    return node


async def test_it_calls_a_service_with_messages_it_encodes_itself(start_js: StartJs, nursery: trio.Nursery) -> None:
    node, js = await start_anchor(nursery), await start_js()
    await meet(node, js)
    answer = bytes.fromhex(
        await js.do("call", peer=peer_id_text(node.peer_id), protocol=SYNC_PROTOCOL, type="status-request", payload=[1])
    )
    assert int.from_bytes(answer[:4], "big") == len(answer) - 4
    assert expect(answer[4:], node.peer_id, MessageType.STATUS, Status) == Status((), Height(0), (), ())


async def test_its_garbage_is_refused_and_it_can_still_be_served(start_js: StartJs, nursery: trio.Nursery) -> None:
    node, js = await start_anchor(nursery), await start_js()
    js_id, name = peer_id_from_text(js.peer_id), peer_id_text(node.peer_id)
    await meet(node, js)
    await share_topic(js, node)

    await js.do("publish", topic=TOPIC, data=b"bad".hex())
    refused = await wait_event(node, GossipRefused)
    assert refused == GossipRefused(TOPIC, Fault.WRONG_SHAPE, js_id, js_id)

    for protocol, data, fault in (
        (SYNC_PROTOCOL, (MIB + 1).to_bytes(4, "big"), Fault.FRAME_TOO_LONG),
        (SYNC_PROTOCOL, b"\x00\x00\x00\x01\xc0", Fault.WRONG_SHAPE),
        (GOSSIP, b"\x04\xff\xff\xff\xff", Fault.WRONG_SHAPE),
        (GOSSIP, b"\xff\xff\xff\x7f", Fault.FRAME_TOO_LONG),
    ):
        assert await js.do("send", peer=name, protocol=protocol, data=data.hex()) == "StreamResetError"
        while (served := await wait_event(node, CallServed)).fault is None:
            pass
        assert served == CallServed(protocol, js_id, fault)
    assert await js.do("call", peer=name, protocol=SYNC_PROTOCOL, type="status-request", payload=[1])
    assert await js.do("ping", peer=name) >= 0
