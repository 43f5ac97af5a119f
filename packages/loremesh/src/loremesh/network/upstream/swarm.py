"""Connections: `libp2p.network.swarm.Swarm`, and the listener of `libp2p.transport.tcp.tcp`.

Symptoms, inbound: `_do_handle_inbound_connection` keeps its slot and its task until the node ends, so after 250
connections in its lifetime a node refuses everybody; half-open handshakes are not limited, so that one address can
keep all others out; the listener sets SO_REUSEPORT, so two processes share one port without an error and each gets part
of the dials (see `listening`).

Symptoms, outbound: `dial_peer` waits 250 ms after it has succeeded, tries one address per kind of transport, drops
loopback addresses when it knows others, and remembers a failure for 60 s whatever is learned meanwhile; the
auto-connector dials peers nobody asked for; `close` takes 0.2 s for each connection, one after the other.

With two connections to a peer upstream prefers the one with more streams, which after a reconnection is the dead one;
when two nodes dial each other at once, or one dials two addresses of the other, both connections stay.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, TypeVar

import trio
from libp2p.abc import IMuxedConn, INetConn, ISecureConn
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.rcmgr import Direction
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.transport.exceptions import SecurityUpgradeFailure
from multiaddr import Multiaddr
from wsproto import ConnectionType

from loremesh.errors import ConnectionRefused, ServiceError, Unreachable, UsageError
from loremesh.network.addresses import Endpoint, Transport, endpoint_of_socket
from loremesh.network.admission import Admission, Turn
from loremesh.network.locks import KeyedLocks
from loremesh.network.muxed import Muxed
from loremesh.network.quic.connection import QuicMuxed
from loremesh.network.quic.dialling import dialled
from loremesh.network.settings import NetworkSettings
from loremesh.network.upstream.gate import Gate
from loremesh.network.upstream.sockets import BufferedStream
from loremesh.network.upstream.websocket import WebSocketStream
from loremesh.primitives import PeerId

_log = logging.getLogger("loremesh.network")
_NOWHERE: Final = Multiaddr("/ip4/0.0.0.0/tcp/0")
_ADDRESSES_TO_TRY: Final = 8
_SIGN_OF_LIFE: Final = 2.0
_FAREWELL: Final = 1.5
_WELCOME: Final = 2.0
"""Seconds in which a newcomer makes more work than in the minutes after."""
_LOOK: Final = 0.5
"""Seconds between two looks at whether a connection is idle; also long enough for both sides to have seen both."""

T = TypeVar("T")
Proven = ISecureConn | QuicMuxed
"""A connection whose other end has proved who it is."""


class StillConnector(AutoConnector):
    """Dials nobody: with zero watermarks the stock one still aims at half of the high one."""

    async def start(self) -> None:
        """Do nothing."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Do nothing."""

    async def maybe_connect(self) -> None:
        """Do nothing."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Keep nothing: the stock one keeps every peer it ever saw."""


