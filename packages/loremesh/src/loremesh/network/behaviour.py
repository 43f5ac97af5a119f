"""One node's network: discovery, gossip and calls behind one class and one stream of typed events.

Importing this module imports libp2p, which takes a second or two. Source: docs/protocol/network.md.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from loremesh.errors import (
    DeadlinePassed,
    Fault,
    InvalidMessage,
    ProtocolError,
    Unreachable,
    UsageError,
)
from loremesh.network.addresses import Endpoint, endpoint_to_dial
from loremesh.network.blame import fault_of
from loremesh.network.events import (
    CallServed,
    GossipReceived,
    GossipRefused,
    NetworkEvent,
    PeerConnected,
    PeerDisconnected,
    PeerNearby,
    ProviderRecord,
    ProvidersFound,
)
from loremesh.network.frames import Stream, ask
from loremesh.network.local import dialable, multicast_hosts
from loremesh.network.locks import KeyedLocks
from loremesh.network.mdns import Mdns
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream import circuits, gossipsub, kademlia, pubsub, relay
from loremesh.network.upstream.gate import Gate
from loremesh.network.upstream.host import PING_PROTOCOL, QuietHost, ping
from loremesh.network.upstream.listening import Listening
from loremesh.network.upstream.services import running
from loremesh.network.upstream.streams import StreamPipe, opened
from loremesh.network.upstream.swarm import close_quietly, endpoints_among, is_alive, is_inbound
from loremesh.network.upstream.watch import Watch
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity, check_peer_id, peer_id_text

_log = logging.getLogger("loremesh.network")
_PROVIDE_DEADLINE: Final = 30.0
_PROVIDERS_WANTED: Final = 20

Handler = Callable[[Stream], Awaitable[None]]
"""Serves one stream; a ProtocolError it raises is the peer's fault, a ServiceError nobody's, the rest are our bugs."""

Accept = Callable[[PeerId, bytes], object]
"""Checks one gossip message, given its signer and data: quick and pure; raises ProtocolError to refuse it.

