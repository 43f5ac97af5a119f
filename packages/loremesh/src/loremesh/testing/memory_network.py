"""A network in memory whose nodes have the surface of `loremesh.network.behaviour.Behaviour`, and none of its weight.

For tests of services under a virtual clock: delays are trio's sleeps, nothing touches a socket, and libp2p is not even
imported. Arrivals are a matter of the seed and not of the scheduler as long as the latency is not zero.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, count, product
from typing import Final

import trio

from loremesh.errors import ConnectionRefused, MachineError, Unreachable
from loremesh.network.addresses import Endpoint
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity
from loremesh.testing.memory_link import Link, Passage
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.weather import FAIR, Weather

_FIRST_PORT: Final = 4001


class MemoryNetwork:
    """Nodes, and what lies between them. `latency` is one way, in seconds; the weather makes each delay longer."""

    def __init__(self, *, latency: float = 0.01, seed: int = 0, weather: Weather = FAIR) -> None:
        self.latency = latency
        self._weather = weather
        self.numbers: Iterator[int] = count()
        self._seed = seed
        self._links: dict[frozenset[PeerId], Link] = {}
        self._owners: dict[tuple[str, int], PeerId] = {}
        self._ports: dict[PeerId, int] = {}
        self._running: dict[PeerId, MemoryNode] = {}

    def node(self, identity: Identity, settings: NetworkSettings | None = None) -> MemoryNode:
        """Make a node; it can be reached while its `run` runs. The same identity gets the same address again."""
        return MemoryNode(self, identity, settings or NetworkSettings())

    # what a test may do to it

    def cut(self, one: PeerId, other: PeerId, *, silently: bool = False) -> None:
        """Break the connection of two nodes and let none come about; silently: keep it, but let nothing through."""
        self.link(one, other).turn(Passage.SILENT if silently else Passage.CUT)

    def mute(self, sender: PeerId, receiver: PeerId) -> None:
        """Let nothing arrive that one node sends to another, though the other way stays open."""
        self.link(sender, receiver).mute(sender)

    def set_weather(self, weather: Weather) -> None:
        """Change the weather on every link; that of one link is its `weather`."""
        self._weather = weather
        for link in self._links.values():
            link.weather = weather

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Cut every link between two groups; a node in none of them keeps its links."""
        for one_side, other_side in combinations([list(group) for group in groups], 2):
            for one, other in product(one_side, other_side):
                self.cut(one, other)

    def heal(self) -> None:
        """Mend every link. Broken connections stay broken: to dial again is up to the nodes."""
        for link in self._links.values():
            link.turn(Passage.OPEN)

    def set_latency(self, one: PeerId, other: PeerId, latency: float) -> None:
        """Change the latency between two nodes, in seconds one way."""
        self.link(one, other).latency = latency

    # what the nodes need of it

    def link(self, one: PeerId, other: PeerId) -> Link:
        """Give the link between two nodes."""
        pair = frozenset((one, other))
        if pair not in self._links:
            names = "/".join(sorted(peer_id.hex() for peer_id in pair))
            self._links[pair] = Link(self.latency, f"{self._seed}/{names}", self._weather)
        return self._links[pair]

    def endpoints_of(self, peer_id: PeerId, settings: NetworkSettings) -> tuple[list[Endpoint], list[Endpoint]]:
        """Choose where a node listens, and what it tells others about that."""
        listened = []
        for endpoint in map(Endpoint.from_str, settings.listen_addresses):
            host = "127.0.0.1" if endpoint.is_wildcard else endpoint.host
            port = endpoint.port or self._ports.setdefault(peer_id, _FIRST_PORT + len(self._ports))
            listened.append(replace(endpoint, host=host, port=port, peer_id=peer_id))
        announced = [Endpoint.from_str(text).of(peer_id) for text in settings.announce_addresses]
        return listened, announced or listened

    def attach(self, node: MemoryNode, endpoints: Iterable[Endpoint]) -> None:
        """Let a node be dialled.

        Raises:
            MachineError: A place is taken.
        """
        places = [(endpoint.host, endpoint.port) for endpoint in endpoints]
        for host, port in places:
            if self._owners.get((host, port), node.peer_id) != node.peer_id or node.peer_id in self._running:
                raise MachineError(f"cannot listen at {host} (port {port}): address already in use")
        self._owners.update(dict.fromkeys(places, node.peer_id))
        self._running[node.peer_id] = node

    def detach(self, node: MemoryNode) -> None:
        """Let a node be gone: dials to it are refused."""
        del self._running[node.peer_id]

    async def dial(self, dialler: MemoryNode, endpoint: Endpoint) -> MemoryNode:
        """Find the node at a place, after the time this takes.

        Raises:
            ConnectionRefused: Nobody is there.
            Unreachable: The link is cut, or another peer is there than expected.
        """
        owner = self._owners.get((endpoint.host, endpoint.port))
        if owner is None:
            await trio.sleep(2 * self.latency)
            raise ConnectionRefused(f"nobody listens at {endpoint}")
        if owner == dialler.peer_id:
            raise Unreachable(f"no connection to {endpoint}: that is this node")
        await self.link(dialler.peer_id, owner).go_there_and_back()
        listener = self._running.get(owner)
        if listener is None:
            raise ConnectionRefused(f"nobody listens at {endpoint}")
        if endpoint.peer_id not in (None, owner):
            raise Unreachable(f"another peer answers at {endpoint}")
        return listener

    def within_reach(self, node: MemoryNode) -> list[MemoryNode]:
        """List the nodes that a lookup by `node` reaches, itself first, then from neighbour to neighbour."""
        reached = {node.peer_id: node}
        waiting = [node]
        while waiting:
            for neighbour in waiting.pop(0).usable_neighbours():
                if neighbour.peer_id not in reached:
                    reached[neighbour.peer_id] = neighbour
                    waiting.append(neighbour)
        return list(reached.values())

    def running(self, peer_id: PeerId) -> MemoryNode:
        """Give a node that runs."""
        return self._running[peer_id]