class BoundedSwarm(Swarm):
    """The connections of a node: bounded inbound, quick outbound, closed all at once."""

    def __init__(self, peer_id: ID, peerstore: PeerStore, gate: Gate, settings: NetworkSettings) -> None:
        # No resource manager: it would count what is counted here already.
        config = ConnectionConfig(
            max_connections=settings.max_connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=settings.max_connections,
            inbound_upgrade_timeout=settings.handshake_timeout,
            outbound_upgrade_timeout=settings.handshake_timeout,
            inbound_stream_protocol_negotiation_timeout=settings.handshake_timeout,
            outbound_stream_protocol_negotiation_timeout=settings.handshake_timeout,
        )
        super().__init__(peer_id, peerstore, gate, [], connection_config=config)
        self.auto_connector = StillConnector(self)
        self._settings = settings
        self._inbound = Counter[str]()
        self._admission = Admission(
            at_once=settings.max_pending,
            waiting=settings.max_waiting,
            pace=settings.newcomers_per_second,
            burst=settings.newcomers_at_once,
        )
        self._turns = dict[QuicMuxed, Turn]()
        self._newcomers = trio.Lock()
        self._gate = gate
        self._adding = KeyedLocks[ID]()
        self.open_circuit: Callable[[Endpoint], Awaitable[RawConnection]] = _no_circuit

    # inbound

    async def serve_socket(self, transport: Transport, socket: trio.SocketStream) -> None:
        """Serve one accepted socket until its connection ends; never raises but for cancellation."""
        try:
            address = str(socket.socket.getpeername()[0])
            await self._serve(address, partial(_raw, socket, transport, initiator=False))
        except OSError as error:
            _log.debug("an accepted socket is gone already: %r", error)
        finally:
            await trio.aclose_forcefully(socket)

    async def serve_circuit(self, relay: str, raw: RawConnection) -> None:
        """Serve the near end of a circuit until its connection ends; one relay counts like one address."""

        async def open_already() -> RawConnection:
            return raw

        try:
            await self._serve(relay, open_already)
        finally:
            await raw.close()

    async def serve_quic(self, connection: QuicMuxed) -> None:
        """Serve a connection that took a turn until it ends; give the turn back when the handshake is over."""
        self.manager.run_task(connection.run)
        address = str(connection.remote[0])
        try:
            if self.may_enter(address):  # else others were first
                with self._counted(address):
                    await self._finish_handshake(connection)
                    await connection.event_closed.wait()
        except Exception as error:  # noqa: BLE001 - a stranger sent it: anything may come out of upstream
            _log.debug("a connection from %s came to nothing: %r", address, error)
        finally:
            self._give_turn_back(connection)
            with trio.CancelScope(shield=True), trio.move_on_after(_FAREWELL):
                await connection.close()

    async def _finish_handshake(self, connection: QuicMuxed) -> None:
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                await connection.wait_ready()
        finally:
            self._give_turn_back(connection)
        # A dialler that only wanted to see who is here, or is connected already, opens none: it comes to no connection.
        with trio.move_on_after(self._settings.handshake_timeout):
            await connection.wait_used()
        await self.add_conn(connection, direction="inbound")

    async def take_turn(self, connection: QuicMuxed) -> bool:
        """Wait until a handshake may begin; tell whether that was in time."""
        address = str(connection.remote[0])
        if self._admission.has_room(address):
            with trio.move_on_after(self._settings.handshake_timeout):
                self._turns[connection] = await self._admission.begin(address)
        return connection in self._turns

    def _give_turn_back(self, connection: QuicMuxed) -> None:
        if (turn := self._turns.pop(connection, None)) is not None:
            self._admission.end(turn)

    def is_crowded(self) -> bool:
        """Tell whether half of the handshakes that may be under way at once are."""
        return self._admission.is_crowded

    async def _serve(self, address: str, open_raw: Callable[[], Awaitable[RawConnection]]) -> None:
        if not self.may_enter(address) or not self._admission.has_room(address):
            _log.debug("no room for a connection from %s", address)
            return
        with ExitStack() as stack:
            try:
                with trio.fail_after(self._settings.handshake_timeout):
                    async with self._admission.turn(address):
                        if not self.may_enter(address):  # others were first
                            return
                        stack.enter_context(self._counted(address))
                        raw = await open_raw()
                        if self._inbound[address] > self._settings.newcomers_at_once and isinstance(
                            raw.stream, BufferedStream
                        ):
                            raw.stream.come_last(_WELCOME, self._newcomers)
                        muxed = await self.upgrade_inbound_raw_conn(raw, _NOWHERE)
                assert isinstance(muxed, Muxed)  # noqa: S101 - the gate offers nothing else
                await muxed.event_closed.wait()
            except Exception as error:  # noqa: BLE001 - a stranger sent it: anything may come out of upstream
                _log.debug("a connection from %s came to nothing: %r", address, error)

    @contextmanager
    def _counted(self, address: str) -> Iterator[None]:
        self._inbound[address] += 1
        try:
            yield
        finally:
            self._inbound[address] -= 1
            if not self._inbound[address]:
                del self._inbound[address]

    def may_enter(self, address: str) -> bool:
        """Tell whether there is room for one more connection from an IP address."""
        settings = self._settings
        is_loopback = address.startswith("127.") or address in {"::1", "::ffff:127.0.0.1"}
        cap = settings.max_connections_per_loopback_address if is_loopback else settings.max_connections_per_address
        outbound = sum(not is_inbound(conn) for conn in self.get_connections())
        inbound = self._inbound.total()
        has_room = inbound < settings.max_inbound and inbound + outbound < settings.max_connections
        return has_room and self._inbound[address] < cap

    # outbound

    async def dial(self, endpoint: Endpoint) -> SwarmConn:
        """Have a connection to one place, trying each address that its name resolves to. The caller sets the deadline.

        A peer that turns out to be connected already, by way of another address, is not connected a second time.

        Raises:
            ConnectionRefused: Nobody listens there.
            Unreachable: No connection, no handshake, not welcome, or another peer than expected.
        """
        if len(self.get_connections()) >= self._settings.max_connections:
            raise Unreachable(f"{self._settings.max_connections} connections are open already")
        return await self._try_each(endpoint, self._add)

    async def reaches(self, endpoint: Endpoint) -> bool:
        """Tell whether the expected peer proves its key at a place, without staying. The caller sets the deadline."""
        try:
            await self._try_each(endpoint, _let_go)
        except ServiceError as error:
            _log.debug("%s is not where it says it is: %s", endpoint, error)
            return False
        return True

    async def _try_each(self, endpoint: Endpoint, use: Callable[[Proven], Awaitable[T]]) -> T:
        if endpoint.relay is not None:
            return await self._secure(endpoint, partial(self.open_circuit, endpoint), use)
        errors: list[Exception] = []
        for host in (await _resolve(endpoint))[:_ADDRESSES_TO_TRY]:
            try:
                return await self._try(host, endpoint, use)
            except ServiceError as error:
                errors.append(error)
        if errors and all(isinstance(error, ConnectionRefused) for error in errors):
            raise ConnectionRefused(f"nobody listens at {endpoint}") from errors[-1]
        raise Unreachable(str(errors[-1]) if errors else f"{endpoint.host} has no address") from None

    async def _try(self, host: str, endpoint: Endpoint, use: Callable[[Proven], Awaitable[T]]) -> T:
        try:
            if endpoint.transport is Transport.QUIC:
                return await self._dial_quic(host, endpoint, use)
            socket = await _connected(host, endpoint.port)
        except ConnectionRefusedError as error:
            raise ConnectionRefused(f"nobody listens at {endpoint}") from error
        except OSError as error:
            raise Unreachable(f"no way to {endpoint}: {error}") from error
        try:
            return await self._secure(endpoint, partial(_raw, socket, endpoint.transport, initiator=True), use)
        except BaseException:
            await trio.aclose_forcefully(socket)
            raise

    async def _dial_quic(self, host: str, endpoint: Endpoint, use: Callable[[Proven], Awaitable[T]]) -> T:
        expected = ID(endpoint.peer_id) if endpoint.peer_id is not None else None
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                async with dialled(host, endpoint.port, expected, self._gate.quic, self.manager.run_task) as connection:
                    return await use(connection)
        except OSError:
            raise
        except Exception as error:
            raise Unreachable(f"no handshake with {endpoint}: {_why(error)}") from error

    async def _secure(
        self,
        endpoint: Endpoint,
        open_raw: Callable[[], Awaitable[RawConnection]],
        use: Callable[[Proven], Awaitable[T]],
    ) -> T:
        expected = ID(endpoint.peer_id) if endpoint.peer_id is not None else None
        raw: RawConnection | None = None
        try:
            with trio.fail_after(self._settings.handshake_timeout):
                raw = await open_raw()
                return await use(await self.upgrader.upgrade_security(raw, is_initiator=True, peer_id=expected))
        except Exception as error:
            if raw is not None:
                await raw.close()
            raise Unreachable(f"no handshake with {endpoint}: {_why(error)}") from error
        except BaseException:
            if raw is not None:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await raw.close()
            raise

    async def _add(self, secured: Proven) -> SwarmConn:
        peer_id = secured.get_remote_peer()
        # One at a time, else two dials of one peer that end together would not see each other.
        async with self._adding.of(peer_id):
            for known in self.get_connections(peer_id):
                if isinstance(known, SwarmConn) and await is_alive(known):
                    await secured.close()
                    return known
            if isinstance(secured, QuicMuxed):
                return await self.add_conn(secured, direction="outbound")
            muxed = await self.upgrader.upgrade_connection(secured, peer_id)
            return await self.add_conn(muxed, direction="outbound")

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Connect to a peer at the addresses known of it: how Kademlia reaches the peers it hears of.

        Raises:
            SwarmException: As upstream's own, which its callers expect.
        """
        alive = self._filter_valid_connections(self.get_connections(peer_id))
        if alive:
            return alive
        for endpoint in self.endpoints_of(peer_id)[:_ADDRESSES_TO_TRY]:
            try:
                with trio.fail_after(self._settings.handshake_timeout):
                    return [await self.dial(endpoint)]
            except (ServiceError, trio.TooSlowError) as error:
                _log.debug("dialling %s: %s", endpoint, error)
        raise SwarmException(f"no address of {peer_id} answers")

    def endpoints_of(self, peer_id: ID) -> list[Endpoint]:
        """List the places where a peer says it can be dialled, those this node can dial."""
        try:
            return endpoints_among(self.peerstore.addrs(peer_id), PeerId(peer_id.to_bytes()))
        except PeerStoreError:
            return []

    # both

    def _select_connection(self, connections: list[INetConn], peer_id: ID) -> INetConn:  # noqa: ARG002 - upstream's
        return connections[-1]  # the newest, which has just proved itself, or the one that `prefer` put there

    async def retire(self, connections: Sequence[INetConn]) -> None:
        """Close those of the older connections to a peer that give no sign of life."""
        async with trio.open_nursery() as nursery:
            for conn in connections:
                nursery.start_soon(self._retire, conn)

    async def _retire(self, conn: INetConn) -> None:
        if not await is_alive(conn):
            _log.debug("closing a connection to %s that has gone silent", conn.muxed_conn.peer_id)
            await close_quietly(conn)

    def prefer(self, peer_id: ID) -> list[INetConn]:
        """Put new streams on the connection that both sides keep; give those that neither keeps.

        When each has dialled the other, what the lower peer id dialled stays: both sides can tell. Of several that one
        side dialled none is to be preferred, and none is given.
        """
        connections = self.connections.get(peer_id, [])
        is_ours_kept = self.self_id.to_bytes() < peer_id.to_bytes()
        leaving = [conn for conn in connections if is_inbound(conn) is is_ours_kept]
        staying = [conn for conn in connections if is_inbound(conn) is not is_ours_kept]
        if not leaving or not staying:
            return []
        self.connections[peer_id] = [*leaving, *staying]
        return leaving

    async def close_when_idle(self, conn: INetConn) -> None:
        """Close a connection as soon as no stream is open on it: whatever was begun there comes to its end."""
        idle = 0
        while not conn.is_closed and idle <= 1:  # twice in a row: the other side may be about to open one
            await trio.sleep(_LOOK)
            idle = 0 if isinstance(conn.muxed_conn, Muxed) and conn.muxed_conn.open_streams else idle + 1
        await close_quietly(conn)

    async def close_all(self) -> None:
        """Close every connection at once, with a goodbye where the other side still takes one; at most 2 s."""
        with trio.CancelScope(shield=True), trio.move_on_after(_FAREWELL + 0.5):
            async with trio.open_nursery() as nursery:
                for conn in self.get_connections():
                    nursery.start_soon(close_quietly, conn)


def endpoints_among(addresses: Iterable[Multiaddr], peer_id: PeerId) -> list[Endpoint]:
    """Pick the places of a peer that this node can dial."""
    endpoints = []
    for address in addresses:
        try:
            endpoint = Endpoint.from_str(str(address))
        except UsageError:
            continue
        if not endpoint.is_wildcard and endpoint.port:
            endpoints.append(endpoint.of(peer_id))
    return list(dict.fromkeys(endpoints))


def is_inbound(conn: INetConn) -> bool:
    """Tell whether the other side dialled."""
    return isinstance(conn, SwarmConn) and conn.direction is Direction.INBOUND


def is_relayed(conn: INetConn) -> bool:
    """Tell whether a connection leads through a relay."""
    return any("/p2p-circuit" in str(address) for address in conn.get_transport_addresses())


async def is_alive(conn: INetConn) -> bool:
    """Ask for a sign of life on this very connection."""
    muxed = conn.muxed_conn
    return isinstance(muxed, Muxed) and not muxed.is_closed and await muxed.is_answering(_SIGN_OF_LIFE)


async def close_quietly(conn: INetConn) -> None:
    """Close a connection with a goodbye, or without one when the other side does not take it in time."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cut, conn.muxed_conn)
            await conn.close()
            nursery.cancel_scope.cancel()
    except Exception as error:  # noqa: BLE001 - whatever upstream raises here, the connection is gone
        _log.debug("closing a connection failed: %r", error)


