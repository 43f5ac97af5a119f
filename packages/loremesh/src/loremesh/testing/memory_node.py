"""One node of a network in memory.

Different from a real one: gossip's mesh does not depend on how its members behave, and what is lost is not repaired;
subscriptions and the DHT's records are known at once; a bug in a handler or a check ends `run`, where a test sees it.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import trio

from loremesh.errors import (
    DeadlinePassed,
    Fault,
    InvalidMessage,
    LoremeshError,
    ProtocolError,
    Unreachable,
    UnsupportedProtocol,
    UsageError,
)
from loremesh.network.addresses import Endpoint
from loremesh.network.blame import fault_of
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
from loremesh.network.frames import Stream, ask
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import KIB, PeerId
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.testing.memory_gossip import Gossip, Inbox, Letter
from loremesh.testing.memory_link import Connection, Link, MemoryPipe, stream_between

Handler = Callable[[Stream], Awaitable[None]]
Accept = Callable[[PeerId, bytes], object]

_ENVELOPE: Final = 4 * KIB
_MESH: Final = 6
"""Neighbours that a node prefers for gossip: the degree of the real mesh."""
_PROVIDERS_WANTED: Final = 20
_SEEN: Final = 64 * KIB


class Surroundings(Protocol):
    """What a node needs of its network: `loremesh.testing.memory_network.MemoryNetwork`."""

    latency: float
    numbers: Iterator[int]
    """One for each gossip message; a node that restarts must not use one again."""

    def endpoints_of(self, peer_id: PeerId, settings: NetworkSettings) -> tuple[list[Endpoint], list[Endpoint]]:
        """Choose where a node listens, and what it tells others about that."""

    def attach(self, node: "MemoryNode", endpoints: Iterable[Endpoint]) -> None:
        """Let a node be dialled, or raise MachineError."""

    def detach(self, node: "MemoryNode") -> None:
        """Let a node be gone."""

    async def dial(self, dialler: "MemoryNode", endpoint: Endpoint) -> "MemoryNode":
        """Find the node at a place, or raise Unreachable."""

    def link(self, one: PeerId, other: PeerId) -> Link:
        """Give the link between two nodes."""

    def running(self, peer_id: PeerId) -> "MemoryNode":
        """Give a node that runs."""

    def within_reach(self, node: "MemoryNode") -> list["MemoryNode"]:
        """List the nodes that a lookup by `node` reaches."""


class MemoryNode:
    """One node: `Behaviour`'s methods with `Behaviour`'s meaning."""

    def __init__(self, network: Surroundings, identity: Identity, settings: NetworkSettings) -> None:
        self.peer_id = identity.peer_id
        self.dropped_events = 0
        self.dropped_gossip = 0
        """Messages that did not fit on their way to a slow neighbour."""
        self._network = network
        self._settings = settings
        self._listened, self._announced = network.endpoints_of(identity.peer_id, settings)
        self._tell, self.events = trio.open_memory_channel[NetworkEvent](settings.event_buffer)
        self._nursery: trio.Nursery | None = None
        self._gone = False
        self._connections: dict[PeerId, Connection] = {}
        self._attended = set[PeerId]()
        self._denied = frozenset[PeerId]()
        self._handlers: dict[str, Handler] = {}
        self._accepts: dict[str, Accept] = {}
        self._seen = OrderedDict[tuple[PeerId, int], None]()
        self._inbox = Inbox()
        self._favourites: dict[str, frozenset[PeerId]] = {}
        self._records: dict[str, dict[PeerId, ProviderRecord]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; `started` when it can be dialled. Afterwards every connection is closed.

        Raises:
            MachineError: The place is taken.
        """
        self._network.attach(self, [*self._listened, *self._announced])
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._hear)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            self._network.detach(self)
            for connection in list(self._connections.values()):
                connection.close()

    def vanish(self) -> None:
        """Be gone for everybody, as after SIGKILL: from now on nothing of this node is heard, goodbyes included."""
        self._gone = True
        for connection in list(self._connections.values()):
            connection.close()

    # peers

    @property
    def place(self) -> str:
        """Where it can be dialled whenever it runs."""
        return str(self._announced[0])

    def addresses(self) -> tuple[str, ...]:
        """List the addresses at which others can dial this node; none before `run`."""
        return () if self._nursery is None else tuple(map(str, self._announced))

    def connected(self) -> tuple[PeerId, ...]:
        """List the peers of which `PeerConnected` was or is about to be told."""
        return tuple(self._connections)

    async def connect(self, address: str, timeout: float = 5) -> PeerId:  # noqa: ASYNC109 - the real one's surface
        """Have a connection to the node at a multiaddr, and tell its peer id.

        Raises:
            UsageError: Not an address to dial.
            ConnectionRefused: Nobody listens there.
            Unreachable: No connection, or another peer answers, or it is denied here or there.
            DeadlinePassed: Not within `timeout` seconds.
        """
        endpoint = Endpoint.from_str(address)
        if endpoint.is_wildcard or not endpoint.port:
            raise UsageError(f"cannot dial {address}: it names no one place")
        if endpoint.peer_id == self.peer_id:
            raise UsageError(f"cannot dial {address}: that is this node")
        with trio.move_on_after(timeout):
            return await self._connect(endpoint)
        raise DeadlinePassed(f"no connection to {address} within {timeout:g} s")

    async def _connect(self, endpoint: Endpoint) -> PeerId:
        if endpoint.peer_id in self._connections:
            await trio.lowlevel.checkpoint()
            return endpoint.peer_id
        if len(self._connections) >= self._settings.max_connections:
            raise Unreachable(f"{self._settings.max_connections} connections are open already")
        listener = await self._network.dial(self, endpoint)
        if listener.peer_id in self._denied or not listener.has_room_for(self.peer_id):
            raise Unreachable(f"not welcome at {endpoint}")
        if self._nursery is None or self._gone:
            raise Unreachable("this node does not run")
        if listener.peer_id not in self._connections:  # it may have dialled us meanwhile
            link = self._network.link(self.peer_id, listener.peer_id)
            connection = Connection(link, self.peer_id, listener.peer_id, lambda: self._part(listener))
            self.take_in(connection, str(endpoint.of(listener.peer_id)).partition("/p2p/")[0])
            listener.take_in(connection, "/ip4/127.0.0.1/tcp/0")
        return listener.peer_id

    async def reaches(self, address: str, timeout: float = 5) -> bool:  # noqa: ASYNC109 - as above
        """Tell whether the peer that a multiaddr names is there, whatever connections there are to it.

        Raises:
            UsageError: Not an address to dial, or one that names no peer.
        """
        endpoint = Endpoint.from_str(address)
        if endpoint.is_wildcard or not endpoint.port or endpoint.peer_id is None:
            raise UsageError(f"cannot check {address}: it names no one place and peer")
        with trio.move_on_after(timeout):
            try:
                await self._network.dial(self, endpoint)
            except Unreachable:
                return False
            return True
        return False

    def _part(self, listener: "MemoryNode") -> None:
        self.let_go(listener.peer_id)
        listener.let_go(self.peer_id)

    def has_room_for(self, dialler: PeerId) -> bool:
        """Tell whether a dialler is let in."""
        return (
            not self._gone and dialler not in self._denied and len(self._connections) < self._settings.max_connections
        )

    def take_in(self, connection: Connection, address: str) -> None:
        """Have one connection more."""
        peer_id = connection.other(self.peer_id)
        self._connections[peer_id] = connection
        connection.gossip[peer_id].inbox = self._inbox
        if peer_id not in self._attended:
            self._attended.add(peer_id)
            self._start(self._attend, peer_id, address)

    def let_go(self, peer_id: PeerId) -> None:
        """Have one connection less."""
        del self._connections[peer_id]
        self._favourites.clear()

    async def _attend(self, peer_id: PeerId, address: str) -> None:
        while (connection := self._connections.get(peer_id)) is not None:
            try:
                await connection.go_there_and_back()
            except Unreachable:
                continue
            connection.is_usable = True
            self._favourites.clear()
            self._network.running(peer_id).has_news_of_neighbours()
            await self._tell.send(PeerConnected(peer_id, address, inbound=connection.listener == self.peer_id))
            await connection.closed.wait()
            await self._tell.send(PeerDisconnected(peer_id))
        self._attended.discard(peer_id)

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close the connection to a peer; it may come back."""
        await trio.lowlevel.checkpoint()
        if peer_id in self._connections:
            self._connections[peer_id].close()

    def deny(self, peers: frozenset[PeerId]) -> None:
        """Replace the deny list: its peers are disconnected, neither dialled nor let in, and not heard in gossip."""
        self._denied = peers
        for peer_id in peers & self._connections.keys():
            self._connections[peer_id].close()

    def usable_neighbours(self) -> list["MemoryNode"]:
        """List the nodes on the other side of connections that nothing cuts."""
        return [
            self._network.running(peer_id)
            for peer_id, connection in self._connections.items()
            if connection.is_usable and connection.link.is_open
        ]

    def _start(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    def _connection(self, peer_id: PeerId) -> Connection:
        if peer_id not in self._connections:
            raise Unreachable(f"not connected to {peer_id_text(peer_id)}")
        return self._connections[peer_id]

    # calls

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer streams of a protocol."""
        self._handlers[protocol] = handler

    @asynccontextmanager
    async def open(self, peer_id: PeerId, protocol: str, timeout: float = 5) -> AsyncIterator[Stream]:  # noqa: ASYNC109 - as above
        """Hold a stream to a connected peer; it is reset if the block raises, and finished if it does not.

        Raises:
            UnsupportedProtocol: The peer does not speak `protocol`.
            Unreachable: Not connected, or the stream could not be opened.
            DeadlinePassed: Not within `timeout` seconds.
        """
        connection = self._connection(peer_id)
        with trio.move_on_after(timeout) as deadline:
            await connection.go_there_and_back()
        if deadline.cancelled_caught:
            raise DeadlinePassed(f"no stream for {protocol} within {timeout:g} s")
        near, far = stream_between(connection, self.peer_id)
        self._network.running(peer_id).answer(protocol, connection, far)
        try:
            yield Stream(near, peer_id, max_frame=self._settings.max_frame)
        except BaseException:
            await near.reset()
            raise
        near.leave()

    def answer(self, protocol: str, connection: Connection, pipe: MemoryPipe) -> None:
        """Take in a stream that the other side opened.

        Raises:
            UnsupportedProtocol: Nothing serves `protocol` here.
            Unreachable: It has as many streams open as it may.
        """
        if protocol not in self._handlers:
            raise UnsupportedProtocol(f"the peer does not speak {protocol}")
        if connection.streams[self.peer_id] >= self._settings.max_streams_per_connection:
            raise Unreachable("the peer takes no more streams")
        connection.streams[self.peer_id] += 1
        self._start(self._serve, protocol, connection, pipe)

    async def _serve(self, protocol: str, connection: Connection, pipe: MemoryPipe) -> None:
        peer_id = connection.other(self.peer_id)
        fault: Fault | None = None
        try:
            await self._handlers[protocol](Stream(pipe, peer_id, max_frame=self._settings.max_frame))
            pipe.leave()
        except* LoremeshError as errors:
            fault = fault_of(errors, protocol)
            await pipe.reset()
        connection.streams[self.peer_id] -= 1
        self._tell_if_room(CallServed(protocol, peer_id, fault))

    async def call(self, peer_id: PeerId, protocol: str, frame: bytes, timeout: float) -> bytes:  # noqa: ASYNC109 - as above
        """Send one frame and receive one, all within `timeout` seconds.

        Raises:
            InvalidMessage: The answer is too long, or UNFINISHED: there was none.
            UnsupportedProtocol: The peer does not speak `protocol`.
            Unreachable: Not connected, or the stream broke.
            DeadlinePassed: Not in time.
        """
        return await ask(self.open(peer_id, protocol, timeout), protocol, frame, timeout)

    async def ping(self, peer_id: PeerId, timeout: float = 5) -> float:  # noqa: ASYNC109 - as above
        """Measure one round trip to a connected peer, in seconds.

        Raises:
            Unreachable: Not connected, or the connection broke.
            DeadlinePassed: Not within `timeout` seconds.
        """
        connection = self._connection(peer_id)
        started = trio.current_time()
        with trio.move_on_after(timeout):
            await connection.go_there_and_back()
            return trio.current_time() - started
        raise DeadlinePassed(f"no answer to a ping within {timeout:g} s")

    # gossip

    async def subscribe(self, topic: str, accept: Accept) -> None:
        """Receive and relay a topic's messages, those that `accept` lets through."""
        await trio.lowlevel.checkpoint()
        self._accepts[topic] = accept
        for peer_id in self._connections:
            self._network.running(peer_id).has_news_of_neighbours()

    def has_seen(self, message: Gossip) -> bool:
        """Tell whether a message has come here already, so that once more it would be dropped."""
        return (message.signer, message.number) in self._seen

    def has_topic(self, topic: str) -> bool:
        """Tell whether the node is subscribed."""
        return topic in self._accepts

    async def publish(self, topic: str, data: bytes) -> None:
        """Send a message to everyone subscribed to a topic that this node is subscribed to; it does not come back here.

        Raises:
            InvalidMessage: TOO_LARGE, it is longer than peers take.
        """
        if topic not in self._accepts:
            raise ValueError(f"not subscribed to {topic}")
        if len(data) > self._settings.max_frame - _ENVELOPE:
            raise InvalidMessage(Fault.TOO_LARGE, f"gossip of {len(data)} bytes")
        await trio.lowlevel.checkpoint()
        self._relay(Gossip(self.peer_id, next(self._network.numbers), topic, data), self.peer_id)

    async def _hear(self) -> None:
        while True:
            for letter in await self._inbox.take():
                self._take_gossip(letter)

    def _take_gossip(self, letter: Letter) -> None:
        message, forwarder = letter.message, letter.forwarder
        name = message.signer, message.number
        if message.topic not in self._accepts or message.signer in self._denied:
            return
        if name in self._seen and not letter.again:
            return
        self._seen[name] = None
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        try:
            value = self._accepts[message.topic](message.signer, message.data)
        except ProtocolError as error:
            self._tell_if_room(GossipRefused(message.topic, error.fault, message.signer, forwarder))
            return
        self._tell_if_room(GossipReceived(message.topic, message.data, message.signer, forwarder, value))
        if not letter.again:
            self._relay(message, forwarder)

    def has_news_of_neighbours(self) -> None:
        """Take in that a connection became usable, or a neighbour subscribed."""
        self._favourites.clear()

    def _relay(self, message: Gossip, forwarder: PeerId) -> None:
        for peer_id, connection in self._connections.items():
            if peer_id in (forwarder, message.signer) or not connection.is_usable:
                continue
            other = self._network.running(peer_id)
            # A mesh is mutual: what either side prefers, both use. Else somebody whom nobody prefers hears nothing.
            if peer_id not in self.favourites(message.topic) and self.peer_id not in other.favourites(message.topic):
                continue
            if not other.has_topic(message.topic) or other.has_seen(message):  # which changes nothing there but costs
                continue
            if connection.gossip[self.peer_id].is_full:
                self.dropped_gossip += 1
            else:
                connection.gossip[self.peer_id].put(message)

    def favourites(self, topic: str) -> frozenset[PeerId]:
        """Name the neighbours to whom this node prefers to pass on a topic's messages."""
        if topic not in self._favourites:
            usable = [(one.link.rank, peer_id) for peer_id, one in self._connections.items() if one.is_usable]
            listening = [peer_id for _, peer_id in sorted(usable) if self._network.running(peer_id).has_topic(topic)]
            self._favourites[topic] = frozenset(listening[:_MESH])
        return self._favourites[topic]

    def _tell_if_room(self, event: NetworkEvent) -> None:
        waiting = self._tell.statistics().current_buffer_used
        if waiting >= self._settings.event_buffer - self._settings.max_connections:  # the rest is for connection events
            self.dropped_events += 1
            return
        try:
            self._tell.send_nowait(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.dropped_events += 1  # nobody reads any more

    # discovery

    async def provide(self, key: str) -> None:
        """Say in the DHT that this node provides `key`. The record outlives the node, as in a real one."""
        await trio.sleep(2 * self._network.latency)
        record = ProviderRecord(self.peer_id, self.addresses())
        for node in self._network.within_reach(self):
            node.keep_record(key, record)

    def keep_record(self, key: str, record: ProviderRecord) -> None:
        """Remember who provides a key, if the node serves the DHT."""
        if self._settings.dht_server:
            self._records.setdefault(key, {})[record.peer_id] = record

    def records(self, key: str) -> list[ProviderRecord]:
        """List what the node remembers of a key."""
        return list(self._records.get(key, {}).values())

    async def find_providers(self, key: str, timeout: float = 5) -> tuple[ProviderRecord, ...]:  # noqa: ASYNC109 - as above
        """Ask the DHT who provides `key`, this node excepted; what it says may be out of date.

        Raises:
            DeadlinePassed: The lookup did not end within `timeout` seconds.
        """
        with trio.move_on_after(timeout) as deadline:
            await trio.sleep(2 * self._network.latency)
        if deadline.cancelled_caught:
            raise DeadlinePassed(f"the lookup of {key} did not end within {timeout:g} s")
        found: dict[PeerId, ProviderRecord] = {}
        for node in self._network.within_reach(self):
            for record in node.records(key):
                if record.peer_id != self.peer_id:
                    found.setdefault(record.peer_id, record)
        records = tuple(found.values())[:_PROVIDERS_WANTED]
        self._tell_if_room(ProvidersFound(key, records))
        return records
