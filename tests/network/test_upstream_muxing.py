"""`upstream/muxing.py`: what one connection may cost, and frames that are whole."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from weakref import WeakSet

import pytest
import trio
import trio.testing

from loremesh.network.behaviour import Behaviour
from loremesh.network.events import PeerConnected, PeerDisconnected
from loremesh.network.frames import Stream
from loremesh.network.muxed import Muxed
from loremesh.network.upstream.muxing import BoundedYamux
from loremesh.primitives import MIB
from loremesh.testing.loopback import PATIENCE, wait_event

from libp2p.network.stream.exceptions import StreamError  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.stream_muxer.exceptions import MuxedStreamError, MuxedStreamReset  # isort: skip
from libp2p.stream_muxer.yamux import yamux  # isort: skip
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream  # isort: skip
from multiaddr import Multiaddr  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
StartStock = Callable[..., Awaitable[Any]]
NewYamux = Callable[[Any], Yamux]
PEER = ID(bytes(39))


def stock(session: Any) -> Yamux:
    return Yamux(session, PEER)


def ours(session: Any) -> Yamux:
    return BoundedYamux(session, PEER, max_streams=4)


class Session:
    """A secured connection that is a pipe in memory, and whose writes can be made to stop halfway for a while."""

    def __init__(self, pipe: trio.StapledStream[Any, Any], *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.halfway: trio.Event | None = None
        self.sent: list[bytes] = []
        self._pipe = pipe

    async def write(self, data: bytes) -> None:
        self.sent.append(data)
        if self.halfway is not None:
            await self._pipe.send_all(data[:5])
            self.halfway.set()
            await trio.sleep(0.1)
            data = data[5:]
        await self._pipe.send_all(data)

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self._pipe.receive_some(n))

    async def close(self) -> None:
        await self._pipe.aclose()


@asynccontextmanager
async def muxed(new: NewYamux) -> AsyncIterator[tuple[Yamux, Yamux, Session]]:
    """Two ends of one connection; the session is the first end's."""
    near, far = trio.testing.memory_stream_pair()
    session = Session(near, is_initiator=True)
    ends = new(session), new(Session(far, is_initiator=False))
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.start)
            await end.event_started.wait()
        yield *ends, session
        nursery.cancel_scope.cancel()


async def is_second_message_heard(new: NewYamux) -> bool:
    """Cancel a task in the middle of its write, then send on another stream of the same connection."""
    async with muxed(new) as (near, far, session):
        first, second = await near.open_stream(), await near.open_stream()
        streams = [await far.accept_stream(), await far.accept_stream()]
        session.halfway = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.write, b"first")
            await session.halfway.wait()
            nursery.cancel_scope.cancel()
        session.halfway = None
        await second.write(b"second")
        with suppress(MuxedStreamError), trio.move_on_after(1):
            return await streams[1].read(6) == b"second"
        return False


async def test_a_cancelled_write_leaves_the_connection_whole(autojump_clock: object) -> None:
    assert await is_second_message_heard(ours)


async def test_canary_a_cancelled_write_still_breaks_a_stock_connection(autojump_clock: object) -> None:
    assert not await is_second_message_heard(stock), "upstream's writes are whole now: BoundedYamux._write_frame can go"


async def flood(new: NewYamux) -> int:
    """Send 24 MiB on a stream nobody reads, against all windows; tell how much of it is held."""
    async with muxed(new) as (near, far, _):
        stream = await near.open_stream()
        assert isinstance(stream, YamuxStream)
        await far.accept_stream()
        stream.send_window = 2**30
        with trio.move_on_after(PATIENCE):
            try:
                await stream.write(bytes(24 * MIB))
            except Exception:  # noqa: BLE001 - the other end hangs up, in whatever words
                return 0
            with trio.move_on_after(1):
                await far.event_closed.wait()
        return sum(map(len, far.stream_buffers.values()))


async def test_what_nobody_reads_is_held_only_so_long(autojump_clock: object) -> None:
    assert await flood(ours) == 0


async def test_a_window_grows_to_a_mebibyte_at_most() -> None:
    async with muxed(ours) as (near, far, _), trio.open_nursery() as nursery:
        stream = await near.open_stream()
        assert isinstance(stream, YamuxStream)
        heard = await far.accept_stream()
        assert isinstance(heard, YamuxStream)
        nursery.start_soon(stream.write, bytes(24 * MIB))
        left = 24 * MIB
        with trio.fail_after(PATIENCE):
            while left:
                left -= len(await heard.read(MIB))
        assert heard.target_recv_window <= MIB


async def test_what_nobody_reads_is_bounded_for_all_connections_together() -> None:
    everybody: WeakSet[Muxed] = WeakSet()

    def of_one_node(session: Any) -> BoundedYamux:
        return BoundedYamux(session, PEER, max_streams=4, all_of_node=everybody)

    async with AsyncExitStack() as stack:
        ends = [await stack.enter_async_context(muxed(of_one_node)) for _ in range(6)]
        for near, far, _ in ends:
            stream = await near.open_stream()
            assert isinstance(stream, YamuxStream)
            await far.accept_stream()
            stream.send_window = 2**30
            with trio.move_on_after(PATIENCE), suppress(Exception):
                await stream.write(bytes(3 * MIB))
            await trio.testing.wait_all_tasks_blocked()  # the far end has read what there is
        with trio.move_on_after(PATIENCE):
            await ends[5][1].event_closed.wait()
        assert [far.event_closed.is_set() for _, far, _ in ends] == [False] * 5 + [True]
        assert sum(one.unread for one in everybody if not one.event_closed.is_set()) <= 16 * MIB


