"""`upstream/host.py`: identify belongs to a task of ours, and a ping measures time."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected
from loremesh.testing.loopback import PATIENCE, wait_event

from libp2p.host.basic_host import BasicHost  # isort: skip
from libp2p.host.ping import PingService  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]


async def test_identify_is_done_when_a_peer_is_announced(start_node: StartNode) -> None:
    node, other = await start_node(), await start_node()
    await node.connect(other.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    protocols = node._host.get_peerstore().get_protocols(ID(other.peer_id))
    assert {"/meshsub/1.1.0", "/loremesh/kad/1.0.0", "/ipfs/ping/1.0.0"} <= set(protocols)
    assert list(map(str, node._swarm.endpoints_of(ID(other.peer_id)))) == list(other.addresses())


async def test_a_connection_starts_no_task_outside_the_node(start_node: StartNode) -> None:
    node, other = await start_node(), await start_node()
    root = trio.lowlevel.current_root_task()
    assert root is not None
    before = {task for nursery in root.child_nurseries for task in nursery.child_tasks}
    await node.connect(other.addresses()[0], PATIENCE)
    await wait_event(node, PeerConnected)
    after = {task for nursery in root.child_nurseries for task in nursery.child_tasks}
    assert after <= before


def test_canary_stock_identify_still_runs_as_a_system_task() -> None:
    source = inspect.getsource(BasicHost._schedule_identify)
    assert "spawn_system_task" in source, "upstream's identify has an owner now: QuietHost._schedule_identify can go"


async def test_canary_stock_ping_still_measures_whole_milliseconds(
    start_node: StartNode, start_stock: StartStock
) -> None:
    node, stock = await start_node(), await start_stock()
    await stock.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    times = await PingService(stock).ping(ID(node.peer_id), ping_amt=5)
    assert all(isinstance(time, int) for time in times), "upstream measures parts of a millisecond now: `ping` can go"
