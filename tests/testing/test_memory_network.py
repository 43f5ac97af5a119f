"""What the network in memory can do to its nodes, under a clock that jumps."""

import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from loremesh.errors import ConnectionRefused, DeadlinePassed, Fault, InvalidMessage, MachineError, Unreachable
from loremesh.network.events import (
    CallServed,
    GossipReceived,
    NetworkEvent,
    PeerConnected,
    PeerDisconnected,
)
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.protocol.identity import Identity
from loremesh.testing.loopback import ECHO, TOPIC, anything
from loremesh.testing.memory_link import WINDOW
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode

Event = TypeVar("Event", bound=NetworkEvent)
StartNode = Callable[[MemoryNetwork], Awaitable[MemoryNode]]
HOUR = 3600.0


def identities() -> Iterator[Identity]:
    for number in range(1, 1000):
        yield Identity.new(number.to_bytes(32, "big"))


# The clock is an argument of every test, touched or not: pytest-trio runs a test under the clock among its arguments.


@pytest.fixture
def start(nursery: trio.Nursery) -> StartNode:
    names = identities()

    async def start_next(network: MemoryNetwork) -> MemoryNode:
        node = network.node(next(names))
        node.serve(ECHO, echo)
        await node.subscribe(TOPIC, anything)
        await nursery.start(node.run)
        return node

    return start_next


async def echo(stream: Stream) -> None:
    while (frame := await stream.receive(HOUR)) is not None:
        await stream.send(frame, HOUR)


async def wait_event(node: MemoryNode, kind: type[Event]) -> Event:
    with trio.fail_after(10 * HOUR):
        while True:
            event = await node.events.receive()
            if isinstance(event, kind):
                return event


async def link(one: MemoryNode, other: MemoryNode) -> None:
    await one.connect(other.addresses()[0])
    await wait_event(one, PeerConnected)
    await wait_event(other, PeerConnected)


def unread(node: MemoryNode) -> list[NetworkEvent]:
    events = []
    while node.events.statistics().current_buffer_used:
        events.append(node.events.receive_nowait())
    return events


# time


