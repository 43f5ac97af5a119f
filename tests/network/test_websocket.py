"""WebSocket: the same node, the same rules, another port."""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from loremesh.errors import Unreachable
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import GossipReceived, PeerConnected, PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import KIB, MIB
from loremesh.testing.loopback import ECHO, PATIENCE, TOPIC, anything, echo, wait_event

StartNode = Callable[..., Awaitable[Behaviour]]
BOTH = NetworkSettings(listen_addresses=("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws"))


def port_of(address: str) -> int:
    return int(address.split("/")[4])


async def test_two_nodes_talk_over_a_websocket(start_node: StartNode) -> None:
    server, client = await start_node(BOTH), await start_node(NetworkSettings(listen_addresses=()))
    server.serve(ECHO, echo)
    for node in (server, client):
        await node.subscribe(TOPIC, anything)
    [address] = [one for one in server.addresses() if "/ws/p2p/" in one]

    assert await client.connect(address, PATIENCE) == server.peer_id

    assert (await wait_event(client, PeerConnected)).address == address.partition("/p2p/")[0]
    assert (await wait_event(server, PeerConnected)).address.endswith("/ws")
    frame = secrets.token_bytes(MIB - KIB)
    assert await client.call(server.peer_id, ECHO, frame, PATIENCE) == frame
    await client.publish(TOPIC, b"up")
    assert (await wait_event(server, GossipReceived)).data == b"up"
    await server.publish(TOPIC, b"down")
    assert (await wait_event(client, GossipReceived)).data == b"down"
    await client.disconnect(server.peer_id)
    await wait_event(server, PeerDisconnected)


async def test_a_node_that_is_not_told_to_listen_for_websockets_does_not(start_node: StartNode) -> None:
    server, client = await start_node(), await start_node()
    [address] = server.addresses()
    place, _, name = address.partition("/p2p/")
    with pytest.raises(Unreachable):
        await client.connect(f"{place}/ws/p2p/{name}", PATIENCE)
    assert await client.connect(address, PATIENCE) == server.peer_id


async def test_the_limits_of_tcp_hold_for_websockets_too(start_node: StartNode) -> None:
    listen = ("/ip4/127.0.0.1/tcp/0/ws",)
    server = await start_node(NetworkSettings(listen_addresses=listen, max_connections_per_loopback_address=2))
    clients = [await start_node() for _ in range(3)]
    for client in clients[:2]:
        await client.connect(server.addresses()[0], PATIENCE)
    with pytest.raises(Unreachable):
        await clients[2].connect(server.addresses()[0], PATIENCE)


HELLO = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
KEYED = HELLO + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"


@pytest.mark.parametrize(
    "junk",
    [
        b"\x13/multistream/1.0.0\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        HELLO + b"\r\n",
        HELLO + b"X: " + b"y" * 100_000,
        KEYED + b"\x82\xff" + b"\xff" * 8,
        KEYED + b"\x82\x7e\x00\x02xx",
        KEYED + b"\x81\x82abcdef",
        KEYED + b"\x89\x80abcd" * 1000,
        KEYED + b"\xf2\x84abcdabcd",
        KEYED + b"\x88\x80abcd",
    ],
)
async def test_whoever_speaks_something_else_there_is_let_go_and_the_node_lives(
    start_node: StartNode, junk: bytes
) -> None:
    server = await start_node(NetworkSettings(listen_addresses=("/ip4/127.0.0.1/tcp/0/ws",), handshake_timeout=1))
    stranger = await trio.open_tcp_stream("127.0.0.1", port_of(server.addresses()[0]))
    async with stranger:
        with trio.fail_after(PATIENCE):
            try:
                await stranger.send_all(junk)
                while await stranger.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
    client = await start_node()
    assert await client.connect(server.addresses()[0], PATIENCE) == server.peer_id


async def test_a_listener_that_is_no_websocket_is_unreachable(start_node: StartNode, nursery: trio.Nursery) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await stream.receive_some()

    [listener] = await nursery.start(partial(trio.serve_tcp, refuse, 0, host="127.0.0.1"))
    client = await start_node()
    with pytest.raises(Unreachable):
        await client.connect(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/ws", PATIENCE)
