"""What services may rely on, of the real network and of the one in memory alike: connections and calls."""

import secrets

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
from loremesh.network.events import (
    CallServed,
    PeerConnected,
    PeerDisconnected,
)
from loremesh.network.frames import Stream
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import KIB, MIB
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.either_network import Node, World, link, next_but_calls
from loremesh.testing.loopback import ECHO, PATIENCE, echo, wait_event

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
