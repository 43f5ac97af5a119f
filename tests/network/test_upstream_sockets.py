"""`upstream/sockets.py`: a socket is asked once for what has come."""

from collections.abc import Callable
from socket import socketpair as socket_pair

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from loremesh.network.upstream.sockets import BufferedStream

from libp2p.io.exceptions import ConnectionClosedError  # isort: skip
from libp2p.io.trio import TrioTCPStream  # isort: skip

SECONDS = 2.0
NewStream = Callable[[trio.SocketStream], TrioTCPStream]


class Socket:
    """A socket in memory that counts how often it is asked."""

    def __init__(self) -> None:
        self._stream, self.other = trio.testing.memory_stream_pair()
        self.asked = 0
        self.broken = False

    async def receive_some(self, n: int | None = None) -> bytes:
        self.asked += 1
        if self.broken:
            raise trio.BrokenResourceError
        return bytes(await self._stream.receive_some(n))

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize(("new", "asked"), [(BufferedStream, 1), (TrioTCPStream, 4)])
async def test_what_came_together_is_asked_for_once(new: NewStream, asked: int) -> None:
    socket = Socket()
    stream = new(socket)  # type: ignore[arg-type]  # enough of a socket
    await socket.other.send_all(b"\x02ab\x03cde")
    assert [await stream.read(n) for n in (1, 2, 1, 3)] == [b"\x02", b"ab", b"\x03", b"cde"]
    assert socket.asked == asked


async def test_less_than_was_wanted_is_given_at_once_and_the_end_is_empty() -> None:
    socket = Socket()
    stream = BufferedStream(socket)  # type: ignore[arg-type]  # as above
    await socket.other.send_all(b"abc")
    await socket.other.aclose()
    assert [await stream.read(n) for n in (2, 9, 9, None, 0)] == [b"ab", b"c", b"", b"", b""]


async def test_two_readers_share_what_comes() -> None:
    socket = Socket()
    stream = BufferedStream(socket)  # type: ignore[arg-type]  # as above
    pieces: list[bytes] = []

    async def read_one() -> None:
        pieces.append(await stream.read(1))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_one)
            nursery.start_soon(read_one)
            await trio.testing.wait_all_tasks_blocked()
            await socket.other.send_all(b"ab")
    assert sorted(pieces) == [b"a", b"b"]


async def test_a_broken_socket_raises_and_one_closed_here_has_ended() -> None:
    socket = Socket()
    stream = BufferedStream(socket)  # type: ignore[arg-type]  # as above
    socket.broken = True
    with pytest.raises(ConnectionClosedError):
        await stream.read(1)
    socket.broken = False
    await stream.close()
    assert await stream.read(1) == b""


def last(others: trio.Lock, said: bytes) -> BufferedStream:
    """Give a stream that comes last, on a real socket at which something has come."""
    ours, theirs = socket_pair()
    theirs.sendall(said)
    theirs.close()
    stream = BufferedStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    stream.come_last(SECONDS, others)
    return stream


async def test_who_comes_last_is_read_when_nobody_else_wants_anything_and_little_at_a_time(
    mock_clock: MockClock,
) -> None:
    happened: list[str] = []

    async def serve_others() -> None:
        for _ in range(500):
            await trio.lowlevel.checkpoint()
        happened.append("others were served")

    stream = last(trio.Lock(), bytes(2000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_others)
        piece = await stream.read(2000)
        happened.append("read")
    assert happened == ["others were served", "read"]
    assert 0 < len(piece) < 1000
    mock_clock.jump(SECONDS)
    rest = await stream.read(2000)
    assert len(piece + rest) == 2000
    await stream.close()


async def test_who_comes_last_is_read_after_a_while_though_the_others_never_stop(mock_clock: MockClock) -> None:
    stream = last(trio.Lock(), b"hello")
    async with trio.open_nursery() as nursery:

        async def never_stop() -> None:
            while True:
                mock_clock.jump(0.001)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(never_stop)
        assert await stream.read(5) == b"hello"
        nursery.cancel_scope.cancel()
    await stream.close()