async def test_a_round_trip_takes_twice_the_latency_and_up_to_a_tenth_more(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork(latency=0.5)
    one, other = await start(network), await start(network)
    await link(one, other)

    before = autojump_clock.current_time()
    took = await one.ping(other.peer_id)

    assert 1.0 <= took <= 1.1
    assert took == autojump_clock.current_time() - before


async def test_the_latency_of_one_link_can_differ(start: StartNode, autojump_clock: MockClock) -> None:
    network = MemoryNetwork(latency=0.01)
    one, near, far = await start(network), await start(network), await start(network)
    network.set_latency(one.peer_id, far.peer_id, 2)
    await link(one, near)
    await link(one, far)

    assert await one.ping(near.peer_id) < 0.1
    assert await one.ping(far.peer_id) >= 4


async def test_a_slow_answer_passes_the_callers_deadline(start: StartNode, autojump_clock: MockClock) -> None:
    network = MemoryNetwork(latency=1)
    one, other = await start(network), await start(network)
    await link(one, other)

    assert await one.call(other.peer_id, ECHO, b"hello", 5) == b"hello"
    with pytest.raises(DeadlinePassed):
        await one.call(other.peer_id, ECHO, b"hello", 3)


async def test_the_bytes_of_a_stream_keep_their_order_whatever_the_delays(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork(latency=1)
    one, other = await start(network), await start(network)
    await link(one, other)

    async with one.open(other.peer_id, ECHO) as stream:
        for number in range(100):
            await stream.send(b"%d" % number)
        assert [await stream.receive(HOUR) for _ in range(100)] == [b"%d" % number for number in range(100)]


async def test_a_writer_waits_while_a_window_is_full_and_goes_on_when_it_is_read(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, other = await start(network), await start(network)
    reading = trio.Event()

    async def read_later(stream: Stream) -> None:
        await reading.wait()
        await echo(stream)

    other.serve("/loremesh/later/1", read_later)
    await link(one, other)
    async with one.open(other.peer_id, "/loremesh/later/1") as stream:
        await stream.send(bytes(WINDOW - 4))
        with pytest.raises(DeadlinePassed):
            await stream.send(b"too much")
        reading.set()
        assert await stream.receive(HOUR) == bytes(WINDOW - 4)


# cuts


async def test_a_cut_breaks_the_connection_and_lets_none_come_about_until_it_heals(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, other = await start(network), await start(network)
    await link(one, other)

    network.cut(one.peer_id, other.peer_id)

    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(other.peer_id)
    assert await wait_event(other, PeerDisconnected) == PeerDisconnected(one.peer_id)
    with pytest.raises(Unreachable) as caught:
        await one.connect(other.addresses()[0])
    assert not isinstance(caught.value, ConnectionRefused)
    network.heal()
    await link(other, one)


async def test_behind_a_silent_cut_nothing_breaks_and_nothing_answers(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, other, third = await start(network), await start(network), await start(network)
    await link(one, other)

    network.cut(one.peer_id, other.peer_id, silently=True)
    network.cut(one.peer_id, third.peer_id, silently=True)

    with pytest.raises(DeadlinePassed):
        await one.call(other.peer_id, ECHO, b"hello", HOUR)
    with pytest.raises(DeadlinePassed):
        await one.ping(other.peer_id, HOUR)
    with pytest.raises(DeadlinePassed):
        await one.connect(third.addresses()[0], HOUR)
    assert one.connected() == (other.peer_id,)
    assert PeerDisconnected(other.peer_id) not in unread(one)


async def test_what_was_sent_into_a_silent_cut_arrives_when_it_heals(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, other = await start(network), await start(network)
    await link(one, other)
    async with one.open(other.peer_id, ECHO) as stream:
        network.cut(one.peer_id, other.peer_id, silently=True)
        await stream.send(b"hello")
        await one.publish(TOPIC, b"gossip")
        await trio.sleep(HOUR / 4)
        await one.publish(TOPIC, b"more gossip")
        await trio.sleep(HOUR / 4)
        assert unread(other) == []

        network.heal()

        assert await stream.receive(1) == b"hello"
        assert (await wait_event(other, GossipReceived)).data == b"gossip"


async def test_a_partition_cuts_between_the_groups_and_not_inside_them(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    nodes = [await start(network) for _ in range(5)]
    for number, node in enumerate(nodes):
        for other in nodes[:number]:
            await link(node, other)
    a, b, c, d, outside = (node.peer_id for node in nodes)

    network.partition({a, b}, {c, d})

    assert [set(node.connected()) for node in nodes] == [
        {b, outside},
        {a, outside},
        {d, outside},
        {c, outside},
        {a, b, c, d},
    ]


async def test_gossip_finds_a_way_around_a_cut_and_none_through_a_partition(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, way, other, alone = [await start(network) for _ in range(4)]
    for pair in ((one, way), (way, other), (one, other), (other, alone)):
        await link(*pair)

    network.cut(one.peer_id, other.peer_id)
    network.partition({alone.peer_id}, {one.peer_id, way.peer_id, other.peer_id})
    await one.publish(TOPIC, b"hello")
    await trio.sleep(HOUR)

    (heard,) = [event for event in unread(other) if isinstance(event, GossipReceived)]
    assert heard.forwarder == way.peer_id
    assert unread(alone)[-1] == PeerDisconnected(other.peer_id)


async def test_lookups_do_not_cross_a_partition_and_records_outlive_their_provider(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    asker, keeper, cut_off = [await start(network) for _ in range(3)]
    provider = network.node(Identity.new(b"\x77" * 32))
    await link(asker, keeper)
    await link(cut_off, keeper)
    async with trio.open_nursery() as short:
        await short.start(provider.run)
        address = provider.addresses()
        await link(provider, keeper)
        network.partition({cut_off.peer_id}, {asker.peer_id, keeper.peer_id, provider.peer_id})
        await provider.provide("loremesh/role/executor")
        short.cancel_scope.cancel()

    (found,) = await asker.find_providers("loremesh/role/executor")

    assert (found.peer_id, found.addresses) == (provider.peer_id, address)
    assert await cut_off.find_providers("loremesh/role/executor") == ()


# nodes that come and go


async def test_the_same_identity_gets_the_same_address_and_hears_nothing_of_the_past(
    start: StartNode, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one = await start(network)
    identity = Identity.new(b"\x77" * 32)
    first = network.node(identity)
    async with trio.open_nursery() as short:
        await short.start(first.run)
        (address,) = first.addresses()
        await link(one, first)
        short.cancel_scope.cancel()
    assert first.addresses() == ()
    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(first.peer_id)
    with pytest.raises(ConnectionRefused):
        await one.connect(address)

    second = network.node(identity)
    await second.subscribe(TOPIC, anything)
    await nursery.start(second.run)
    await link(one, second)

    assert second.addresses() == (address,)
    await one.publish(TOPIC, b"now")
    assert (await wait_event(second, GossipReceived)).data == b"now"


async def test_messages_of_a_restarted_node_are_not_taken_for_those_of_its_first_life(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    hearer = await start(network)
    identity = Identity.new(b"\x77" * 32)
    heard = []
    for life in (b"first", b"second"):
        async with trio.open_nursery() as short:
            node = network.node(identity)
            await node.subscribe(TOPIC, anything)
            await short.start(node.run)
            await link(node, hearer)
            await node.publish(TOPIC, life)
            heard.append((await wait_event(hearer, GossipReceived)).data)
            short.cancel_scope.cancel()

    assert heard == [b"first", b"second"]


async def test_two_nodes_that_dial_each_other_share_one_connection(start: StartNode, autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    one, other = await start(network), await start(network)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.connect, other.addresses()[0])
        await trio.sleep(0.01)  # the first is half way by now
        nursery.start_soon(other.connect, one.addresses()[0])
    await trio.sleep(HOUR)

    assert [type(event) for event in unread(one)] == [PeerConnected]
    assert [type(event) for event in unread(other)] == [PeerConnected]
    await one.disconnect(other.peer_id)
    assert await wait_event(one, PeerDisconnected) == PeerDisconnected(other.peer_id)
    assert await wait_event(other, PeerDisconnected) == PeerDisconnected(one.peer_id)


async def test_an_identity_runs_once_at_a_time(start: StartNode, autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    identity = next(identities())
    await start(network)

    with pytest.raises(MachineError), trio.fail_after(HOUR):
        await network.node(identity).run()


async def test_unread_gossip_leaves_room_for_connection_events(
    start: StartNode, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one = await start(network)
    deaf = network.node(Identity.new(b"\x77" * 32), NetworkSettings(event_buffer=20, max_connections=10))
    await deaf.subscribe(TOPIC, anything)
    await nursery.start(deaf.run)
    await link(one, deaf)

    for _ in range(100):
        await one.publish(TOPIC, b"x")
    await trio.sleep(HOUR)

    assert deaf.dropped_events == 90
    assert [type(event) for event in unread(deaf)] == [GossipReceived] * 10


async def test_a_full_node_lets_nobody_in(start: StartNode, nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    full = network.node(Identity.new(b"\x77" * 32), NetworkSettings(max_connections=1))
    await nursery.start(full.run)
    first, second = await start(network), await start(network)
    await link(first, full)

    with pytest.raises(Unreachable):
        await second.connect(full.addresses()[0])
    with pytest.raises(Unreachable):
        await full.connect(second.addresses()[0])


async def test_a_peer_may_hold_so_many_streams_open_and_no_more(
    start: StartNode, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    server = network.node(Identity.new(b"\x77" * 32), NetworkSettings(max_streams_per_connection=2))
    server.serve(ECHO, echo)
    await nursery.start(server.run)
    one = await start(network)
    await link(one, server)

    async with one.open(server.peer_id, ECHO), one.open(server.peer_id, ECHO):
        with pytest.raises(Unreachable):
            await one.call(server.peer_id, ECHO, b"one too many", 5)
    await wait_event(server, CallServed)

    assert await one.call(server.peer_id, ECHO, b"now", 5) == b"now"


# blame


async def test_a_handler_that_blames_its_peer_from_inside_a_nursery_names_the_fault(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one, other = await start(network), await start(network)

    async def refuse(_stream: Stream) -> None:
        async with trio.open_nursery() as inner:
            inner.start_soon(blame)

    async def blame() -> None:
        await trio.lowlevel.checkpoint()
        raise InvalidMessage(Fault.UNEXPECTED)

    other.serve("/loremesh/refuse/1", refuse)
    await link(one, other)

    with pytest.raises(Unreachable):
        await one.call(other.peer_id, "/loremesh/refuse/1", b"hello", 5)
    assert await wait_event(other, CallServed) == CallServed("/loremesh/refuse/1", one.peer_id, Fault.UNEXPECTED)


async def test_a_bug_in_a_handler_ends_the_node_where_a_test_sees_it(
    start: StartNode, autojump_clock: MockClock
) -> None:
    network = MemoryNetwork()
    one = await start(network)
    buggy = network.node(Identity.new(b"\x77" * 32))

    async def bug(_stream: Stream) -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    buggy.serve(ECHO, bug)
    with pytest.RaisesGroup(ZeroDivisionError, Unreachable, flatten_subgroups=True):
        await run_and_call(buggy, one)


async def run_and_call(buggy: MemoryNode, caller: MemoryNode) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(buggy.run)
        await caller.connect(buggy.addresses()[0])
        await caller.call(buggy.peer_id, ECHO, b"hello", HOUR)


# repeatability


async def gossip_history(start: StartNode, seed: int) -> list[tuple[float, int, GossipReceived]]:
    """Let eight nodes talk at once and write down who heard what when."""
    network = MemoryNetwork(latency=0.05, seed=seed)
    nodes = [await start(network) for _ in range(8)]
    for number, node in enumerate(nodes):
        for other in nodes[max(0, number - 3) : number]:
            await link(node, other)
    await trio.sleep(1)
    began = trio.current_time()
    history = []

    async def write_down(number: int) -> None:
        while True:
            event = await wait_event(nodes[number], GossipReceived)
            history.append((trio.current_time() - began, number, event))

    with trio.move_on_after(HOUR):
        async with trio.open_nursery() as nursery:
            for number, node in enumerate(nodes):
                nursery.start_soon(write_down, number)
                nursery.start_soon(node.publish, TOPIC, b"%d" % number)
    return history


async def test_one_seed_is_one_history_and_another_seed_another(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    histories = []
    for seed in (1, 1, 2):
        names = identities()

        async def start_named(network: MemoryNetwork, names: Iterator[Identity] = names) -> MemoryNode:
            node = network.node(next(names))
            await node.subscribe(TOPIC, anything)
            await nursery.start(node.run)
            return node

        histories.append(await gossip_history(start_named, seed))

    heard = [[(number, event) for _, number, event in history] for history in histories]
    assert len(heard[0]) == 8 * 7
    assert heard[0] == heard[1]
    assert heard[0] != heard[2]


def test_it_comes_without_libp2p() -> None:
    program = "import sys; import loremesh.testing.memory_network; sys.exit('libp2p' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
