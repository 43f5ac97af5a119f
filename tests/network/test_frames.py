"""Frames: whole or refused, in however many pieces they come, with a deadline on every wait."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import DeadlinePassed, Fault, InvalidMessage, Unreachable
from loremesh.network.frames import HEADER_BYTES, Stream
from loremesh.primitives import MIB, PeerId

Clock = trio.testing.MockClock
PEER = PeerId(bytes(39))


class ScriptedPipe:
    """Gives the pieces it was made with, then the end, or silence; keeps what is written."""

    def __init__(self, *pieces: bytes, is_silent: bool = False, takes: bool = True) -> None:
        self.written: list[bytes] = []
        self.calls: list[str] = []
        self._pieces = list(pieces)
        self._is_silent = is_silent
        self._takes = takes

    async def write(self, data: bytes) -> None:
        if not self._takes:
            await trio.sleep_forever()
        self.written.append(data)

    async def read(self, most: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._pieces:
            if self._is_silent:
                await trio.sleep_forever()
            return b""
        piece, rest = self._pieces[0][:most], self._pieces[0][most:]
        self._pieces[:1] = [rest] if rest else []
        return piece

    async def finish(self) -> None:
        self.calls.append("finish")

    async def reset(self) -> None:
        self.calls.append("reset")


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(HEADER_BYTES, "big") + frame for frame in frames)


async def receive_all(stream: Stream) -> list[bytes]:
    received = []
    while (frame := await stream.receive(5)) is not None:
        received.append(frame)
    return received


async def test_a_frame_is_one_write() -> None:
    pipe = ScriptedPipe()
    await Stream(pipe, PEER).send(b"body")
    assert pipe.written == [b"\x00\x00\x00\x04body"]


@given(frames=st.lists(st.binary(max_size=50), max_size=8), cuts=st.lists(st.integers(1, 40), min_size=1))
def test_frames_arrive_whole_and_in_order_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    data, pieces = framed(*frames), list[bytes]()
    while data:
        cut = cuts[len(pieces) % len(cuts)]
        pieces.append(data[:cut])
        data = data[cut:]

    stream = Stream(ScriptedPipe(*pieces), PEER)
    assert trio.run(receive_all, stream) == frames
    assert stream.ended


@pytest.mark.parametrize("data", [b"\x00", b"\x00\x00\x00", framed(b"body")[:-1], framed(b"body", b"more")[:-4]])
async def test_an_end_inside_a_frame_is_unfinished(data: bytes) -> None:
    stream = Stream(ScriptedPipe(data), PEER)
    with pytest.raises(InvalidMessage) as refused:
        await receive_all(stream)
    assert refused.value.fault is Fault.UNFINISHED


@pytest.mark.parametrize(("length", "limit"), [(2**32 - 1, 1 * MIB), (1 * MIB + 1, 2 * MIB), (11, 10)])
async def test_a_frame_that_is_too_long_is_refused_on_its_length_alone(length: int, limit: int) -> None:
    stream = Stream(ScriptedPipe(length.to_bytes(HEADER_BYTES, "big"), is_silent=True), PEER)
    with pytest.raises(InvalidMessage) as refused:
        await stream.receive(5, limit)
    assert refused.value.fault is Fault.FRAME_TOO_LONG


async def test_a_frame_at_the_limit_is_received() -> None:
    assert await Stream(ScriptedPipe(framed(bytes(10))), PEER).receive(5, 10) == bytes(10)


async def test_a_frame_too_long_for_anyone_is_not_even_sent() -> None:
    pipe = ScriptedPipe()
    with pytest.raises(InvalidMessage):
        await Stream(pipe, PEER, max_frame=10).send(bytes(11))
    assert pipe.written == []


@pytest.mark.parametrize("data", [b"", b"\x00", framed(b"body")[:-1]])
async def test_silence_is_a_passed_deadline(data: bytes, autojump_clock: Clock) -> None:
    stream = Stream(ScriptedPipe(*([data] if data else []), is_silent=True), PEER)
    started = trio.current_time()
    with pytest.raises(DeadlinePassed):
        await stream.receive(7)
    assert trio.current_time() - started == 7


async def test_a_peer_that_drips_does_not_stretch_the_deadline(autojump_clock: Clock) -> None:
    class Dripping(ScriptedPipe):
        async def read(self, most: int) -> bytes:
            await trio.sleep(1)
            return await super().read(min(1, most))

    with pytest.raises(DeadlinePassed):
        await Stream(Dripping(framed(bytes(100))), PEER).receive(7)


async def test_a_peer_that_takes_nothing_is_a_passed_deadline(autojump_clock: Clock) -> None:
    with pytest.raises(DeadlinePassed):
        await Stream(ScriptedPipe(takes=False), PEER).send(b"", timeout=3)


async def test_a_pipe_that_breaks_says_so() -> None:
    class Broken(ScriptedPipe):
        async def read(self, most: int) -> bytes:
            raise Unreachable(f"broken before {most} bytes")

    with pytest.raises(Unreachable):
        await Stream(Broken(), PEER).receive(5)


async def test_finishing_and_resetting_reach_the_pipe() -> None:
    pipe = ScriptedPipe()
    stream = Stream(pipe, PEER)
    await stream.finish()
    await stream.reset()
    assert pipe.calls == ["finish", "reset"]


async def test_that_a_frame_begins_is_known_before_it_is_there_and_nothing_of_it_is_lost() -> None:
    whole = framed(b"one", b"two")
    stream = Stream(ScriptedPipe(whole[:1], whole[1:9], whole[9:]), PEER)
    assert await stream.begins()
    assert await stream.receive(5) == b"one"
    assert await stream.begins()
    assert await stream.receive(5) == b"two"
    assert not await stream.begins()
    assert await stream.receive(5) is None