async def _cut(muxed: IMuxedConn) -> None:
    await trio.sleep(_FAREWELL)
    if isinstance(muxed, Muxed):
        await muxed.cut()


async def _no_circuit(endpoint: Endpoint) -> RawConnection:
    raise Unreachable(f"no way to {endpoint}: this node uses no relays")


def _why(error: Exception) -> str:
    """Say why a handshake failed, in words that help; upstream wraps what happened in errors that say that one did."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, PeerIDMismatchesPubkey):
            return "a node with another key answers there"
        if isinstance(cause, trio.TooSlowError):
            return "no answer in time"
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(one, MultiselectError | HandshakeFailure) for one in (error, error.__cause__)):
        return "what answers there is no node"
    return str(error) if isinstance(error, SecurityUpgradeFailure) else repr(error)


async def _let_go(secured: Proven) -> None:
    await secured.close()


async def _raw(socket: trio.SocketStream, transport: Transport, *, initiator: bool) -> RawConnection:
    """Make of a socket what can be secured."""
    host, port = socket.socket.getpeername()[:2]
    addresses = [Multiaddr(str(endpoint_of_socket(socket.socket.getpeername(), transport)))]
    if transport is Transport.TCP:
        return RawConnection(BufferedStream(socket), initiator, addresses=addresses)
    stream = WebSocketStream(socket, ConnectionType.CLIENT if initiator else ConnectionType.SERVER)
    await stream.open(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return RawConnection(stream, initiator, addresses=addresses)


async def _resolve(endpoint: Endpoint) -> list[str]:
    try:
        infos = await trio.socket.getaddrinfo(
            endpoint.host, endpoint.port, endpoint.family, trio.socket.SOCK_STREAM, trio.socket.IPPROTO_TCP
        )
    except OSError as error:
        raise Unreachable(f"{endpoint.host} has no address: {error}") from error
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


async def _connected(host: str, port: int) -> trio.SocketStream:
    """Connect to one address, which `trio.open_tcp_stream` would look up again, to race it against no other."""
    socket = trio.socket.socket(trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET)
    try:
        await socket.connect((host, port))
    except BaseException:
        socket.close()
        raise
    return trio.SocketStream(socket)
