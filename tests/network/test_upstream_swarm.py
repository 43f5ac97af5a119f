"""`upstream/swarm.py`: slots that come back, dials that are quick, ports that are ours alone."""

import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected, PeerDisconnected
from loremesh.testing.loopback import PATIENCE, wait_event

from libp2p import new_host  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.network.config import ConnectionConfig  # isort: skip
from libp2p.network.exceptions import SwarmException  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.peer.peerinfo import PeerInfo  # isort: skip
from libp2p.transport.tcp.tcp import TCP  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]
ANYWHERE = Multiaddr("/ip4/127.0.0.1/tcp/0")


@asynccontextmanager
async def stock_listener(config: ConnectionConfig) -> AsyncIterator[Any]:
    host = new_host(
        key_pair=create_new_key_pair(secrets.token_bytes(32)), listen_addrs=[ANYWHERE], connection_config=config
    )
    vars(host.get_network())["auto_connector"].maybe_connect = trio.lowlevel.checkpoint
    async with host.run(listen_addrs=[ANYWHERE]):
        yield host
        await host.close()


async def poll(is_so: Callable[[], bool]) -> None:
    """Wait for what has no event to wait for."""
    with trio.fail_after(PATIENCE):
        while not is_so():  # noqa: ASYNC110 - upstream's tables have no event
            await trio.sleep(0.01)


async def dead_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    await listener.aclose()
    return port


async def test_canary_a_stock_listener_still_keeps_the_slots_of_closed_connections(start_stock: StartStock) -> None:
    config = ConnectionConfig(max_connections=2, min_connections=0, low_watermark=0, high_watermark=2)
    async with stock_listener(config) as listener:
        dialler = await start_stock()
        limiter = vars(listener.get_network())["_inbound_limiter"]
        for _ in range(2):
            connection = await dialler.get_network().dial_addr(listener.get_addrs()[0], listener.get_id())
            await connection.close()
        await poll(lambda: not listener.get_network().get_connections())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert limiter.borrowed_tokens == 2, "upstream gives slots back now: serve_socket and _shake_hands can go"


async def test_a_node_gives_the_slots_of_closed_connections_back(start_node: StartNode) -> None:
    hub, node = await start_node(), await start_node()
    for _ in range(3):
        await node.connect(hub.addresses()[0], PATIENCE)
        await wait_event(hub, PeerConnected)
        await node.disconnect(hub.peer_id)
        await wait_event(hub, PeerDisconnected)
    await poll(lambda: not hub._swarm._inbound)


async def test_dialling_does_not_wait_for_anything_but_the_other_side(start_node: StartNode) -> None:
    node = await start_node()
    took = PATIENCE
    with trio.fail_after(PATIENCE):
        while took >= 0.2:  # a machine that others keep busy may take as long; a dial that waits never takes less
            other = await start_node()
            started = time.perf_counter()
            await node.connect(other.addresses()[0], PATIENCE)
            took = time.perf_counter() - started


async def test_canary_stock_connect_still_waits_a_quarter_of_a_second(
    start_node: StartNode, start_stock: StartStock
) -> None:
    node, dialler = await start_node(), await start_stock()
    started = time.perf_counter()
    await dialler.connect(PeerInfo(ID(node.peer_id), [Multiaddr(node.addresses()[0].partition("/p2p/")[0])]))
    assert time.perf_counter() - started >= 0.25, "upstream's dial is quick now: BoundedSwarm.dial_peer can go"


async def test_a_lookup_reaches_a_peer_at_any_of_its_addresses_and_again_after_a_failure(start_node: StartNode) -> None:
    node, other = await start_node(), await start_node()
    dead = Multiaddr(f"/ip4/127.0.0.1/tcp/{await dead_port()}")
    store = node._host.get_peerstore()
    store.add_addrs(ID(other.peer_id), [dead], 600)
    with pytest.raises(SwarmException):
        await node._swarm.dial_peer(ID(other.peer_id))
    store.add_addrs(ID(other.peer_id), [Multiaddr(other.addresses()[0].partition("/p2p/")[0])], 600)
    assert await node._swarm.dial_peer(ID(other.peer_id))


async def test_canary_stock_dialling_still_tries_one_address_and_remembers_the_failure(
    start_node: StartNode, start_stock: StartStock
) -> None:
    node, dialler = await start_node(), await start_stock()
    vars(dialler.get_network())["retry_config"].max_retries = 0
    dead = Multiaddr(f"/ip4/127.0.0.1/tcp/{await dead_port()}")
    good = Multiaddr(node.addresses()[0].partition("/p2p/")[0])
    remedy = "upstream's dial tries everything now: look whether BoundedSwarm.dial_peer can go"
    assert not await is_dialled(dialler, node, [dead, good]), remedy
    dialler.get_peerstore().clear_addrs(ID(node.peer_id))
    assert not await is_dialled(dialler, node, [good]), remedy


async def is_dialled(dialler: Any, node: Behaviour, places: list[Multiaddr]) -> bool:
    try:
        await dialler.connect(PeerInfo(ID(node.peer_id), places))
    except SwarmException:
        return False
    return True


async def test_a_node_dials_nobody_it_was_not_told_to_dial(start_node: StartNode) -> None:
    node, known = await start_node(), await start_node()
    place = Multiaddr(known.addresses()[0].partition("/p2p/")[0])
    node._host.get_peerstore().add_addrs(ID(known.peer_id), [place], 600)
    await node._swarm.auto_connector.maybe_connect()
    assert node.connected() == ()


async def test_canary_the_stock_auto_connector_still_dials_unasked(start_node: StartNode) -> None:
    known = await start_node()
    config = ConnectionConfig(max_connections=10, min_connections=0, low_watermark=0, high_watermark=10)
    host = new_host(key_pair=create_new_key_pair(secrets.token_bytes(32)), connection_config=config)
    place = Multiaddr(known.addresses()[0].partition("/p2p/")[0])
    host.get_peerstore().add_addrs(ID(known.peer_id), [place], 600)
    async with host.run(listen_addrs=[]):
        with trio.move_on_after(PATIENCE) as too_late:
            await wait_event(known, PeerConnected)
        await host.close()
    assert not too_late.cancelled_caught, "upstream dials nobody with zero watermarks now: StillConnector can go"


async def test_canary_two_stock_listeners_still_share_a_port() -> None:
    async def ignore(_: Any) -> None:
        """Take no notice of a connection."""

    first, second = TCP().create_listener(ignore), TCP().create_listener(ignore)
    await first.listen(ANYWHERE)
    try:
        await second.listen(first.get_addrs()[0])
        shared = bool(second.get_addrs())
    finally:
        await second.close()
        await first.close()
    assert shared, "upstream takes a port for itself now: `listen` may go back to its listener"


def test_canary_stock_close_still_goes_from_connection_to_connection() -> None:
    source = inspect.getsource(vars(__import__("libp2p.network.swarm", fromlist=["Swarm"]))["Swarm"].close)
    one_after_another = "await conn.close()" in source and "start_soon" not in source
    assert one_after_another, "look whether close_all can go"
