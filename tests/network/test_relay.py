"""Circuits: two nodes that meet through a third, under the same rules as anybody else."""

import secrets
from collections.abc import Awaitable, Callable

import pytest
import trio

from loremesh.errors import Fault, Unreachable, UsageError
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, GossipReceived, PeerConnected, PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.relay import HOP, STOP
from loremesh.primitives import KIB, MIB, PeerId
from loremesh.protocol.identity import peer_id_text
from loremesh.testing.loopback import ECHO, PATIENCE, TOPIC, anything, echo, make_node, wait_event

from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeer  # isort: skip
from libp2p.relay.circuit_v2.pb.circuit_pb2 import StopMessage  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
RELAY = NetworkSettings(relay=True)


async def reachable(node: Behaviour) -> str:
    with trio.fail_after(PATIENCE):
        while not node.addresses():  # noqa: ASYNC110 - the surface has no event for it
            await trio.sleep(0.05)
    return node.addresses()[0]


def behind(relay: Behaviour) -> NetworkSettings:
    return NetworkSettings(listen_addresses=(f"{relay.addresses()[0]}/p2p-circuit",))


async def test_a_node_that_cannot_be_dialled_is_reached_through_a_relay(start_node: StartNode) -> None:
    relay = await start_node(RELAY)
    hidden = await start_node(behind(relay))
    caller = await start_node(NetworkSettings(listen_addresses=()))
    hidden.serve(ECHO, echo)
    for node in (hidden, caller):
        await node.subscribe(TOPIC, anything)
    address = await reachable(hidden)
    assert address == f"{relay.addresses()[0]}/p2p-circuit/p2p/{peer_id_text(hidden.peer_id)}"

    assert await caller.connect(address, PATIENCE) == hidden.peer_id

    frame = secrets.token_bytes(MIB - KIB)
    assert await caller.call(hidden.peer_id, ECHO, frame, PATIENCE) == frame
    while (await wait_event(hidden, PeerConnected)).peer_id != caller.peer_id:
        pass
    await caller.publish(TOPIC, b"hello")
    heard = await wait_event(hidden, GossipReceived)
    assert (heard.data, heard.forwarder) == (b"hello", caller.peer_id)
    assert 0 < await hidden.ping(caller.peer_id, PATIENCE) < PATIENCE
    assert await caller.reaches(address, PATIENCE)
    assert await relay.reaches(address, PATIENCE)
    await caller.disconnect(hidden.peer_id)
    while (await wait_event(hidden, PeerDisconnected)).peer_id != caller.peer_id:
        pass


async def test_a_node_relays_only_when_it_is_told_to(start_node: StartNode) -> None:
    ordinary, caller = await start_node(), await start_node()
    hidden = await start_node(behind(ordinary))
    place = f"{ordinary.addresses()[0]}/p2p-circuit/p2p/{peer_id_text(hidden.peer_id)}"
    with pytest.raises(Unreachable):
        await caller.connect(place, PATIENCE)
    assert hidden.addresses() == ()


async def test_nobody_is_reached_through_a_relay_that_has_not_asked_for_it(start_node: StartNode) -> None:
    relay = await start_node(RELAY)
    connected, caller = await start_node(), await start_node()
    await connected.connect(relay.addresses()[0], PATIENCE)
    with pytest.raises(Unreachable, match="no reservation"):
        await caller.connect(f"{relay.addresses()[0]}/p2p-circuit/p2p/{peer_id_text(connected.peer_id)}", PATIENCE)
    with pytest.raises(UsageError, match="behind the relay"):
        await caller.connect(f"{relay.addresses()[0]}/p2p-circuit", PATIENCE)


async def test_who_is_denied_is_denied_through_a_relay_too(start_node: StartNode) -> None:
    relay = await start_node(RELAY)
    hidden, caller = await start_node(behind(relay)), await start_node()
    hidden.deny(frozenset({caller.peer_id}))
    with pytest.raises(Unreachable):
        await caller.connect(await reachable(hidden), PATIENCE)


