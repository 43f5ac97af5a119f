"""What services may rely on, of the real network and of the one in memory alike."""

import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import pytest
import trio

from loremesh.errors import (
    ConnectionRefused,
    DeadlinePassed,
    Fault,
    InvalidMessage,
    MachineError,
    ProtocolError,
    Unreachable,
    UnsupportedProtocol,
    UsageError,
)
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import (
    CallServed,
    GossipReceived,
    GossipRefused,
    NetworkEvent,
    PeerConnected,
    PeerDisconnected,
    ProviderRecord,
    ProvidersFound,
)
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import KIB, MIB, PeerId
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.loopback import ECHO, PATIENCE, TOPIC, anything, echo, patient, wait_event
from loremesh.testing.memory_network import MemoryNetwork


class Node(Protocol):
    """The surface that services use; mypy holds both networks to it."""

    peer_id: PeerId
    dropped_events: int
    events: trio.MemoryReceiveChannel[NetworkEvent]

    async def run(self, *, task_status: trio.TaskStatus[None] = ...) -> None: ...
    def addresses(self) -> tuple[str, ...]: ...
    def connected(self) -> tuple[PeerId, ...]: ...
    async def connect(self, address: str, timeout: float = 5) -> PeerId: ...  # noqa: ASYNC109 - the surface
    async def disconnect(self, peer_id: PeerId) -> None: ...
    def deny(self, peers: frozenset[PeerId]) -> None: ...
    def serve(self, protocol: str, handler: Callable[[Stream], Awaitable[None]]) -> None: ...
    def open(self, peer_id: PeerId, protocol: str, timeout: float = 5) -> AbstractAsyncContextManager[Stream]: ...
    async def call(self, peer_id: PeerId, protocol: str, frame: bytes, timeout: float) -> bytes: ...  # noqa: ASYNC109 - the surface
    async def subscribe(self, topic: str, accept: Callable[[PeerId, bytes], None]) -> None: ...
    async def publish(self, topic: str, data: bytes) -> None: ...
    async def ping(self, peer_id: PeerId, timeout: float = 5) -> float: ...  # noqa: ASYNC109 - the surface
    async def provide(self, key: str) -> None: ...
    async def find_providers(self, key: str, timeout: float = 5) -> tuple[ProviderRecord, ...]: ...  # noqa: ASYNC109 - the surface


