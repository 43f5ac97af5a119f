"""`network/quic`: the streams of one connection, over datagrams that nothing but this test carries."""

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from loremesh.network.muxed import Muxed
from loremesh.network.quic.connection import QuicMuxed, Terms
from loremesh.network.quic.credit import CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW, CreditedConnection
from loremesh.network.quic.proof import Credentials, peer_of
from loremesh.network.quic.stream import QuicStream
from loremesh.network.udp import Address
from loremesh.primitives import KIB, MIB

# After our own, which sets what upstream reads when it is imported.
from aioquic.quic.connection import QuicConnection  # isort: skip
from aioquic.quic.events import StreamDataReceived  # isort: skip
from libp2p.crypto.secp256k1 import create_new_key_pair  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable, MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset  # isort: skip
from libp2p.transport.exceptions import SecurityUpgradeFailure  # isort: skip
import trio.lowlevel

PATIENCE = 60.0
DELAY = 0.02
CLIENT, SERVER = ("192.0.2.1", 4001), ("192.0.2.2", 4001)


class Wire:
    """One way between two connections: each datagram takes a while, and some never come."""

    def __init__(self, source: Address, loss: float) -> None:
        self._source = source
        self._loss = loss
        self._luck = random.Random(source[0])
        self._put, self._datagrams = trio.open_memory_channel[tuple[float, bytes]](100_000)
        self.is_cut = False

    async def send(self, data: bytes, _address: Address) -> None:
        await trio.lowlevel.checkpoint()
        if not self.is_cut and self._luck.random() >= self._loss:
            self._put.send_nowait((trio.current_time() + DELAY, data))

    async def carry(self, deliver: Callable[[bytes, Address], Awaitable[None]]) -> None:
        async for due, data in self._datagrams:
            await trio.sleep_until(due)
            await deliver(data, self._source)


class Loaded(Muxed):
    """A connection that holds so many unread bytes, and does nothing else."""

    unread = 0
    open_streams = 0

    def __init__(self) -> None:
        self.event_closed = trio.Event()

    is_answering = cut = start = close = open_stream = None  # type: ignore[assignment]  # nobody asks this one
    accept_stream = is_initiator = is_established = None  # type: ignore[assignment]  # as above
    is_closed = get_transport_addresses = get_connection_type = None  # type: ignore[assignment]  # as above


def new_terms(max_streams: int = 8, prove: Any = None) -> Terms:
    key_pair = create_new_key_pair(secrets.token_bytes(32))
    return Terms(Credentials.new(key_pair), prove or (lambda chain, _: peer_of(chain)), max_streams)


class Link:
    """Two ends of a connection and the wires between them."""

    def __init__(self, near: QuicMuxed, far: QuicMuxed, wires: tuple[Wire, Wire]) -> None:
        self.near, self.far = near, far
        self.wires = wires

    async def stream(self) -> tuple[QuicStream, QuicStream]:
        """Open a stream: its near and its far end. The far one hears of it by the first byte."""
        near = await self.near.open_stream()
        await near.write(b"!")
        far = await self.far.accept_stream()
        assert await far.read(1) == b"!"
        return near, far


async def serve(far: QuicMuxed) -> None:
    while not far._quic.has_begun:  # noqa: ASYNC110 - no event tells of it: the listener looks at the first datagram
        await trio.sleep(DELAY)
    await far.run()


@asynccontextmanager
async def linked(
    *, max_streams: int = 8, loss: float = 0.0, prove: Any = None, near_terms: Terms | None = None
) -> AsyncIterator[Link]:
    near_terms, far_terms = near_terms or new_terms(max_streams), new_terms(max_streams, prove)
    out, back = Wire(CLIENT, loss), Wire(SERVER, loss)
    client = CreditedConnection(near_terms.configuration(is_client=True), max_streams)
    near = QuicMuxed(client, near_terms, out, SERVER)
    server = CreditedConnection(
        far_terms.configuration(is_client=False),
        max_streams,
        first_destination=client.original_destination_connection_id,
    )
    far = QuicMuxed(server, far_terms, back, CLIENT)
    near.begin()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.carry, far.receive)
            nursery.start_soon(back.carry, near.receive)
            nursery.start_soon(near.run)
            nursery.start_soon(serve, far)
            await near.wait_ready()
            yield Link(near, far, (out, back))
            nursery.cancel_scope.cancel()