async def test_one_relay_brings_no_more_connections_than_one_address(start_node: StartNode) -> None:
    relay = await start_node(RELAY)
    settings = NetworkSettings(listen_addresses=behind(relay).listen_addresses, max_connections_per_address=2)
    hidden = await start_node(settings)
    callers = [await start_node() for _ in range(3)]
    address = await reachable(hidden)
    for caller in callers[:2]:
        await caller.connect(address, PATIENCE)
    with pytest.raises(Unreachable):
        await callers[2].connect(address, PATIENCE)


async def test_a_peer_may_have_so_many_circuits_and_when_they_end_others(
    start_node: StartNode,
) -> None:
    relay = await start_node(RELAY)
    caller = await start_node()
    hidden = [await start_node(behind(relay)) for _ in range(9)]
    addresses = [await reachable(node) for node in hidden]
    for address in addresses[:8]:
        await caller.connect(address, PATIENCE)
    with pytest.raises(Unreachable, match="resource limit"):
        await caller.connect(addresses[8], PATIENCE)
    await caller.disconnect(hidden[0].peer_id)
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await caller.connect(addresses[8], PATIENCE)
                break
            except Unreachable:
                await trio.sleep(0.1)


async def test_a_node_whose_relay_goes_says_so_and_comes_back_with_it(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    secret = secrets.token_bytes(32)
    first = make_node(RELAY, secret)
    async with trio.open_nursery() as inner:
        await inner.start(first.run)
        settings = NetworkSettings(listen_addresses=first.addresses(), relay=True)
        hidden = await start_node(behind(first))
        await reachable(hidden)
        inner.cancel_scope.cancel()
    with trio.fail_after(PATIENCE):
        while hidden.addresses():  # noqa: ASYNC110 - as above
            await trio.sleep(0.05)
    again = await start_node(settings, secret)
    caller = await start_node()
    assert await caller.connect(await reachable(hidden), PATIENCE) == hidden.peer_id
    assert again.peer_id == first.peer_id


@pytest.mark.parametrize(
    "junk", [b"\x03\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x40", b"\x02\x08\x02", b"\x02\x08\x01", b"\x7f", b""]
)
async def test_junk_for_a_relay_is_held_against_whoever_sends_it(start_node: StartNode, junk: bytes) -> None:
    relay, hidden = await start_node(RELAY), await start_node()
    await hidden.connect(relay.addresses()[0], PATIENCE)
    await wait_event(relay, PeerConnected)
    with pytest.raises(Unreachable):
        await say(hidden, relay.peer_id, HOP, junk)
    while (served := await wait_event(relay, CallServed)).protocol != HOP:
        pass
    assert served.fault is not None
    assert await hidden.ping(relay.peer_id, PATIENCE) > 0


async def test_a_circuit_that_nobody_asked_for_is_refused(start_node: StartNode) -> None:
    relay, other = await start_node(RELAY), await start_node()
    hidden = await start_node(behind(relay))
    await reachable(hidden)
    [address] = other.addresses()
    await hidden.connect(address, PATIENCE)
    message = StopMessage(type=StopMessage.CONNECT, peer=CircuitPeer(id=relay.peer_id)).SerializeToString()
    with pytest.raises(Unreachable):
        await say(other, hidden.peer_id, STOP, bytes([len(message)]) + message)
    while (served := await wait_event(hidden, CallServed)).protocol != STOP:
        pass
    assert served.fault is Fault.UNEXPECTED


async def say(node: Behaviour, peer_id: PeerId, protocol: str, data: bytes) -> None:
    """Write bytes on a stream and read until it breaks."""
    async with node.open(peer_id, protocol, PATIENCE) as stream:
        await stream._pipe.write(data)
        await stream.finish()
        while await stream._pipe.read(1):
            pass
        pytest.fail("it ended without a word")
