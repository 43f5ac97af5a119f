"""What services may rely on, of the real network and of the one in memory alike: gossip and lookups."""

from collections.abc import Callable

import pytest
import trio

from loremesh.errors import (
    Fault,
    InvalidMessage,
)
from loremesh.network.events import (
    GossipReceived,
    GossipRefused,
    PeerDisconnected,
    ProviderRecord,
    ProvidersFound,
)
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB, PeerId
from loremesh.testing.either_network import Node, World, link, next_but_calls
from loremesh.testing.loopback import PATIENCE, TOPIC, anything, wait_event


def only_good(_signer: PeerId, data: bytes) -> None:
    if not data.startswith(b"good"):
        raise InvalidMessage(Fault.WRONG_SHAPE)


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