async def test_canary_stock_yamux_still_holds_whatever_is_sent(autojump_clock: object) -> None:
    assert await flood(stock) > 16 * MIB, "upstream enforces its window now: BoundedYamux._read_data_body can go"


async def test_a_silent_end_gives_no_sign_of_life_and_a_live_one_does(autojump_clock: object) -> None:
    async with muxed(ours) as (near, far, _):
        assert isinstance(near, BoundedYamux)
        assert await near.is_answering(PATIENCE)
        far.secured_conn.write = trio.sleep_forever  # type: ignore[method-assign, assignment]  # it hears and cannot speak
        assert not await near.is_answering(0.2)


async def test_a_muxer_that_is_cancelled_closes_its_connection() -> None:
    near, far = trio.testing.memory_stream_pair()
    muxer = ours(Session(near, is_initiator=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await muxer.event_started.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(PATIENCE):
        while await far.receive_some():
            pass


async def test_canary_a_cancelled_stock_muxer_still_leaves_its_connection_open(autojump_clock: object) -> None:
    near, far = trio.testing.memory_stream_pair()
    muxer = stock(Session(near, is_initiator=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.start)
        await muxer.event_started.wait()
        nursery.cancel_scope.cancel()
    with trio.move_on_after(0.3) as still_open:
        while await far.receive_some():
            pass
    assert still_open.cancelled_caught, "upstream closes it now: BoundedYamux.start can go"


async def test_a_peer_that_floods_a_stream_loses_its_connection_and_others_are_served(
    start_node: StartNode, start_stock: StartStock
) -> None:
    node, other = await start_node(), await start_node()

    async def never_reads(_: Stream) -> None:
        await trio.sleep_forever()

    async def echo(stream: Stream) -> None:
        await stream.send(await stream.receive(PATIENCE) or b"")

    node.serve("/loremesh/deaf/1", never_reads)
    node.serve("/loremesh/echo/1", echo)
    stranger = await start_stock()
    await stranger.get_network().dial_addr(Multiaddr(node.addresses()[0]), ID(node.peer_id))
    stream = await stranger.new_stream(ID(node.peer_id), ["/loremesh/deaf/1"])
    stream.muxed_stream.send_window = 2**30
    await wait_event(node, PeerConnected)
    with suppress(StreamError), trio.fail_after(PATIENCE):
        await stream.write(bytes(32 * MIB))
    await wait_event(node, PeerDisconnected)
    await other.connect(node.addresses()[0], PATIENCE)
    assert await other.call(node.peer_id, "/loremesh/echo/1", b"served", PATIENCE) == b"served"


async def read_in_two(new: NewYamux) -> list[int]:
    """Read 150 messages of a kilobyte, each a byte and then the rest; give the sizes of the windows given back."""
    async with muxed(new) as (near, far, session):
        stream = await far.open_stream()
        heard = await near.accept_stream()
        session.sent.clear()
        for _ in range(150):
            await stream.write(bytes(1024))
            await trio.testing.wait_all_tasks_blocked()
            assert len(await heard.read(1)) == 1
            assert len(await heard.read(1023)) == 1023
        frames = [struct.unpack(yamux.YAMUX_HEADER_FORMAT, frame[:12]) for frame in session.sent]
    return [size for _, kind, _, _, size in frames if kind == yamux.TYPE_WINDOW_UPDATE]


async def test_a_window_is_given_back_by_halves() -> None:
    [size] = await read_in_two(ours)
    assert size >= yamux.DEFAULT_WINDOW_SIZE // 2


async def test_canary_a_stock_stream_still_gives_its_window_back_in_crumbs() -> None:
    assert len(await read_in_two(stock)) > 50, "upstream waits now: that of FluentStream can go"


async def take_turns(turns: list[None]) -> None:
    """Note each time that a task which is always ready gets its turn."""
    while True:
        await trio.lowlevel.checkpoint()
        turns.append(None)


async def turns_of_a_write(new: NewYamux) -> float:
    """Tell how often another task gets its turn during a write."""
    turns: list[None] = []
    async with muxed(new) as (near, _, _), trio.open_nursery() as nursery:
        stream = await near.open_stream()
        nursery.start_soon(take_turns, turns)
        for _ in range(100):
            await stream.write(b"data")
        nursery.cancel_scope.cancel()
    return len(turns) / 100


async def test_a_write_waits_for_nothing_but_the_socket() -> None:
    assert await turns_of_a_write(ours) < 2


async def test_canary_a_stock_write_still_lets_everybody_go_first_again_and_again() -> None:
    assert await turns_of_a_write(stock) > 4, "upstream's writes are quick now: FluentStream.write can go"


async def test_who_reads_many_small_pieces_lets_others_run() -> None:
    turns: list[None] = []
    async with muxed(ours) as (near, far, _), trio.open_nursery() as nursery:
        stream = await near.open_stream()
        heard = await far.accept_stream()
        await stream.write(bytes(500))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take_turns, turns)
        for _ in range(500):
            await heard.read(1)
        nursery.cancel_scope.cancel()
    assert len(turns) > 400


async def test_what_came_before_a_reset_is_not_read_and_nothing_is_written_after_the_end() -> None:
    async with muxed(ours) as (near, far, _):
        stream = await near.open_stream()
        heard = await far.accept_stream()
        await stream.write(b"data")
        await stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(MuxedStreamReset):
            await heard.read(4)
        for end in (stream, heard):
            with pytest.raises(MuxedStreamError):
                await end.write(b"more")
