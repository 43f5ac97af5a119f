"""Pieces that come faster than they are sent go out together, none is lost, and whoever fails is heard."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from loremesh.backends.chat import Deliver
from loremesh.services.gathering import Leisure, gathering


async def test_the_first_piece_goes_out_at_once_and_what_comes_meanwhile_as_one(autojump_clock: MockClock) -> None:
    sent: list[tuple[float, str]] = []
    began = trio.current_time()

    async def deliver(text: str) -> None:
        sent.append((round(trio.current_time() - began, 3), text))
        await trio.sleep(1)

    async def write(put: Deliver) -> str:
        for word in ("Nobody", " keeps", " the"):
            await put(word)
            await trio.sleep(0.3)
        await trio.sleep(5)
        await put(" lamp.")
        return "done"

    assert await gathering(write, deliver) == "done"
    assert sent == [(0, "Nobody"), (1, " keeps the"), (5.9, " lamp.")]


async def test_where_nobody_reads_pieces_they_go_out_as_one_when_the_last_is_there(autojump_clock: MockClock) -> None:
    sent: list[str] = []
    ticks = 0

    async def deliver(text: str) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(text)

    async def tick() -> None:
        nonlocal ticks
        await trio.lowlevel.checkpoint()
        ticks += 1

    async def write(put: Deliver) -> str:
        for word in ("Nobody", " keeps", " the", " lamp."):
            await trio.sleep(1)
            await put(word)
        return "done"

    assert await gathering(write, deliver, Leisure(5, tick)) == "done"
    assert (sent, ticks) == (["Nobody keeps the lamp."], 0)


async def test_where_nobody_reads_pieces_what_there_is_goes_out_every_few_seconds(autojump_clock: MockClock) -> None:
    told: list[tuple[float, str]] = []
    began = trio.current_time()

    async def deliver(text: str) -> None:
        await trio.lowlevel.checkpoint()
        told.append((round(trio.current_time() - began), text))

    async def write(put: Deliver) -> None:
        for _ in range(4):
            await trio.sleep(3)
            await put("x")
        await trio.sleep(12)
        await put("y" * 64 * 1024)
        await put("z")

    await gathering(write, deliver, Leisure(5, lambda: deliver("tick")))
    kinds = [(when, text[:4]) for when, text in told]
    assert kinds == [
        *((5, "x"), (5, "tick"), (10, "xx"), (10, "tick"), (15, "x"), (15, "tick")),
        *((20, "tick"), (24, "yyyy"), (24, "tick"), (24, "z")),
    ]


async def test_whoever_writes_waits_while_much_waits(autojump_clock: MockClock) -> None:
    written, go_on = 0, trio.Event()

    async def write(put: Deliver) -> None:
        nonlocal written
        for _ in range(100):
            await put("x" * 1000)
            written += 1

    async def deliver(text: str) -> None:
        assert len(text) <= 17_000
        await go_on.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gathering, write, deliver)
        await trio.testing.wait_all_tasks_blocked()
        assert written < 40
        go_on.set()
    assert written == 100


async def test_what_was_written_before_a_failure_is_handed_on() -> None:
    sent: list[str] = []

    async def write(put: Deliver) -> None:
        await put("Nobody")
        await put(" keeps")
        raise LookupError("broke")

    async def deliver(text: str) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(text)

    with pytest.raises(LookupError, match="broke"):
        await gathering(write, deliver)
    assert "".join(sent) == "Nobody keeps"


async def test_when_nothing_can_be_handed_on_the_writing_is_given_up() -> None:
    given_up = False

    async def write(put: Deliver) -> None:
        nonlocal given_up
        await put("Nobody")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            given_up = True
            raise

    async def deliver(text: str) -> None:
        await trio.lowlevel.checkpoint()
        raise ConnectionError(text)

    with trio.fail_after(60), pytest.raises(ConnectionError, match="Nobody"):
        await gathering(write, deliver)
    assert given_up


@given(st.lists(st.tuples(st.text(min_size=1, max_size=9), st.integers(0, 3))), st.integers(0, 3))
def test_however_the_two_interleave_every_piece_arrives_in_its_place(pieces: list[tuple[str, int]], slow: int) -> None:
    sent: list[str] = []

    async def write(put: Deliver) -> None:
        for text, pause in pieces:
            await put(text)
            await trio.sleep(pause)

    async def deliver(text: str) -> None:
        await trio.sleep(slow)
        assert text
        sent.append(text)

    async def play() -> None:
        await gathering(write, deliver)

    trio.run(play, clock=MockClock(autojump_threshold=0))
    assert "".join(sent) == "".join(text for text, _ in pieces)
