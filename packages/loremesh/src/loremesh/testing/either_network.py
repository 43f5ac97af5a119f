"""Nodes of the real network or of the one in memory: what a test says of the one it says of the other."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import CallServed, NetworkEvent, PeerConnected
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity
from loremesh.testing.loopback import PATIENCE, patient, wait_event
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode

Node = Behaviour | MemoryNode
"""Of either network: mypy holds both to what is asked of one."""


@dataclass(slots=True)
class World:
    """Starts nodes, all of one kind, and stops them."""

    make: Callable[[Identity, NetworkSettings], Node]
    nursery: trio.Nursery
    scopes: dict[PeerId, tuple[trio.CancelScope, trio.Event]] = field(default_factory=dict)

    async def start(self, settings: NetworkSettings | None = None, secret: bytes | None = None) -> Node:
        """Start a node, which runs until the world ends."""
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
        """Stop a node, and wait until it has ended."""
        scope, stopped = self.scopes[node.peer_id]
        scope.cancel()
        with trio.fail_after(PATIENCE):
            await stopped.wait()


def world_of(kind: str, nursery: trio.Nursery) -> World:
    """Give a world without nodes.

    Args:
        kind: `memory` or `libp2p`.
        nursery: Its nodes run there.
    """
    network = MemoryNetwork(latency=0.001)

    def make_real(identity: Identity, settings: NetworkSettings) -> Node:
        return Behaviour(identity, patient(settings))

    def make_in_memory(identity: Identity, settings: NetworkSettings) -> Node:
        return network.node(identity, settings)

    return World(make_in_memory if kind == "memory" else make_real, nursery)


async def link(one: Node, other: Node) -> None:
    """Connect two nodes; both have told of it."""
    await one.connect(other.addresses()[0], PATIENCE)
    await wait_event(one, PeerConnected)
    await wait_event(other, PeerConnected)


async def next_but_calls(node: Node) -> NetworkEvent:
    """Read the next event that is not the end of a stream: real nodes have streams of their own, for gossip."""
    with trio.fail_after(PATIENCE):
        while isinstance(event := await node.events.receive(), CallServed):
            pass
        return event