What it returns travels on with the message, as `GossipReceived.value`."""


class Behaviour:
    """A node's network. Make it, `serve` and `subscribe`, then `run` it; read `events` all the while.

    Gossip and `CallServed` events are dropped and counted in `dropped_events` when the reader falls behind (gossip is
    a hint); connection events never are.
    """

    def __init__(self, identity: Identity, settings: NetworkSettings) -> None:
        self.peer_id = identity.peer_id
        self.dropped_events = 0
        self._settings = settings
        self._listen = [Endpoint.from_str(text) for text in settings.listen_addresses]
        self._announced = [Endpoint.from_str(text) for text in settings.announce_addresses]
        self._tell, self.events = trio.open_memory_channel[NetworkEvent](settings.event_buffer)
        self._denied = frozenset[PeerId]()
        self._accepts: dict[str, Accept] = {}
        self._attended: dict[PeerId, trio.Event] = {}
        self._dialling = KeyedLocks[PeerId]()
        self._nursery: trio.Nursery | None = None
        self._build(identity)

    def _build(self, identity: Identity) -> None:
        settings = self._settings
        self._gate = Gate(
            identity.secret,
            self._is_welcome,
            max_streams=settings.max_streams_per_connection,
            timeout=settings.handshake_timeout,
        )
        self._host = QuietHost(identity.secret, self._gate, settings)
        self._swarm = self._host.swarm
        self._router = gossipsub.Router(settings)
        self._pubsub = pubsub.ContainedPubsub(
            self._host,
            self._router,
            settings,
            admit=self._admit_gossip,
            refuse=self._refuse_gossip,
            is_denied=lambda peer_id: peer_id in self._denied,
        )
        self._kademlia = kademlia.BoundedKademlia(self._host, server=settings.dht_server)
        self._swarm.register_notifee(Watch(self.on_connection, self.on_disconnection))
        self._mdns = Mdns(self.addresses, self._on_nearby) if settings.mdns else None
        self._circuits = circuits.Circuits(self._host, self._swarm)
        handlers = {gossipsub.PROTOCOL: self._pubsub.stream_handler}
        if settings.relay:
            handlers[relay.HOP] = relay.Relay(self._host, self._swarm, lambda: self._host.advertised).handle_hop
        if any(endpoint.relay is not None for endpoint in self._listen):
            handlers[relay.STOP] = self._circuits.handle_stop
        for protocol, handler in handlers.items():
            self._host.set_stream_handler(protocol, self._blaming(protocol, handler))

    # running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; `started` when listening. Afterwards every socket is closed and the port is free.

        Raises:
            MachineError: A port is taken or not ours to take; nothing runs then.
        """
        listening = Listening(self._gate.quic)
        await listening.open(endpoint for endpoint in self._listen if endpoint.relay is None)
        if self._mdns is not None:
            try:
                await self._mdns.open(multicast_hosts(listening.endpoints()))
            except BaseException:
                listening.close()
                raise
        places = self._announced or dialable(listening.endpoints())
        self._host.advertised = [Multiaddr(str(place.of(self.peer_id))) for place in places]
        stopping = trio.Event()
        # The services run behind a shield, so that a cancelled node first says goodbye; it takes at most 2 s.
        async with trio.open_nursery() as nursery:
            # A start that is cancelled waits for the end of what it has started, and that is shielded.
            with trio.CancelScope(shield=True):
                await nursery.start(self._run_services, listening, stopping)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                stopping.set()

    async def _run_services(
        self,
        listening: Listening,
        stopping: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope(shield=True) as shield:
            async with AsyncExitStack() as stack:
                for service in (self._swarm, self._router, self._pubsub, self._kademlia):
                    await stack.enter_async_context(running(service))
                await self._pubsub.wait_until_ready()
                self._nursery = await stack.enter_async_context(trio.open_nursery())
                accepting = await self._nursery.start(self._accept_sockets, listening)
                if self._mdns is not None:
                    self._nursery.start_soon(self._mdns.run)
                for endpoint in self._listen:
                    if endpoint.relay is not None:
                        self._nursery.start_soon(self._circuits.keep, endpoint, self._on_reservation)
                task_status.started()
                await stopping.wait()
                accepting.cancel()
                await self._swarm.close_all()
                self._nursery = None
                shield.cancel()

    async def _accept_sockets(self, listening: Listening, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        assert self._nursery is not None  # noqa: S101 - for the type checker: our caller has just opened it
        with trio.CancelScope() as accepting:
            task_status.started(accepting)
            await listening.serve(self._swarm, self._nursery)

    def _on_reservation(self, endpoint: Endpoint, is_kept: bool) -> None:  # noqa: FBT001 - a plain callback
        place = Multiaddr(str(endpoint.of(self.peer_id)))
        others = [known for known in self._host.advertised if known != place]
        self._host.advertised = [*others, place] if is_kept else others

    def _on_nearby(self, peer_id: PeerId, addresses: tuple[str, ...]) -> None:
        if self._is_welcome(peer_id):
            self._tell_if_room(PeerNearby(peer_id, addresses))

    # peers

    def addresses(self) -> tuple[str, ...]:
        """List the addresses at which others can dial this node, each ending in /p2p/<peer id>; none before `run`."""
        return tuple(str(address) for address in self._host.advertised)

    def connected(self) -> tuple[PeerId, ...]:
        """List the peers of which `PeerConnected` was or is about to be told."""
        return tuple(peer_id for peer_id in self._attended if self._is_connected(peer_id))

    async def connect(self, address: str, timeout: float = 5) -> PeerId:  # noqa: ASYNC109 - seconds, as everywhere here
        """Have a connection to the node at a multiaddr, and tell its peer id; without /p2p whoever answers is right.

        Raises:
            UsageError: Not an address to dial.
            ConnectionRefused: Nobody listens there.
            Unreachable: No connection, or another peer answers, or it is denied here or there.
            DeadlinePassed: Not within `timeout` seconds.
        """
        endpoint = endpoint_to_dial(address)
        if endpoint.peer_id == self.peer_id:
            raise UsageError(f"cannot dial {address}: that is this node")
        with trio.move_on_after(timeout):
            return await self._connect(endpoint)
        raise DeadlinePassed(f"no connection to {address} within {timeout:g} s")

    async def _connect(self, endpoint: Endpoint) -> PeerId:
        if endpoint.peer_id is None:
            return await self._dial(endpoint)
        if endpoint.peer_id in self._denied:
            raise Unreachable(f"{peer_id_text(endpoint.peer_id)} is on the deny list")
        async with self._dialling.of(endpoint.peer_id):
            for connection in self._swarm.get_connections(ID(endpoint.peer_id)):
                if await is_alive(connection):
                    return endpoint.peer_id
                self._start(close_quietly, connection)
            return await self._dial(endpoint)

    async def _dial(self, endpoint: Endpoint) -> PeerId:
        connection = await self._swarm.dial(endpoint)
        return PeerId(connection.muxed_conn.peer_id.to_bytes())

    async def reaches(self, address: str, timeout: float = 5) -> bool:  # noqa: ASYNC109 - as above
        """Tell whether the peer that a multiaddr names proves its key there, whatever connections there are to it.

        Raises:
            UsageError: Not an address to dial, or one that names no peer.
        """
        endpoint = endpoint_to_dial(address)
        if endpoint.peer_id is None:
            raise UsageError(f"cannot check {address}: it names no peer")
        if endpoint.relay == self.peer_id:
            return self._is_connected(endpoint.peer_id)
        with trio.move_on_after(timeout):
            return await self._swarm.reaches(endpoint)
        return False

    async def disconnect(self, peer_id: PeerId) -> None:
        """Close every connection to a peer; it may come back."""
        async with trio.open_nursery() as nursery:
            for connection in self._swarm.get_connections(ID(peer_id)):
                nursery.start_soon(close_quietly, connection)

    def deny(self, peers: frozenset[PeerId]) -> None:
        """Replace the deny list: its peers are disconnected, neither dialled nor let in, and not heard in gossip."""
        self._denied = peers
        for peer_id in peers:
            if self._is_connected(peer_id):
                self._start(self.disconnect, peer_id)

    def _is_welcome(self, peer_id: PeerId) -> bool:
        return peer_id not in self._denied and peer_id != self.peer_id

    def _is_connected(self, peer_id: PeerId) -> bool:
        return any(not connection.is_closed for connection in self._swarm.get_connections(ID(peer_id)))

    def on_connection(self, connection: INetConn) -> None:
        """Take in that the swarm has one connection more."""
        peer_id = PeerId(connection.muxed_conn.peer_id.to_bytes())
        older = [known for known in self._swarm.get_connections(ID(peer_id)) if known is not connection]
        if older:
            self._start(self._settle, ID(peer_id), older)
        if peer_id not in self._attended:
            self._attended[peer_id] = trio.Event()
            self._start(self._attend, peer_id, connection)

    def on_disconnection(self, connection: INetConn) -> None:
        """Take in that the swarm has one connection less."""
        changed = self._attended.get(PeerId(connection.muxed_conn.peer_id.to_bytes()))
        if changed is not None:
            changed.set()

    async def _settle(self, peer_id: ID, older: list[INetConn]) -> None:
        """Leave one connection to a peer: not one that has gone silent, and of a mutual dial the agreed one."""
        await self._swarm.retire(older)
        leaving = self._swarm.prefer(peer_id)
        if not leaving:
            return
        try:
            await self._pubsub.welcome(peer_id)  # gossip moves over, so that the others fall idle
        except Unreachable as error:
            _log.debug("%s without gossip: %s", peer_id, error)
        async with trio.open_nursery() as nursery:
            for connection in leaving:
                nursery.start_soon(self._swarm.close_when_idle, connection)

    async def _attend(self, peer_id: PeerId, connection: INetConn) -> None:
        try:
            while self._is_connected(peer_id):
                with trio.move_on_after(self._settings.handshake_timeout):
                    await self._welcome(ID(peer_id))
                if not self._is_connected(peer_id):
                    break
                inbound = is_inbound(connection)
                places = [str(address) for address in connection.get_transport_addresses()]
                await self._tell.send(PeerConnected(peer_id, places[0] if places else "", inbound))
                while self._is_connected(peer_id):
                    await self._attended[peer_id].wait()
                    self._attended[peer_id] = trio.Event()
                await self._tell.send(PeerDisconnected(peer_id))
                connection = next(iter(self._swarm.get_connections(ID(peer_id))), connection)
        finally:
            del self._attended[peer_id]
            self._host.forget(ID(peer_id))

    async def _welcome(self, peer_id: ID) -> None:
        await self._host.identify(peer_id)
        await self._kademlia.add_peer(peer_id)
        try:
            await self._pubsub.welcome(peer_id)
        except Unreachable as error:
            _log.debug("%s without gossip: %s", peer_id, error)

    def _start(self, task: Callable[..., Awaitable[object]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, *args)

    # calls

    def serve(self, protocol: str, handler: Handler) -> None:
        """Answer streams of a protocol. Whatever a handler raises ends its stream and nothing else."""

        async def handle(stream: INetStream) -> None:
            pipe = StreamPipe(stream)
            peer_id = check_peer_id(stream.muxed_conn.peer_id.to_bytes())
            await handler(Stream(pipe, peer_id, max_frame=self._settings.max_frame))
            self._start(pipe.linger)

        self._host.set_stream_handler(TProtocol(protocol), self._blaming(protocol, handle))

    def _blaming(
        self, protocol: str, handle: Callable[[INetStream], Awaitable[None]]
    ) -> Callable[[INetStream], Awaitable[None]]:
        async def blaming(stream: INetStream) -> None:
            peer_id = PeerId(stream.muxed_conn.peer_id.to_bytes())
            fault: Fault | None = None
            try:
                await handle(stream)
            except Exception as error:  # noqa: BLE001 - no stream may end the node; `fault_of` tells whose doing it was
                fault = fault_of(error, f"{protocol} of {peer_id_text(peer_id)}")
                await StreamPipe(stream).reset()
            except BaseException:
                await StreamPipe(stream).reset()
                raise
            self._tell_if_room(CallServed(protocol, peer_id, fault))

        return blaming

    @asynccontextmanager
    async def open(self, peer_id: PeerId, protocol: str, timeout: float = 5) -> AsyncIterator[Stream]:  # noqa: ASYNC109 - as above
        """Hold a stream to a connected peer; it is reset if the block raises, and finished if it does not.

        Raises:
            UnsupportedProtocol: The peer does not speak `protocol`.
            Unreachable: Not connected, or the stream could not be opened.
            DeadlinePassed: Not within `timeout` seconds.
        """
        if not self._is_connected(peer_id):
            raise Unreachable(f"not connected to {peer_id_text(peer_id)}")
        async with opened(self._host, ID(peer_id), protocol, timeout, self._linger) as pipe:
            yield Stream(pipe, peer_id, max_frame=self._settings.max_frame)

    def _linger(self, pipe: StreamPipe) -> None:
        self._start(pipe.linger)

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
            Unreachable: Not connected, or the stream broke.
            DeadlinePassed: Not within `timeout` seconds.
        """
        if not self._is_connected(peer_id):
            raise Unreachable(f"not connected to {peer_id_text(peer_id)}")
        with trio.move_on_after(timeout):
            async with opened(self._host, ID(peer_id), PING_PROTOCOL, timeout, self._linger) as pipe:
                return await ping(pipe)
        raise DeadlinePassed(f"no answer to a ping within {timeout:g} s")

    # gossip

    async def subscribe(self, topic: str, accept: Accept) -> None:
        """Receive and relay a topic's messages, those that `accept` lets through. Other topics are not even kept."""
        self._accepts[topic] = accept
        await self._pubsub.subscribe(topic)

    async def publish(self, topic: str, data: bytes) -> None:
        """Send a message to everyone subscribed to a topic that this node is subscribed to; it does not come back here.

        Raises:
            InvalidMessage: TOO_LARGE, it is longer than peers take.
        """
        if topic not in self._accepts:
            raise ValueError(f"not subscribed to {topic}")
        if len(data) > self._settings.max_frame - pubsub.ENVELOPE:
            raise InvalidMessage(Fault.TOO_LARGE, f"gossip of {len(data)} bytes")
        await self._pubsub.publish(topic, data)

    def _admit_gossip(self, message: pubsub.Message) -> bool:
        topic, data, signer, forwarder = message.topic, message.data, message.signer, message.forwarder
        try:
            value = self._accepts[topic](signer, data)
        except ProtocolError:
            raise
        except Exception:  # noqa: BLE001 - a bug of ours must not be a way for a peer to end the node
            _log.exception("checking a message of %s failed: this is a bug", topic)
            return False
        self._tell_if_room(GossipReceived(topic, data, signer, forwarder, value))
        return True

    def _refuse_gossip(self, topic: str, fault: Fault, signer: PeerId, forwarder: PeerId) -> None:
        self._tell_if_room(GossipRefused(topic, fault, signer, forwarder))

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
        """Say in the DHT that this node provides `key`; the nodes nearest to the key keep that for two days."""
        with trio.move_on_after(_PROVIDE_DEADLINE):
            await self._kademlia.provider_store.provide(kademlia.key_of(key))

    async def find_providers(self, key: str, timeout: float = 5) -> tuple[ProviderRecord, ...]:  # noqa: ASYNC109 - as above
        """Ask the DHT who provides `key`, this node excepted; what it says may be out of date.

        Raises:
            DeadlinePassed: The lookup did not end within `timeout` seconds.
        """
        with trio.move_on_after(timeout) as deadline:
            infos = await self._kademlia.provider_store.find_providers(kademlia.key_of(key), _PROVIDERS_WANTED)
        if deadline.cancelled_caught:
            raise DeadlinePassed(f"the lookup of {key} did not end within {timeout:g} s")
        found: dict[PeerId, list[str]] = {}
        for info in infos:
            try:
                peer_id = check_peer_id(info.peer_id.to_bytes())
            except InvalidMessage:
                continue
            found.setdefault(peer_id, []).extend(str(place) for place in endpoints_among(info.addrs, peer_id))
        found.pop(self.peer_id, None)
        records = tuple(ProviderRecord(peer_id, tuple(dict.fromkeys(places))) for peer_id, places in found.items())
        self._tell_if_room(ProvidersFound(key, records))
        return records
