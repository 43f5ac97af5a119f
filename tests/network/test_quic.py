"""QUIC: the same node, the same rules, over UDP."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio

from loremesh.errors import ConnectionRefused, MachineError, ServiceError, Unreachable
from loremesh.network.addresses import Endpoint
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, GossipReceived, PeerConnected, PeerDisconnected, ProviderRecord
from loremesh.network.frames import Stream
from loremesh.network.quic.connection import QuicMuxed
from loremesh.network.settings import NetworkSettings
from loremesh.network.udp import Address, bound, connected
from loremesh.network.upstream.swarm import is_inbound
from loremesh.network.upstream.watch import Watch
from loremesh.primitives import MIB
from loremesh.protocol.identity import peer_id_text
from loremesh.testing.loopback import (
    ECHO,
    PATIENCE,
    TOPIC,
    echo,
    make_node,
    prepare,
    wait_event,
    wait_settled,
    wait_usable,
)

StartNode = Callable[..., Awaitable[Behaviour]]
ANYWHERE = ("/ip4/127.0.0.1/udp/0/quic-v1",)
QUIC = NetworkSettings(listen_addresses=ANYWHERE)
DIAL_ONLY = NetworkSettings(listen_addresses=())


def port_of(address: str) -> int:
    return int(address.split("/")[4])


class Wire:
    """UDP in between two nodes, which can be made to fall silent."""

    def __init__(self, target: Behaviour) -> None:
        self._port = port_of(target.addresses()[0])
        self._peer = target.addresses()[0].partition("/p2p/")[2]
        self._dialler: Address | None = None
        self.address = ""
        self.is_cut = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        [near], far = await bound("127.0.0.1", 0), await connected("127.0.0.1", self._port)
        self.address = f"/ip4/127.0.0.1/udp/{near.getsockname()[1]}/quic-v1/p2p/{self._peer}"
        task_status.started()
        with near, far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._there, near, far)
                nursery.start_soon(self._back, near, far)

    async def _there(self, near: trio.socket.SocketType, far: trio.socket.SocketType) -> None:
        while True:
            data, self._dialler = await near.recvfrom(2048)
            if not self.is_cut:
                await far.send(data)

    async def _back(self, near: trio.socket.SocketType, far: trio.socket.SocketType) -> None:
        while True:
            data = await far.recv(2048)
            if not self.is_cut and self._dialler is not None:
                await near.sendto(data, self._dialler)


async def test_two_nodes_talk_over_quic(start_node: StartNode) -> None:
    server, client = await start_node(QUIC), await start_node(DIAL_ONLY)
    await prepare(server, client)
    [address] = server.addresses()
    assert address.startswith("/ip4/127.0.0.1/udp/")

    assert await client.connect(address, PATIENCE) == server.peer_id

    assert (await wait_event(client, PeerConnected)).address == address.partition("/p2p/")[0]
    event = await wait_event(server, PeerConnected)
    assert event.inbound
    assert event.address.endswith("/quic-v1")
    assert 0 < await client.ping(server.peer_id, PATIENCE) < PATIENCE
    assert 0 < await server.ping(client.peer_id, PATIENCE) < PATIENCE
    frame = random.Random(1).randbytes(MIB)
    assert await client.call(server.peer_id, ECHO, frame, PATIENCE) == frame
    assert await server.call(client.peer_id, ECHO, frame, PATIENCE) == frame
    await client.publish(TOPIC, b"up")
    assert (await wait_event(server, GossipReceived)).data == b"up"
    await server.publish(TOPIC, b"down")
    assert (await wait_event(client, GossipReceived)).data == b"down"
    await client.disconnect(server.peer_id)
    await wait_event(server, PeerDisconnected)
    await wait_event(client, PeerDisconnected)


async def test_a_node_that_is_not_told_to_speak_quic_does_not(start_node: StartNode) -> None:
    server, client = await start_node(), await start_node()
    [address] = server.addresses()
    assert "/tcp/" in address
    with pytest.raises(ConnectionRefused):
        await client.connect(f"/ip4/127.0.0.1/udp/{port_of(address)}/quic-v1", PATIENCE)


async def test_quic_and_tcp_share_a_port_number_and_nothing_else(start_node: StartNode) -> None:
    other = await start_node(QUIC)
    port = port_of(other.addresses()[0])
    server = await start_node(NetworkSettings(listen_addresses=(f"/ip4/127.0.0.1/tcp/{port}", *ANYWHERE)))
    client = await start_node(DIAL_ONLY)
    tcp, quic = server.addresses()
    for address in (quic, tcp):
        assert await client.connect(address, PATIENCE) == server.peer_id
    assert len(client._swarm.get_connections()) == 1
    assert await client.connect(other.addresses()[0], PATIENCE) == other.peer_id


async def test_sixteen_mebibytes_reach_a_slow_reader_whole(start_node: StartNode) -> None:
    server, client = await start_node(QUIC), await start_node(DIAL_ONLY)
    frames = [random.Random(number).randbytes(MIB - 4) for number in range(16)]
    come: list[bytes] = []
    most = 0

    async def take_slowly(stream: Stream) -> None:
        nonlocal most
        [connection] = server._swarm.get_connections()
        while (frame := await stream.receive(PATIENCE)) is not None:
            come.append(frame)
            await trio.testing.wait_all_tasks_blocked(0.05)  # a time in which more comes than has room
            muxed = connection.muxed_conn
            assert isinstance(muxed, QuicMuxed)
            most = max(most, muxed.unread)
        await stream.send(b"all of it", PATIENCE)

    server.serve(ECHO, take_slowly)
    await client.connect(server.addresses()[0], PATIENCE)
    async with client.open(server.peer_id, ECHO, PATIENCE) as stream:
        for frame in frames:
            await stream.send(frame, PATIENCE)
        await stream.finish()
        assert await stream.receive(PATIENCE) == b"all of it"
    assert come == frames
    assert most < MIB


async def test_a_provider_is_found_through_a_node_between(start_node: StartNode) -> None:
    one, between, other = [await start_node(QUIC) for _ in range(3)]
    for node in (one, other):
        await node.connect(between.addresses()[0], PATIENCE)
        await wait_event(node, PeerConnected)
    await one.provide("role/executor")
    found: tuple[ProviderRecord, ...] = ()
    with trio.fail_after(PATIENCE):
        while not found:  # the record is on its way: sending it is not answered
            found = await other.find_providers("role/executor", PATIENCE)
    [record] = found
    assert record.peer_id == one.peer_id
    assert record.addresses == one.addresses()
    assert await other.connect(record.addresses[0], PATIENCE) == one.peer_id


async def test_two_nodes_that_dial_each_other_at_once_can_talk_and_keep_one_connection(start_node: StartNode) -> None:
    for _ in range(3):
        one, other = await start_node(QUIC), await start_node(QUIC)
        await prepare(one, other)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.connect, other.addresses()[0], PATIENCE)
            nursery.start_soon(other.connect, one.addresses()[0], PATIENCE)
        await wait_usable(one, other)
        await wait_settled(one, other)
        await wait_usable(one, other)
        lower, greater = sorted((one, other), key=lambda node: node.peer_id)
        assert is_inbound(lower._swarm.get_connections()[0]) is not is_inbound(greater._swarm.get_connections()[0])


async def test_of_a_peer_dialled_at_many_addresses_at_once_one_connection_is_seen(start_node: StartNode) -> None:
    hub = await start_node(replace(QUIC, listen_addresses=ANYWHERE * 3))
    node = await start_node(QUIC)
    seen = set[Any]()
    hub._swarm.register_notifee(Watch(seen.add, lambda _: None))
    bare = [address.partition("/p2p/")[0] for address in hub.addresses()]
    async with trio.open_nursery() as nursery:
        for address in (*hub.addresses(), *bare, *hub.addresses()):
            nursery.start_soon(node.connect, address, PATIENCE)
    await wait_event(node, PeerConnected)
    await wait_settled(hub, node)
    assert len(seen) == 1


async def test_checking_an_address_is_no_connection(start_node: StartNode) -> None:
    one, other = await start_node(QUIC), await start_node(QUIC)
    seen = set[Any]()
    other._swarm.register_notifee(Watch(seen.add, lambda _: None))
    assert await one.reaches(other.addresses()[0], PATIENCE)
    place = other.addresses()[0].partition("/p2p/")[0]
    assert not await one.reaches(f"{place}/p2p/{peer_id_text(one.peer_id)}", PATIENCE)
    await one.connect(other.addresses()[0], PATIENCE)
    await wait_event(other, PeerConnected)
    assert len(seen) == 1


async def test_nobody_listening_is_refused_at_once_and_again_at_once(start_node: StartNode) -> None:
    node = await start_node(QUIC)
    [gone] = await bound("127.0.0.1", 0)
    address = f"/ip4/127.0.0.1/udp/{gone.getsockname()[1]}/quic-v1"
    gone.close()
    for _ in range(2):
        with pytest.raises(ConnectionRefused):
            await node.connect(address, PATIENCE)


async def test_who_says_nothing_is_unreachable_after_the_time_for_a_handshake(start_node: StartNode) -> None:
    node = await start_node(NetworkSettings(listen_addresses=(), handshake_timeout=0.3))
    [mute] = await bound("127.0.0.1", 0)
    with mute, pytest.raises(Unreachable):
        await node.connect(f"/ip4/127.0.0.1/udp/{mute.getsockname()[1]}/quic-v1", PATIENCE)


async def test_another_peer_than_expected_is_unreachable(start_node: StartNode) -> None:
    one, other = await start_node(QUIC), await start_node(QUIC)
    place = other.addresses()[0].partition("/p2p/")[0]
    with pytest.raises(Unreachable, match=peer_id_text(other.peer_id)):
        await one.connect(f"{place}/p2p/{peer_id_text(make_node().peer_id)}", PATIENCE)
    assert one.connected() == other.connected() == ()


async def test_a_denied_peer_is_disconnected_and_kept_out_both_ways(start_node: StartNode) -> None:
    one, other = await start_node(QUIC), await start_node(QUIC)
    await one.connect(other.addresses()[0], PATIENCE)
    await wait_event(other, PeerConnected)
    one.deny(frozenset({other.peer_id}))
    await wait_event(other, PeerDisconnected)
    place = one.addresses()[0].partition("/p2p/")[0]
    for address in (one.addresses()[0], place):
        with pytest.raises(Unreachable):
            await other.connect(address, PATIENCE)
    with pytest.raises(Unreachable, match="not welcome"):
        await one.connect(other.addresses()[0].partition("/p2p/")[0], PATIENCE)
    one.deny(frozenset())
    assert await other.connect(one.addresses()[0], PATIENCE) == one.peer_id


async def test_one_address_has_room_for_so_many_connections_and_room_again_when_one_ends(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(listen_addresses=ANYWHERE, max_connections_per_loopback_address=2))
    nodes = [await start_node(DIAL_ONLY) for _ in range(3)]
    for node in nodes[:2]:
        await node.connect(hub.addresses()[0], PATIENCE)
        await wait_event(hub, PeerConnected)
    with pytest.raises(Unreachable):
        await nodes[2].connect(hub.addresses()[0], PATIENCE)
    await nodes[0].disconnect(hub.peer_id)
    await wait_event(hub, PeerDisconnected)
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await nodes[2].connect(hub.addresses()[0], PATIENCE)
                break
            except Unreachable:
                await trio.sleep(0.05)


async def test_twenty_nodes_that_start_at_once_all_get_in(start_node: StartNode) -> None:
    hub = await start_node(QUIC)
    nodes = [await start_node(DIAL_ONLY) for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.connect, hub.addresses()[0], PATIENCE)
    met = {(await wait_event(hub, PeerConnected)).peer_id for _ in nodes}
    assert met == {node.peer_id for node in nodes}


async def test_a_peer_that_comes_back_is_usable_although_its_old_connection_never_closed(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    hub, node = await start_node(QUIC), await start_node(DIAL_ONLY)
    await prepare(hub, node)
    wire = Wire(hub)
    await nursery.start(wire.run)
    await node.connect(wire.address, PATIENCE)
    await wait_usable(hub, node)
    wire.is_cut = True
    assert await node.connect(hub.addresses()[0], PATIENCE) == hub.peer_id
    await wait_usable(hub, node)
    await wait_settled(hub, node)
    await wait_usable(hub, node)


async def test_a_call_to_a_peer_that_has_frozen_ends_at_its_deadline(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    hub, node = await start_node(QUIC), await start_node(DIAL_ONLY)
    await prepare(hub, node)
    wire = Wire(hub)
    await nursery.start(wire.run)
    await node.connect(wire.address, PATIENCE)
    await wait_usable(hub, node)
    wire.is_cut = True
    with pytest.raises(ServiceError):
        await node.call(hub.peer_id, ECHO, bytes(MIB), 0.5)


async def test_a_handler_that_fails_breaks_the_stream_and_no_other(start_node: StartNode) -> None:
    async def fail(_stream: Stream) -> None:
        raise Unreachable("enough")

    server, client = await start_node(QUIC), await start_node(DIAL_ONLY)
    await prepare(server)
    server.serve("/loremesh/fail/1", fail)
    await client.connect(server.addresses()[0], PATIENCE)
    for _ in range(70):  # more than may be open at once
        with pytest.raises(ServiceError):
            await client.call(server.peer_id, "/loremesh/fail/1", b"?", PATIENCE)
    assert await client.call(server.peer_id, ECHO, b"?", PATIENCE) == b"?"
    assert [await wait_event(server, CallServed) for _ in range(70)]


async def test_a_relay_is_reached_by_quic_and_leads_on(start_node: StartNode) -> None:
    relay = await start_node(NetworkSettings(listen_addresses=ANYWHERE, relay=True))
    hidden = await start_node(NetworkSettings(listen_addresses=(f"{relay.addresses()[0]}/p2p-circuit",)))
    node = await start_node(DIAL_ONLY)
    hidden.serve(ECHO, echo)
    with trio.fail_after(PATIENCE):
        while not hidden.addresses():  # noqa: ASYNC110 - no event tells of a reservation
            await trio.sleep(0.05)
    assert await node.connect(hidden.addresses()[0], PATIENCE) == hidden.peer_id
    assert await node.call(hidden.peer_id, ECHO, b"?", PATIENCE) == b"?"


async def test_stopping_says_goodbye_to_everyone_frees_the_port_and_is_quick(start_node: StartNode) -> None:
    hub = make_node(QUIC)
    others = [await start_node(QUIC) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        address = hub.addresses()[0]
        for other in others[:2]:
            await other.connect(address, PATIENCE)
        for other in others[2:]:
            await hub.connect(other.addresses()[0], PATIENCE)
        for other in others:
            await wait_event(other, PeerConnected)
        started = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 4
    for other in others:
        await wait_event(other, PeerDisconnected)
    place = address.partition("/p2p/")[0]
    again = await start_node(NetworkSettings(listen_addresses=(place,)))
    assert again.addresses()[0].startswith(place)


async def test_a_port_that_is_taken_is_this_machines_fault_and_is_named(start_node: StartNode) -> None:
    first = await start_node(QUIC)
    place = first.addresses()[0].partition("/p2p/")[0]
    with pytest.raises(MachineError, match=str(Endpoint.from_str(place).port)):
        await make_node(NetworkSettings(listen_addresses=(*ANYWHERE, place))).run()


async def test_listening_everywhere_announces_addresses_that_can_be_dialled(start_node: StartNode) -> None:
    node = await start_node(NetworkSettings(listen_addresses=("/ip4/0.0.0.0/udp/0/quic-v1",)))
    other = await start_node(DIAL_ONLY)
    [loopback] = [address for address in node.addresses() if address.startswith("/ip4/127.0.0.1/udp/")]
    assert not any(address.startswith("/ip4/0.") for address in node.addresses())
    assert await other.connect(loopback, PATIENCE) == node.peer_id


async def test_quic_works_over_ipv6_too(start_node: StartNode) -> None:
    node = await start_node(NetworkSettings(listen_addresses=("/ip6/::1/udp/0/quic-v1",)))
    other = await start_node(DIAL_ONLY)
    assert await other.connect(node.addresses()[0], PATIENCE) == node.peer_id
    assert (await wait_event(node, PeerConnected)).address.startswith("/ip6/::1/udp/")