async def read_all(stream: QuicStream, most: int = 64 * KIB) -> bytes:
    data = bytearray()
    try:
        while True:
            data += await stream.read(most)
    except MuxedStreamEOF:
        return bytes(data)


async def read_exactly(stream: QuicStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        data += await stream.read(count - len(data))
    return bytes(data)


async def settled(*ends: QuicMuxed) -> None:
    while any(end.open_streams for end in ends):  # noqa: ASYNC110 - no event tells of the last acknowledgement
        await trio.sleep(DELAY)


async def test_each_side_knows_the_other_by_its_key(autojump_clock: object) -> None:
    terms = new_terms()
    async with linked(near_terms=terms) as link:
        assert link.far.get_remote_peer() == peer_of([terms.credentials.certificate])
        assert link.near.is_initiator
        assert not link.far.is_initiator
        assert str(link.near.get_transport_addresses()[0]) == "/ip4/192.0.2.2/udp/4001/quic-v1"


async def test_sixteen_mebibytes_reach_a_slow_reader_whole_and_are_never_held_together(autojump_clock: object) -> None:
    data = random.Random(16).randbytes(16 * MIB)
    async with linked() as link:
        near, far = await link.stream()

        async def send() -> None:
            await near.write(data)
            await near.close_write()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            come = bytearray()
            most = 0
            while len(come) < len(data):
                if len(come) % (4 * STREAM_WINDOW) < 16 * KIB:
                    await trio.sleep(1)  # time for everything to come that is allowed to
                most = max(most, link.far.unread)
                assert link.near._quic.buffered(near.stream_id) <= SEND_BUFFER
                come += await far.read(16 * KIB)
        assert come == data
        assert STREAM_WINDOW // 2 < most <= STREAM_WINDOW
        with pytest.raises(MuxedStreamEOF):
            await far.read(1)


async def test_what_nobody_reads_stops_its_sender_and_no_other_stream(autojump_clock: object) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        near, _ = await link.stream()
        nursery.start_soon(near.write, bytes(16 * MIB))
        await trio.sleep(10)
        assert STREAM_WINDOW - KIB < link.far.unread <= STREAM_WINDOW
        assert 0 < link.near._quic.buffered(near.stream_id) <= SEND_BUFFER
        other_near, other_far = await link.stream()
        async with trio.open_nursery() as talk:
            talk.start_soon(other_near.write, bytes(MIB))
            await read_exactly(other_far, MIB)
        nursery.cancel_scope.cancel()


def sent_to_who_reads_nothing(new: type[QuicConnection]) -> int:
    """Send 2 MiB from one state machine to another that is told of nothing that was read; count what comes."""
    terms = new_terms()
    client = CreditedConnection(terms.configuration(is_client=True), 8)
    arguments: dict[str, Any] = {"configuration": terms.configuration(is_client=False)}
    first = client.original_destination_connection_id
    if new is CreditedConnection:
        server: QuicConnection = CreditedConnection(**arguments, max_streams=8, first_destination=first)
    else:
        server = new(**arguments, original_destination_connection_id=first)
    client.connect(SERVER, 0.0)
    come = 0
    for now in (number / 100 for number in range(1000)):
        for source, sink, place in ((client, server, CLIENT), (server, client, SERVER)):
            if not (source is server and now == 0.0):
                timer = source.get_timer()
                if timer is not None and timer <= now:
                    source.handle_timer(now)
                for data, _ in source.datagrams_to_send(now):
                    sink.receive_datagram(data, place, now)
        if now == 0.5:
            client.send_stream_data(0, bytes(2 * MIB))
        while (event := server.next_event()) is not None:
            come += len(event.data) if isinstance(event, StreamDataReceived) else 0
    return come


def test_a_state_machine_takes_no_more_than_the_window_when_nothing_is_read() -> None:
    assert sent_to_who_reads_nothing(CreditedConnection) == STREAM_WINDOW


def test_canary_aioquic_still_gives_credit_for_what_nobody_has_read() -> None:
    assert sent_to_who_reads_nothing(QuicConnection) == 2 * MIB, "aioquic holds its limits now: look at quic/credit.py"


async def test_all_streams_together_hold_no_more_than_the_window_of_the_connection(autojump_clock: object) -> None:
    async with linked(max_streams=40) as link, trio.open_nursery() as nursery:
        streams = [await link.stream() for _ in range(40)]
        for near, _ in streams:
            nursery.start_soon(near.write, bytes(STREAM_WINDOW))
        await trio.sleep(20)
        assert CONNECTION_WINDOW - STREAM_WINDOW < link.far.unread <= CONNECTION_WINDOW
        for _, far in streams:
            nursery.start_soon(read_exactly, far, STREAM_WINDOW)


async def test_datagrams_that_get_lost_lose_nothing(autojump_clock: object) -> None:
    data = random.Random(5).randbytes(MIB)
    async with linked(loss=0.05) as link, trio.open_nursery() as nursery:
        near, far = await link.stream()

        async def send() -> None:
            await near.write(data)
            await near.close_write()

        nursery.start_soon(send)
        assert await read_all(far) == data


async def test_one_direction_ends_and_the_other_goes_on(autojump_clock: object) -> None:
    async with linked() as link:
        near, far = await link.stream()
        await near.write(b"question")
        await near.close_write()
        await near.close_write()  # a second time is nothing
        assert await read_all(far) == b"question"
        with pytest.raises(MuxedStreamClosed):
            await near.write(b"more")
        await far.write(b"answer")
        await far.close_write()
        assert await read_all(near) == b"answer"
        await settled(link.near, link.far)


async def test_a_reset_breaks_both_directions_on_both_sides_and_leaves_nothing(autojump_clock: object) -> None:
    async with linked() as link:
        for is_ours in (True, False):
            near, far = await link.stream()
            resetting, other = (near, far) if is_ours else (far, near)
            await other.write(b"unread")
            await resetting.reset()
            await resetting.reset()
            for end in (resetting, other):
                with pytest.raises(MuxedStreamReset):
                    await read_all(end)
                with pytest.raises((MuxedStreamReset, MuxedStreamClosed)):
                    await end.write(b"more")
        await settled(link.near, link.far)
        assert link.near.unread == link.far.unread == 0


async def test_a_reset_lets_a_writer_go_that_waits(autojump_clock: object) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        near, far = await link.stream()

        async def send() -> None:
            with pytest.raises((MuxedStreamReset, MuxedStreamClosed)):
                await near.write(bytes(16 * MIB))

        nursery.start_soon(send)
        await trio.sleep(1)
        await far.reset()


async def test_what_was_never_read_of_streams_that_are_gone_takes_no_room(autojump_clock: object) -> None:
    async with linked() as link:
        for number in range(CONNECTION_WINDOW // STREAM_WINDOW + 8):
            near, far = await link.stream()
            await near.write(bytes(STREAM_WINDOW - KIB))
            await trio.sleep(1)
            if number % 3 == 0:
                await far.reset()
            elif number % 3 == 1:
                await near.reset()
            else:
                await far.close()
                await near.close()
            await settled(link.near, link.far)
        assert link.far.unread == 0


async def test_who_is_done_with_a_stream_still_takes_what_comes(autojump_clock: object) -> None:
    async with linked() as link:
        near, far = await link.stream()
        await far.close()
        await near.write(bytes(2 * MIB))
        await near.close()
        with pytest.raises(MuxedStreamEOF):
            await far.read(1)
        await settled(link.near, link.far)
        assert link.far.unread == 0


async def test_a_peer_may_hold_so_many_streams_open_and_waits_for_room(autojump_clock: object) -> None:
    async with linked(max_streams=3) as link, trio.open_nursery() as nursery:
        held = [await link.stream() for _ in range(3)]
        opened = trio.Event()

        async def open_another() -> None:
            await link.stream()
            opened.set()

        nursery.start_soon(open_another)
        await trio.sleep(5)
        assert not opened.is_set()
        near, far = held[0]
        await near.close_write()
        await far.close()
        assert await read_all(near) == b""
        await opened.wait()


async def test_a_write_that_is_cancelled_harms_nothing_else(autojump_clock: object) -> None:
    async with linked() as link:
        near, _ = await link.stream()
        with trio.move_on_after(1) as deadline:
            await near.write(bytes(16 * MIB))
        assert deadline.cancelled_caught
        await near.reset()
        other_near, other_far = await link.stream()
        await other_near.write(b"still here")
        assert await other_far.read(100) == b"still here"


async def test_two_writers_on_one_stream_do_not_mix(autojump_clock: object) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        near, far = await link.stream()
        nursery.start_soon(near.write, b"a" * MIB)
        nursery.start_soon(near.write, b"b" * MIB)
        come = await read_exactly(far, 2 * MIB)
        assert come in (b"a" * MIB + b"b" * MIB, b"b" * MIB + b"a" * MIB)


async def test_a_goodbye_waits_for_what_was_written_before_it(autojump_clock: object) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        near, far = await link.stream()
        await near.write(bytes(SEND_BUFFER))
        await near.close_write()
        nursery.start_soon(link.near.close)
        assert await read_all(far) == bytes(SEND_BUFFER)
        await link.far.event_closed.wait()


async def test_the_end_of_a_connection_breaks_its_streams_and_lets_everybody_go(autojump_clock: object) -> None:
    async with linked(max_streams=2) as link:
        near, far = await link.stream()
        await link.stream()

        async def is_broken(do: Callable[[], Awaitable[Any]], error: type[Exception]) -> None:
            with pytest.raises(error):
                await do()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(is_broken, lambda: far.read(10), MuxedStreamReset)
            nursery.start_soon(is_broken, lambda: near.write(bytes(16 * MIB)), MuxedStreamReset)
            nursery.start_soon(is_broken, link.far.accept_stream, MuxedConnUnavailable)
            nursery.start_soon(is_broken, link.near.open_stream, MuxedConnUnavailable)
            await trio.lowlevel.checkpoint()
            await link.near.cut()
        await link.far.event_closed.wait()
        await is_broken(link.near.open_stream, MuxedConnUnavailable)
        assert not await link.far.is_answering(1)


async def test_a_connection_that_is_quiet_lives_and_answers(autojump_clock: object) -> None:
    async with linked() as link:
        with trio.fail_after(PATIENCE):
            await trio.sleep(PATIENCE - 20)
        assert await link.near.is_answering(1)
        assert await link.far.is_answering(1)
        assert not link.near.is_closed


async def test_a_peer_that_falls_silent_gives_no_sign_of_life_and_is_given_up(autojump_clock: object) -> None:
    async with linked() as link:
        for wire in link.wires:
            wire.is_cut = True
        assert not await link.near.is_answering(2)
        assert not link.near.is_closed
        await link.near.event_closed.wait()
        await link.far.event_closed.wait()


async def test_a_peer_that_is_refused_hears_so_before_it_takes_itself_for_connected(autojump_clock: object) -> None:
    def refuse(_chain: object, _expected: object) -> ID:
        raise SecurityUpgradeFailure("not you")

    with pytest.RaisesGroup(SecurityUpgradeFailure):
        async with linked(prove=refuse):
            pytest.fail("it took itself for connected")


async def test_when_all_connections_hold_too_much_those_go_that_hold_more_than_a_window(autojump_clock: object) -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        loaded = Loaded()
        loaded.unread = 16 * MIB
        link.far._terms.all_of_node.add(loaded)
        streams = [await link.stream() for _ in range(2)]
        nursery.start_soon(streams[0][0].write, bytes(STREAM_WINDOW))
        await trio.sleep(2)
        assert not link.far.is_closed

        async def break_off() -> None:
            with pytest.raises(MuxedStreamReset):
                await streams[1][0].write(bytes(MIB))

        nursery.start_soon(break_off)
        await link.far.event_closed.wait()
