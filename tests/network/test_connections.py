"""How many connections and streams a node allows, and what becomes of two connections to one peer."""

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest
import trio

from loremesh.errors import ServiceError, Unreachable, UsageError
from loremesh.network.addresses import Endpoint
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, PeerConnected, PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.swarm import is_inbound
from loremesh.network.upstream.watch import Watch
from loremesh.protocol.identity import peer_id_text
from loremesh.testing.loopback import (
    ECHO,
    PATIENCE,
    echo,
    make_node,
    prepare,
    wait_event,
    wait_settled,
    wait_usable,
)

StartNode = Callable[..., Awaitable[Behaviour]]


class Wire:
    """A TCP relay before a node, whose two sides can be made to fall silent without closing."""

    def __init__(self, target: Behaviour) -> None:
        self._port = int(target.addresses()[0].split("/")[4])
        self._peer = target.addresses()[0].partition("/p2p/")[2]
        self._cut = trio.Event()
        self.address = ""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}/p2p/{self._peer}"
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    def cut(self) -> None:
        self._cut.set()

    async def _relay(self, near: trio.SocketStream) -> None:
        far = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, near, far)
            nursery.start_soon(self._copy, far, near)

    async def _copy(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        async for data in source:
            if self._cut.is_set():
                await trio.sleep_forever()
            await sink.send_all(data)
        await sink.aclose()


async def test_a_peer_that_comes_back_is_usable_although_its_old_connection_never_closed(
    start_node: StartNode, nursery: trio.Nursery
) -> None:
    hub = await start_node()
    secret = secrets.token_bytes(32)
    wire = Wire(hub)
    await nursery.start(wire.run)
    before = await start_node(secret=secret)
    await prepare(hub, before)
    await before.connect(wire.address, PATIENCE)
    await wait_usable(before, hub)
    wire.cut()
    after = await start_node(secret=secret)
    await prepare(after)
    await after.connect(hub.addresses()[0], PATIENCE)
    await wait_usable(after, hub)
    with trio.fail_after(PATIENCE):
        while len(hub._swarm.get_connections()) > 1:  # noqa: ASYNC110 - upstream's table has no event
            await trio.sleep(0.05)
    await wait_usable(after, hub)


async def test_a_dead_connection_is_dialled_again(start_node: StartNode, nursery: trio.Nursery) -> None:
    hub, node = await start_node(), await start_node()
    wire = Wire(hub)
    await nursery.start(wire.run)
    await prepare(hub, node)
    await node.connect(wire.address, PATIENCE)
    await wait_usable(node, hub)
    wire.cut()
    await node.connect(hub.addresses()[0], PATIENCE)
    await wait_usable(node, hub)


@pytest.mark.parametrize("_round", range(4))
async def test_two_nodes_that_dial_each_other_at_once_can_talk_and_keep_one_connection(
    start_node: StartNode, _round: int
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(dial_each_other, start_node)


async def dial_each_other(start_node: StartNode) -> None:
    one, other = await start_node(), await start_node()
    await prepare(one, other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.connect, other.addresses()[0], PATIENCE)
        nursery.start_soon(other.connect, one.addresses()[0], PATIENCE)
    await wait_usable(one, other)
    await wait_settled(one, other)
    await wait_usable(one, other)
    assert (one.connected(), other.connected()) == ((other.peer_id,), (one.peer_id,))


async def test_of_two_mutual_connections_the_one_that_goes_is_kept_until_what_was_begun_on_it_has_ended(
    start_node: StartNode,
) -> None:
    one, other = await start_node(), await start_node()
    lower, greater = sorted((one, other), key=lambda node: node.peer_id)
    await prepare(one, other)
    await greater.connect(lower.addresses()[0], PATIENCE)
    await wait_usable(one, other)
    async with greater.open(lower.peer_id, ECHO, PATIENCE) as stream:
        await lower._swarm._try_each(Endpoint.from_str(greater.addresses()[0]), connect_anyway(lower))
        await wait_usable(one, other)
        for _ in range(3):
            await trio.sleep(1)  # long enough for it to be closed if it were taken for idle
            await stream.send(b"?", PATIENCE)
            assert await stream.receive(PATIENCE) == b"?"
        assert len(one._swarm.get_connections()) == 2
    await wait_settled(one, other)
    assert is_inbound(greater._swarm.get_connections()[0])
    await wait_usable(one, other)


def connect_anyway(node: Behaviour) -> Callable[[Any], Awaitable[None]]:
    """Connect as in a mutual dial, in which neither side sees the other connection yet."""

    async def add(secured: Any) -> None:
        muxed = await node._swarm.upgrader.upgrade_connection(secured, secured.get_remote_peer())
        await node._swarm.add_conn(muxed, direction="outbound")

    return add


async def test_a_peer_known_by_several_addresses_is_connected_once(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(listen_addresses=("/ip4/127.0.0.1/tcp/0",) * 3))
    node = await start_node()
    named = hub.addresses()
    bare = [address.partition("/p2p/")[0] for address in named]
    connections = set[Any]()
    hub._swarm.register_notifee(Watch(connections.add, lambda _: None))
    async with trio.open_nursery() as nursery:
        for address in (*named, *bare, *named):
            nursery.start_soon(node.connect, address, PATIENCE)
    await wait_settled(hub, node)
    assert len(connections) == 1


async def test_an_address_is_checked_whatever_connections_there_are(start_node: StartNode) -> None:
    one, other = await start_node(), await start_node()
    await one.connect(other.addresses()[0], PATIENCE)
    name = other.addresses()[0].partition("/p2p/")[2]
    assert await one.reaches(other.addresses()[0], PATIENCE)
    assert not await one.reaches(f"/ip4/127.0.0.1/tcp/1/p2p/{name}", PATIENCE)
    assert not await other.reaches(f"{other.addresses()[0].partition('/p2p/')[0]}/p2p/{peer_id_text(one.peer_id)}")
    assert len(one._swarm.get_connections()) == 1
    with pytest.raises(UsageError, match="names no peer"):
        await one.reaches(other.addresses()[0].partition("/p2p/")[0])


async def test_a_node_has_room_for_so_many_connections_and_room_again_when_one_ends(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(max_connections=3))
    first, *others = [await start_node() for _ in range(5)]
    for node in (first, *others[:2]):
        await node.connect(hub.addresses()[0], PATIENCE)
        await wait_event(hub, PeerConnected)
    with pytest.raises(Unreachable):
        await others[2].connect(hub.addresses()[0], PATIENCE)
    await first.disconnect(hub.peer_id)
    await wait_event(hub, PeerDisconnected)
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await others[3].connect(hub.addresses()[0], PATIENCE)
                break
            except Unreachable:
                await trio.sleep(0.05)
    assert len(hub.connected()) <= 3


async def test_one_address_has_room_for_so_many_connections(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(max_connections_per_loopback_address=2))
    nodes = [await start_node() for _ in range(3)]
    for node in nodes[:2]:
        await node.connect(hub.addresses()[0], PATIENCE)
    with pytest.raises(Unreachable):
        await nodes[2].connect(hub.addresses()[0], PATIENCE)


class Queue(AbstractAsyncContextManager[None]):
    """Stands where those queue who come last; counts them."""

    def __init__(self) -> None:
        self.came = 0

    async def __aenter__(self) -> None:
        self.came += 1

    async def __aexit__(self, *_: object) -> None: ...


async def test_the_first_few_from_an_address_are_read_at_once_and_a_crowd_comes_last(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(newcomers_at_once=2))
    queue = Queue()
    hub._swarm._newcomers = queue  # type: ignore[assignment]  # entered, no more
    nodes = [await start_node() for _ in range(3)]
    for node in nodes[:2]:
        await node.connect(hub.addresses()[0], PATIENCE)
        await wait_event(hub, PeerConnected)
    assert not queue.came
    await nodes[2].connect(hub.addresses()[0], PATIENCE)
    await wait_event(hub, PeerConnected)
    assert queue.came


async def test_a_node_does_not_dial_beyond_its_own_limit(start_node: StartNode) -> None:
    one = await start_node(NetworkSettings(max_connections=1))
    others = [await start_node() for _ in range(2)]
    await one.connect(others[0].addresses()[0], PATIENCE)
    with pytest.raises(Unreachable, match="1 connections are open"):
        await one.connect(others[1].addresses()[0], PATIENCE)


async def test_handshakes_that_stall_end_after_their_time_and_let_others_in(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(max_pending=2, handshake_timeout=1.0))
    port = int(hub.addresses()[0].split("/")[4])
    stalled = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
    node = await start_node()
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await node.connect(hub.addresses()[0], PATIENCE)
                break
            except ServiceError:
                continue
        for socket in stalled:
            async with socket:
                async for _ in socket:  # what multistream says first, then the end
                    pass


async def test_twenty_nodes_that_start_at_once_all_get_in(start_node: StartNode) -> None:
    hub = await start_node()
    nodes = [await start_node() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(partial(node.connect, hub.addresses()[0], timeout=PATIENCE))
    met = {(await wait_event(hub, PeerConnected)).peer_id for _ in nodes}
    assert met == {node.peer_id for node in nodes}


async def test_a_peer_may_hold_so_many_streams_open(start_node: StartNode) -> None:
    hub = await start_node(NetworkSettings(max_streams_per_connection=6))
    node = await start_node()
    hub.serve(ECHO, echo)
    await node.connect(hub.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    async with trio.open_nursery() as nursery:
        report, reports = trio.open_memory_channel[int](12)

        async def hold() -> None:
            try:
                async with node.open(hub.peer_id, ECHO, PATIENCE) as stream:
                    await stream.send(b"?")
                    await report.send(int(await stream.receive(PATIENCE) == b"?"))
                    await trio.sleep_forever()
            except ServiceError:
                await report.send(0)

        for _ in range(12):
            nursery.start_soon(hold)
        with trio.fail_after(PATIENCE):
            held = sum([await reports.receive() for _ in range(12)])
        assert 3 <= held <= 6  # gossip and identify take some of the six
        nursery.cancel_scope.cancel()
    for _ in range(held):
        await wait_event(hub, CallServed)
    assert await node.call(hub.peer_id, ECHO, b"again", PATIENCE) == b"again"


async def test_a_node_serves_more_connections_in_its_life_than_it_has_room_for() -> None:
    hub = make_node(NetworkSettings(max_connections=4))
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        for _ in range(12):
            node = make_node()
            async with trio.open_nursery() as inner:
                await inner.start(node.run)
                with trio.fail_after(PATIENCE):
                    while True:
                        try:
                            await node.connect(hub.addresses()[0], PATIENCE)
                            break
                        except Unreachable:
                            await trio.sleep(0.05)
                inner.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
