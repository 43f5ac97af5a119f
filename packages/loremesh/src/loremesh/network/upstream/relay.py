"""The node in the middle of a circuit, in place of `libp2p.relay.circuit_v2.protocol`.

Symptoms of the stock one: a failed message of a stranger leaves its stream open; it counts what it has read, not what
waits; a circuit may lead through a circuit. The protocol is libp2p's circuit relay v2.

The relay sees that two peers talk, and how much, but not what: noise runs between the two ends.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Limit, Reservation, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as CircuitPeer
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr

from loremesh.errors import DeadlinePassed, Fault, InvalidMessage, Unreachable
from loremesh.network.upstream.streams import StreamPipe
from loremesh.network.upstream.swarm import BoundedSwarm, is_relayed
from loremesh.primitives import KIB, MIB
from loremesh.protocol.identity import check_peer_id

_log = logging.getLogger("loremesh.network")
HOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP: Final = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
DEADLINE: Final = 10.0
"""Seconds for each message of a relay's."""
_LONGEST: Final = 4 * KIB
_CHUNK: Final = 16 * KIB
_RESERVATION: Final = 3600
_RESERVATIONS: Final = 64
_CIRCUITS: Final = 64
_CIRCUITS_OF_ONE: Final = 8
_LIMIT: Final = Limit(duration=3600, data=128 * MIB)
"""Seconds, and bytes each way."""

AnyMessage = TypeVar("AnyMessage", bound=Message)


class Relay:
    """Keeps reservations and passes bytes on, for so many, so much and so long and no more."""

    def __init__(self, host: BasicHost, swarm: BoundedSwarm, addresses: Callable[[], list[Multiaddr]]) -> None:
        self._host = host
        self._swarm = swarm
        self._addresses = addresses
        self._reserved: dict[ID, float] = {}
        self._circuits = Counter[ID]()

    async def handle_hop(self, stream: INetStream) -> None:
        """Serve one request: to be reachable through here, or to reach somebody.

        Raises:
            InvalidMessage: The peer broke a rule.
            Unreachable: It went away.
            DeadlinePassed: It was too slow.
        """
        pipe, peer = StreamPipe(stream), stream.muxed_conn.peer_id
        message = await receive(pipe, HopMessage)
        if any(one.muxed_conn is stream.muxed_conn and is_relayed(one) for one in self._swarm.get_connections(peer)):
            await _refuse(pipe, Status.PERMISSION_DENIED)
        elif message.type == HopMessage.RESERVE:
            await self._reserve(pipe, peer)
        elif message.type == HopMessage.CONNECT:
            await self._connect(pipe, peer, ID(check_peer_id(message.peer.id)))
        else:
            raise InvalidMessage(Fault.UNEXPECTED, "a status nobody asked for")

    async def _reserve(self, pipe: StreamPipe, peer: ID) -> None:
        now = time.time()
        self._reserved = {one: until for one, until in self._reserved.items() if until > now}
        if peer not in self._reserved and len(self._reserved) >= _RESERVATIONS:
            await _refuse(pipe, Status.RESERVATION_REFUSED)
            return
        self._reserved[peer] = now + _RESERVATION
        addresses = [address.to_bytes() for address in self._addresses()]
        reservation = Reservation(expire=int(self._reserved[peer]), addrs=addresses)
        answer = HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=reservation, limit=_LIMIT)
        await send(pipe, answer)
        await pipe.linger()

    async def _connect(self, pipe: StreamPipe, source: ID, target: ID) -> None:
        ends = (source, target)
        if self._reserved.get(target, 0) <= time.time():
            await _refuse(pipe, Status.NO_RESERVATION)
            return
        if self._circuits.total() >= 2 * _CIRCUITS or any(self._circuits[end] >= _CIRCUITS_OF_ONE for end in ends):
            await _refuse(pipe, Status.RESOURCE_LIMIT_EXCEEDED)
            return
        self._circuits.update(ends)
        try:
            far = await self._call_on(source, target)
            if far is None:
                await _refuse(pipe, Status.CONNECTION_FAILED)
                return
            try:
                await send(pipe, HopMessage(type=HopMessage.STATUS, status=Status.OK, limit=_LIMIT))
                await _join(pipe, far)
            finally:
                await far.reset()
                await pipe.reset()
        finally:
            self._circuits = self._circuits - Counter(ends)

    async def _call_on(self, source: ID, target: ID) -> StreamPipe | None:
        """Ask the target to take the circuit; None: it does not."""
        if not self._swarm.get_connections(target):
            return None  # else opening a stream would dial it
        far: StreamPipe | None = None
        try:
            with trio.fail_after(DEADLINE):
                far = StreamPipe(await self._host.new_stream(target, [STOP]))
            peer = CircuitPeer(id=source.to_bytes())
            await send(far, StopMessage(type=StopMessage.CONNECT, peer=peer, limit=_LIMIT))
            if (await receive(far, StopMessage)).status == Status.OK:
                return far
        except Exception as error:  # noqa: BLE001 - upstream says in many ways that there is no stream
            _log.debug("no circuit to %s: %r", target, error)
        if far is not None:
            await far.reset()
        return None


async def send(pipe: StreamPipe, message: Message) -> None:
    """Send one message of the circuit protocols.

    Raises:
        Unreachable: The stream broke.
    """
    await pipe.write(encode_varint_prefixed(message.SerializeToString()))


async def receive(pipe: StreamPipe, kind: type[AnyMessage]) -> AnyMessage:
    """Receive one message and nothing of what follows it.

    Raises:
        InvalidMessage: It is too long, not protobuf, or not there.
        Unreachable: The stream broke.
        DeadlinePassed: It was not there in time.
    """
    with trio.move_on_after(DEADLINE):
        length = 0
        for position in range(2):
            digit = (await _read_all(pipe, 1))[0]
            length |= (digit & 0x7F) << (7 * position)
            if digit < 0x80:  # noqa: PLR2004 - the last digit of a varint
                break
        else:
            raise InvalidMessage(Fault.FRAME_TOO_LONG, "a message of a circuit")
        if length > _LONGEST:
            raise InvalidMessage(Fault.FRAME_TOO_LONG, "a message of a circuit")
        try:
            return kind.FromString(await _read_all(pipe, length))
        except DecodeError as error:
            raise InvalidMessage(Fault.WRONG_SHAPE, "a message of a circuit") from error
    raise DeadlinePassed("no message of a circuit")


async def _read_all(pipe: StreamPipe, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await pipe.read(count - len(data))
        if not piece:
            raise InvalidMessage(Fault.UNFINISHED, "a message of a circuit")
        data += piece
    return data


async def _refuse(pipe: StreamPipe, status: "Status.ValueType") -> None:
    await send(pipe, HopMessage(type=HopMessage.STATUS, status=status))
    await pipe.linger()


async def _join(near: StreamPipe, far: StreamPipe) -> None:
    """Pass bytes on both ways until both have finished, one breaks, or the limits are met."""
    with trio.move_on_after(_LIMIT.duration):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, near, far)
                nursery.start_soon(_pass_on, far, near)
        except* Unreachable:
            _log.debug("a circuit ended")


async def _pass_on(source: StreamPipe, sink: StreamPipe) -> None:
    # What is read is written before more is read, so nothing piles up here.
    room = _LIMIT.data
    while piece := await source.read(min(_CHUNK, room)):
        await sink.write(piece)
        room -= len(piece)
        if not room:
            raise Unreachable("the circuit has carried all it may")
    await sink.finish()