@dataclass
class World:
    """Starts nodes, all of one kind, and stops them."""

    make: Callable[[Identity, NetworkSettings], Node]
    nursery: trio.Nursery
    scopes: dict[PeerId, tuple[trio.CancelScope, trio.Event]] = field(default_factory=dict)

    async def start(self, settings: NetworkSettings | None = None, secret: bytes | None = None) -> Node:
        node = self.make(Identity.new(secret or secrets.token_bytes(32)), settings or NetworkSettings())
        await self.nursery.start(self._run, node)
        return node

    async def _run(self, node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        stopped = trio.Event()
        with trio.CancelScope() as scope:
            self.scopes[node.peer_id] = scope, stopped
            await node.run(task_status=task_status)
        stopped.set()

    async def stop(self, node: Node) -> None:
        scope, stopped = self.scopes[node.peer_id]
        scope.cancel()
        with trio.fail_after(PATIENCE):
            await stopped.wait()


def make_real(identity: Identity, settings: NetworkSettings) -> Node:
    return Behaviour(identity, patient(settings))


@pytest.fixture(params=["memory", "libp2p"])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    network = MemoryNetwork(latency=0.001)

    def make_in_memory(identity: Identity, settings: NetworkSettings) -> Node:
        return network.node(identity, settings)

    return World(make_in_memory if request.param == "memory" else make_real, nursery)


async def next_but_calls(node: Node) -> NetworkEvent:
    """Read the next event that is not the end of a stream: real nodes have streams of their own, for gossip."""
    with trio.fail_after(PATIENCE):
        while isinstance(event := await node.events.receive(), CallServed):
            pass
        return event


async def link(one: Node, other: Node) -> None:
    await one.connect(other.addresses()[0], PATIENCE)
    await wait_event(one, PeerConnected)
    await wait_event(other, PeerConnected)


def only_good(_signer: PeerId, data: bytes) -> None:
    if not data.startswith(b"good"):
        raise InvalidMessage(Fault.WRONG_SHAPE)


# connections


async def test_both_sides_are_told_of_a_connection_and_of_its_end(world: World) -> None:
    one, other = await world.start(), await world.start()

    assert await one.connect(other.addresses()[0], PATIENCE) == other.peer_id

    dialled, accepted = await wait_event(one, PeerConnected), await wait_event(other, PeerConnected)
    place = other.addresses()[0].partition("/p2p/")[0]
    assert dialled == PeerConnected(other.peer_id, place, inbound=False)
    assert (accepted.peer_id, accepted.inbound) == (one.peer_id, True)
    assert (one.connected(), other.connected()) == ((other.peer_id,), (one.peer_id,))
    await other.disconnect(one.peer_id)
    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(other.peer_id)
    assert await wait_event(other, PeerDisconnected) == PeerDisconnected(one.peer_id)
    assert (one.connected(), other.connected()) == ((), ())


async def test_a_peer_that_left_can_come_back(world: World) -> None:
    one, other = await world.start(), await world.start()
    for _ in range(3):
        await link(one, other)
        await one.disconnect(other.peer_id)
        await wait_event(one, PeerDisconnected)
        await wait_event(other, PeerDisconnected)


async def test_addresses_are_multiaddrs_that_end_in_the_peer_id(world: World) -> None:
    node = await world.start()

    (address,) = node.addresses()

    head, _, name = address.rpartition("/p2p/")
    assert name == peer_id_text(node.peer_id)
    assert head.startswith("/ip4/127.0.0.1/tcp/")


async def test_an_announced_address_is_told_instead_of_the_one_listened_at(world: World) -> None:
    node = await world.start(NetworkSettings(announce_addresses=("/dns4/story.example/tcp/4001",)))

    assert node.addresses() == (f"/dns4/story.example/tcp/4001/p2p/{peer_id_text(node.peer_id)}",)


async def test_the_peer_id_may_be_missing_from_an_address(world: World) -> None:
    one, other = await world.start(), await world.start()

    assert await one.connect(other.addresses()[0].partition("/p2p/")[0], PATIENCE) == other.peer_id


async def test_another_peer_than_expected_is_unreachable(world: World) -> None:
    one, other = await world.start(), await world.start()
    place = other.addresses()[0].partition("/p2p/")[0]
    stranger = peer_id_text(Identity.new(secrets.token_bytes(32)).peer_id)

    with pytest.raises(Unreachable) as caught:
        await one.connect(f"{place}/p2p/{stranger}", PATIENCE)

    assert type(caught.value) is Unreachable


async def test_connecting_twice_tells_of_one_connection(world: World) -> None:
    one, other = await world.start(), await world.start()
    await link(one, other)
    await one.connect(other.addresses()[0], PATIENCE)
    await one.disconnect(other.peer_id)

    assert await next_but_calls(one) == PeerDisconnected(other.peer_id)


async def test_a_node_that_stopped_refuses_connections(world: World) -> None:
    one, gone = await world.start(), await world.start()
    (address,) = gone.addresses()
    await link(one, gone)

    await world.stop(gone)

    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(gone.peer_id)
    for _ in range(2):
        with pytest.raises(ConnectionRefused):
            await one.connect(address, PATIENCE)


async def test_a_node_that_restarts_at_its_address_is_found_again(world: World) -> None:
    secret = secrets.token_bytes(32)
    one, gone = await world.start(), await world.start(secret=secret)
    (address,) = gone.addresses()
    await link(one, gone)
    await world.stop(gone)
    await wait_event(one, PeerDisconnected)

    back = await world.start(NetworkSettings(listen_addresses=(address.partition("/p2p/")[0],)), secret)

    assert back.addresses() == (address,)
    await link(one, back)


async def test_a_place_that_is_taken_is_the_machines_refusal(world: World) -> None:
    first = await world.start()
    taken = NetworkSettings(listen_addresses=(first.addresses()[0].partition("/p2p/")[0],))

    with pytest.raises(MachineError), trio.fail_after(PATIENCE):
        await world.make(Identity.new(secrets.token_bytes(32)), taken).run()


@pytest.mark.parametrize("address", ["", "127.0.0.1:4001", "/ip4/0.0.0.0/tcp/4001", "/ip4/127.0.0.1/tcp/0", "/x/y/z"])
async def test_what_cannot_be_dialled_is_wrong_usage(world: World, address: str) -> None:
    with pytest.raises(UsageError):
        await (await world.start()).connect(address)


async def test_dialling_oneself_is_wrong_usage(world: World) -> None:
    node = await world.start()

    with pytest.raises(UsageError):
        await node.connect(node.addresses()[0])


async def test_denied_peers_are_disconnected_and_let_in_by_neither_side(world: World) -> None:
    one, other = await world.start(), await world.start()
    await link(one, other)

    one.deny(frozenset({other.peer_id}))

    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(other.peer_id)
    assert await wait_event(other, PeerDisconnected) == PeerDisconnected(one.peer_id)
    for dialler, listener in ((one, other), (other, one)):
        with pytest.raises(Unreachable):
            await dialler.connect(listener.addresses()[0], PATIENCE)
    one.deny(frozenset())
    await link(other, one)


async def test_a_node_that_only_dials_has_no_address(world: World) -> None:
    one, other = await world.start(NetworkSettings(listen_addresses=())), await world.start()

    await link(one, other)

    assert one.addresses() == ()


async def test_a_ping_takes_some_seconds_but_not_many(world: World) -> None:
    one, other = await world.start(), await world.start()
    await link(one, other)

    assert 0 < await one.ping(other.peer_id, PATIENCE) < PATIENCE
    with pytest.raises(Unreachable):
        await one.ping(Identity.new(secrets.token_bytes(32)).peer_id)


# calls


async def test_a_call_is_answered_by_whom_it_was_meant_for(world: World) -> None:
    client, server = await world.start(), await world.start()
    callers = []

    async def answer(stream: Stream) -> None:
        callers.append(stream.peer_id)
        await echo(stream)

    server.serve(ECHO, answer)
    await link(client, server)

    assert await client.call(server.peer_id, ECHO, b"hello", PATIENCE) == b"hello"
    assert callers == [client.peer_id]
    assert await wait_event(server, CallServed) == CallServed(ECHO, client.peer_id, None)


async def test_frames_of_every_size_travel_both_ways_and_end_cleanly(world: World) -> None:
    client, server = await world.start(), await world.start()
    server.serve(ECHO, echo)
    await link(client, server)

    async with client.open(server.peer_id, ECHO, PATIENCE) as stream:
        assert stream.peer_id == server.peer_id
        for size in (0, 1, 70 * KIB, MIB):
            await stream.send(bytes(size), PATIENCE)
            assert await stream.receive(PATIENCE) == bytes(size)
        await stream.finish()
        assert await stream.receive(PATIENCE) is None


async def test_a_hundred_calls_share_a_connection(world: World) -> None:
    client, server = await world.start(), await world.start()
    server.serve(ECHO, echo)
    await link(client, server)
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        async with places:
            answers[number] = await client.call(server.peer_id, ECHO, b"%d" % number, PATIENCE)

    places = trio.Semaphore(16)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(ask, number)

    assert answers == {number: b"%d" % number for number in range(100)}


async def test_calling_needs_a_connection_and_a_protocol_both_speak(world: World) -> None:
    client, server = await world.start(), await world.start()

    with pytest.raises(Unreachable):
        await client.call(server.peer_id, ECHO, b"hello", PATIENCE)
    await link(client, server)
    with pytest.raises(UnsupportedProtocol):
        await client.call(server.peer_id, ECHO, b"hello", PATIENCE)


async def test_a_frame_too_long_is_refused_by_its_sender_and_by_a_reader_who_wants_less(world: World) -> None:
    client, server = await world.start(), await world.start()
    faults = []

    async def read_little(stream: Stream) -> None:
        try:
            await stream.receive(PATIENCE, limit=100)
        except ProtocolError as error:
            faults.append(error.fault)
            raise

    server.serve(ECHO, read_little)
    await link(client, server)

    with pytest.raises(InvalidMessage) as caught:
        await client.call(server.peer_id, ECHO, bytes(MIB + 1), PATIENCE)
    assert caught.value.fault is Fault.FRAME_TOO_LONG
    with pytest.raises(Unreachable):
        await client.call(server.peer_id, ECHO, bytes(101), PATIENCE)
    assert faults[-1] is Fault.FRAME_TOO_LONG
    assert (await wait_served(server)).fault is Fault.FRAME_TOO_LONG


async def wait_served(server: Node) -> CallServed:
    """Wait for a stream that ended by a fault: the one whose frame was never sent may end by none."""
    while (served := await wait_event(server, CallServed)).fault is None:
        pass
    return served


async def test_an_answer_that_never_begins_is_unfinished_and_one_that_never_comes_passes_the_deadline(
    world: World,
) -> None:
    client, server = await world.start(), await world.start()

    async def say_nothing(stream: Stream) -> None:
        await stream.receive(PATIENCE)

    async def hang(_stream: Stream) -> None:
        await trio.sleep_forever()

    server.serve("/loremesh/nothing/1", say_nothing)
    server.serve("/loremesh/hang/1", hang)
    await link(client, server)

    with pytest.raises(InvalidMessage) as caught:
        await client.call(server.peer_id, "/loremesh/nothing/1", b"hello", PATIENCE)
    assert caught.value.fault is Fault.UNFINISHED
    with pytest.raises(DeadlinePassed):
        await client.call(server.peer_id, "/loremesh/hang/1", b"hello", 0.5)


async def test_whoever_leaves_a_stream_by_an_error_breaks_it_for_the_other(world: World) -> None:
    client, server = await world.start(), await world.start()
    heard, broken = trio.Event(), trio.Event()

    async def wait_for_more(stream: Stream) -> None:
        assert await stream.receive(PATIENCE) == b"hello"
        heard.set()
        with pytest.raises(Unreachable):
            await stream.receive(PATIENCE)
        broken.set()

    server.serve(ECHO, wait_for_more)
    await link(client, server)

    with pytest.raises(KeyError):
        await open_send_and_raise(client, server, heard)

    with trio.fail_after(PATIENCE):
        await broken.wait()


async def open_send_and_raise(client: Node, server: Node, heard: trio.Event) -> None:
    async with client.open(server.peer_id, ECHO, PATIENCE) as stream:
        await stream.send(b"hello")
        with trio.fail_after(PATIENCE):
            await heard.wait()  # an error may overtake what is still on its way
        raise KeyError


async def test_a_writer_waits_for_a_reader_that_does_not_read(world: World) -> None:
    client, server = await world.start(), await world.start()

    async def hang(_stream: Stream) -> None:
        await trio.sleep_forever()

    server.serve(ECHO, hang)
    await link(client, server)

    with pytest.raises((DeadlinePassed, Unreachable)):
        await send_without_end(client, server)


async def send_without_end(client: Node, server: Node) -> None:
    async with client.open(server.peer_id, ECHO, PATIENCE) as stream:
        for _ in range(100):
            await stream.send(bytes(MIB), 1)


async def test_a_conversation_breaks_with_its_connection(world: World) -> None:
    client, server = await world.start(), await world.start()
    server.serve(ECHO, echo)
    await link(client, server)

    with pytest.raises(Unreachable):
        await talk_until_cut(client, server)


async def talk_until_cut(client: Node, server: Node) -> None:
    async with client.open(server.peer_id, ECHO, PATIENCE) as stream:
        await stream.send(b"hello")
        assert await stream.receive(PATIENCE) == b"hello"
        await server.disconnect(client.peer_id)
        await stream.receive(PATIENCE)


# gossip


async def publish_until_heard(sender: Node, hearer: Node, data: bytes) -> GossipReceived:
    """Publish now and then until a message arrives: a mesh takes a while to grow."""
    with trio.fail_after(PATIENCE):
        while True:
            await sender.publish(TOPIC, data)
            with trio.move_on_after(0.5):
                return await wait_event(hearer, GossipReceived)


async def line_of_three(world: World, middle_accepts: Callable[[PeerId, bytes], None]) -> list[Node]:
    nodes = [await world.start() for _ in range(3)]
    for node, accept in zip(nodes, (anything, middle_accepts, anything), strict=True):
        await node.subscribe(TOPIC, accept)
    await link(nodes[0], nodes[1])
    await link(nodes[1], nodes[2])
    return nodes


async def test_gossip_goes_from_neighbour_to_neighbour_and_says_who_signed_it(world: World) -> None:
    first, middle, last = await line_of_three(world, anything)

    heard = await publish_until_heard(first, last, b"hello")

    assert heard == GossipReceived(TOPIC, b"hello", signer=first.peer_id, forwarder=middle.peer_id)
    assert await wait_event(middle, GossipReceived) == GossipReceived(TOPIC, b"hello", first.peer_id, first.peer_id)


async def test_what_a_node_refuses_it_neither_delivers_nor_passes_on(world: World) -> None:
    first, middle, last = await line_of_three(world, only_good)
    await publish_until_heard(first, last, b"good day")

    await first.publish(TOPIC, b"bad day")
    refused = await wait_event(middle, GossipRefused)
    await first.publish(TOPIC, b"good night")

    assert refused == GossipRefused(TOPIC, Fault.WRONG_SHAPE, first.peer_id, first.peer_id)
    heard = b""
    while heard != b"good night":
        heard = (await wait_event(last, GossipReceived)).data
        assert heard.startswith(b"good")


async def test_each_message_is_heard_once_though_it_comes_by_two_ways_and_never_by_its_sender(world: World) -> None:
    nodes = [await world.start() for _ in range(3)]
    for node in nodes:
        await node.subscribe(TOPIC, anything)
    first, second, third = nodes
    await link(first, second)
    await link(third, first)
    await link(second, third)
    for hearer in (second, third):
        await publish_until_heard(first, hearer, b"start")

    for number in range(30):
        await first.publish(TOPIC, b"%d" % number)
    await first.publish(TOPIC, b"end")

    for hearer in (second, third):
        heard = []
        while b"end" not in heard:
            heard.append((await wait_event(hearer, GossipReceived)).data)
        numbers = [data for data in heard if data not in (b"start", b"end")]
        assert len(numbers) == len(set(numbers))
    await first.disconnect(second.peer_id)
    assert await next_but_calls(first) == PeerDisconnected(second.peer_id)  # and nothing of its own before


async def test_a_topic_that_is_not_subscribed_to_is_not_heard_and_cannot_be_published_to(world: World) -> None:
    one, other = await world.start(), await world.start()
    await one.subscribe(TOPIC, anything)
    await one.subscribe("/loremesh/other/1", anything)
    await other.subscribe(TOPIC, anything)
    await link(one, other)

    await publish_until_heard(one, other, b"start")
    await one.publish("/loremesh/other/1", b"unheard")
    await one.publish(TOPIC, b"end")

    with pytest.raises(ValueError, match="not subscribed"):
        await other.publish("/loremesh/other/1", b"x")
    while (heard := await wait_event(other, GossipReceived)).data != b"end":
        assert heard.topic == TOPIC


async def test_gossip_too_large_for_the_others_is_not_sent(world: World) -> None:
    node = await world.start()
    await node.subscribe(TOPIC, anything)

    with pytest.raises(InvalidMessage) as caught:
        await node.publish(TOPIC, bytes(MIB))

    assert caught.value.fault is Fault.TOO_LARGE


async def test_gossip_is_dropped_and_counted_when_nobody_reads_and_connection_events_are_not(world: World) -> None:
    small = NetworkSettings(event_buffer=20, max_connections=10)
    one, deaf = await world.start(), await world.start(small)
    for node in (one, deaf):
        await node.subscribe(TOPIC, anything)
    await link(one, deaf)

    with trio.fail_after(PATIENCE):
        while not deaf.dropped_events:
            await one.publish(TOPIC, b"x")
            await one.ping(deaf.peer_id, PATIENCE)
    await one.disconnect(deaf.peer_id)

    assert await wait_event(deaf, PeerDisconnected) == PeerDisconnected(one.peer_id)


# discovery


async def test_who_provides_a_key_is_found_by_others_and_not_by_itself(world: World) -> None:
    provider, server, asker = [await world.start() for _ in range(3)]
    await link(provider, server)
    await link(asker, server)

    await provider.provide("loremesh/role/executor")
    found: tuple[ProviderRecord, ...] = ()
    with trio.fail_after(PATIENCE):
        while not found:  # the record is on its way: sending it is not answered
            found = await asker.find_providers("loremesh/role/executor", PATIENCE)
            told = await wait_event(asker, ProvidersFound)
            assert told == ProvidersFound("loremesh/role/executor", found)

    assert found == (ProviderRecord(provider.peer_id, provider.addresses()),)
    assert await asker.find_providers("loremesh/role/nobody", PATIENCE) == ()
    assert await provider.find_providers("loremesh/role/executor", PATIENCE) == ()
