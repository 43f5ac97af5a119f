"""The ends of circuits, in place of `libp2p.relay.circuit_v2.transport`.

Symptoms of the stock one: `Swarm.dial_peer` drops every circuit address; a circuit comes in past the gate of the
node's transports; `reserve` fails without a nursery that nobody gives it.

What comes through a circuit is a connection like any other: the same gate, the same muxer, the same limits, one relay
being counted like one IP address.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

import trio
from libp2p.abc import IMuxedConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeer
from multiaddr import Multiaddr

from loremesh.errors import Fault, InvalidMessage, ProtocolError, ServiceError, Unreachable
from loremesh.network.addresses import Endpoint
from loremesh.network.muxed import Muxed
from loremesh.network.upstream.relay import DEADLINE, HOP, receive, send
from loremesh.network.upstream.streams import StreamPipe
from loremesh.network.upstream.swarm import BoundedSwarm
from loremesh.primitives import KIB, PeerId
from loremesh.protocol.identity import check_peer_id, peer_id_text

_log = logging.getLogger("loremesh.network")
_CHUNK: Final = 64 * KIB
_BACK_OFF: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_SHORTEST: Final = 10.0
_LONGEST: Final = 1800.0


class CircuitStream(ReadWriteCloser):
    """A stream to a relay, joined to one of the other end's."""

    def __init__(self, pipe: StreamPipe) -> None:
        self._pipe = pipe

    async def read(self, n: int | None = None) -> bytes:
        """Give what is there, at most `n` bytes; nothing after the end."""
        try:
            return await self._pipe.read(n or _CHUNK)
        except Unreachable as error:
            raise ConnectionClosedError(f"the circuit broke: {error}", transport="circuit") from error

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        try:
            await self._pipe.write(data)
        except Unreachable as error:
            raise ConnectionClosedError(f"the circuit broke: {error}", transport="circuit") from error

    async def close(self) -> None:
        """Give the circuit up."""
        await self._pipe.reset()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Tell nothing: the address is the relay's."""
        return None


class Circuits:
    """Reaches others through relays, and is reached through those that keep a reservation for this node."""

    def __init__(self, host: BasicHost, swarm: BoundedSwarm) -> None:
        self._host = host
        self._swarm = swarm
        self._relays = set[PeerId]()
        swarm.open_circuit = self.open

    async def open(self, endpoint: Endpoint) -> RawConnection:
        """Have the relay of an address join a stream of ours to one of the peer's. The caller sets the deadline.

        Raises:
            Unreachable: No way to the relay, or none from there.
        """
        assert endpoint.peer_id is not None  # noqa: S101 - nobody dials a circuit to nobody
        pipe = await self._ask(endpoint)
        status = Status.UNUSED
        try:
            peer = CircuitPeer(id=endpoint.peer_id)
            await send(pipe, HopMessage(type=HopMessage.CONNECT, peer=peer))
            status = (await receive(pipe, HopMessage)).status
        except ProtocolError as error:
            raise Unreachable(f"the relay talks nonsense: {error}") from error
        finally:
            if status != Status.OK:
                await pipe.reset()
        if status != Status.OK:
            raise Unreachable(f"no way on from the relay: {_name(status)}")
        return _raw(pipe, str(endpoint), initiator=True)

    async def _ask(self, endpoint: Endpoint) -> StreamPipe:
        relay = await self._connected(endpoint)
        try:
            return StreamPipe(await self._host.new_stream(relay, [HOP]))
        except Exception as error:
            raise Unreachable(f"{endpoint.first_hop} is no relay: {error.__cause__ or error}") from error

    async def _connected(self, endpoint: Endpoint) -> ID:
        assert endpoint.relay is not None  # noqa: S101 - for the type checker: only circuits come here
        if not self._swarm.get_connections(ID(endpoint.relay)):
            await self._swarm.dial(endpoint.first_hop)
        return ID(endpoint.relay)

    async def handle_stop(self, stream: INetStream) -> None:
        """Take in a circuit that somebody opens to this node, and serve the connection on it until it ends.

        Raises:
            InvalidMessage: The relay broke a rule; one is not to relay to a node that has not asked for it.
            Unreachable: It went away.
            DeadlinePassed: It was too slow.
        """
        pipe, relay = StreamPipe(stream), PeerId(stream.muxed_conn.peer_id.to_bytes())
        message = await receive(pipe, StopMessage)
        if relay not in self._relays or message.type != StopMessage.CONNECT:
            raise InvalidMessage(Fault.UNEXPECTED, "a circuit")
        check_peer_id(message.peer.id)
        await send(pipe, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        place = f"/p2p/{peer_id_text(relay)}/p2p-circuit"
        await self._swarm.serve_circuit(place, _raw(pipe, place, initiator=False))

    async def keep(self, endpoint: Endpoint, tell: Callable[[Endpoint, bool], None]) -> None:
        """Stay reachable through a relay until cancelled.

        Args:
            endpoint: The relay's place, as a circuit.
            tell: Hears whether others can reach this node through there, each time it turns.
        """
        assert endpoint.relay is not None  # noqa: S101 - for the type checker: only circuits come here
        self._relays.add(endpoint.relay)
        failures = 0
        while True:
            try:
                muxed, seconds = await self._reserve(endpoint)
            except (ServiceError, ProtocolError, trio.TooSlowError) as error:
                _log.info("no reservation at %s: %s", endpoint.first_hop, error)
                tell(endpoint, False)  # noqa: FBT003 - a plain callback
                await trio.sleep(_BACK_OFF[min(failures, len(_BACK_OFF) - 1)])
                failures += 1
                continue
            failures = 0
            tell(endpoint, True)  # noqa: FBT003 - as above
            with trio.move_on_after(min(max(seconds / 2, _SHORTEST), _LONGEST)):
                await muxed.event_closed.wait()

    async def _reserve(self, endpoint: Endpoint) -> tuple[Muxed, float]:
        with trio.fail_after(DEADLINE):
            relay = await self._connected(endpoint)
            pipe = await self._ask(endpoint)
            try:
                await send(pipe, HopMessage(type=HopMessage.RESERVE))
                answer = await receive(pipe, HopMessage)
            finally:
                await pipe.reset()
        if answer.status != Status.OK:
            raise Unreachable(f"the relay keeps no reservation: {_name(answer.status)}")
        connections = self._swarm.get_connections(relay)
        if not connections:
            raise Unreachable("the relay has gone")
        return _muxed(connections[-1].muxed_conn), answer.reservation.expire - time.time()


def _raw(pipe: StreamPipe, place: str, *, initiator: bool) -> RawConnection:
    return RawConnection(CircuitStream(pipe), initiator, ConnectionType.RELAYED, [Multiaddr(place)])


def _muxed(muxed: IMuxedConn) -> Muxed:
    assert isinstance(muxed, Muxed)  # noqa: S101 - the gate offers nothing else
    return muxed


def _name(status: int) -> str:
    try:
        return str(Status.Name(status)).lower().replace("_", " ")  # type: ignore[arg-type]  # a number of the wire
    except ValueError:
        return f"status {status}"
