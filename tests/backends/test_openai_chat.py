"""Chats with a scripted OpenAI-compatible server: streamed as they come, within bounds, each failure with its error."""

import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loremesh.backends.chat import ChatEnd, ChatRequest, in_pieces
from loremesh.backends.openai import OpenAIBackend
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendGarbage,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    PromptTooLong,
)
from loremesh.primitives import KIB
from loremesh.protocol.llm import ChatMessage
from loremesh.protocol.receipts import BackendUsage
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI

GENEROUS = 60  # seconds, for whatever must end by itself
LONG = " ".join(["word" * 1000] * 4)  # so that 512 KiB of it are soon there
ASKED = (ChatMessage("system", "Be brief."), ChatMessage("user", "What happened?"))


def request(**changes: Any) -> ChatRequest:
    return ChatRequest(**{"model": "fake", "messages": ASKED, "continues": False, "max_tokens": 50, **changes})


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeOpenAI:
    fake = FakeOpenAI(content="One two three.", pause=0.001)
    await nursery.start(fake.serve)
    return fake


@asynccontextmanager
async def backend(fake: FakeOpenAI, **options: Any) -> AsyncIterator[OpenAIBackend]:
    made = OpenAIBackend(**{"base_url": fake.base_url, "api_key": "secret-key", **options})
    try:
        yield made
    finally:
        await made.aclose()


async def ask(fake: FakeOpenAI, asked: ChatRequest | None = None, **options: Any) -> tuple[list[str], ChatEnd]:
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        pieces.append(piece)

    with trio.fail_after(GENEROUS):
        async with backend(fake, **options) as open_one:
            return pieces, await open_one.chat(asked or request(), deliver)


async def test_an_answer_comes_word_by_word_with_what_the_server_says_it_used(fake: FakeOpenAI) -> None:
    pieces, end = await ask(fake)
    assert "".join(pieces) == "One two three. "
    assert end == ChatEnd("stop", BackendUsage(70, 30))


async def test_a_piece_is_delivered_before_the_next_one_is_there(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.LINGER
    fake.finish_reason = None  # type: ignore[assignment]  # as a server has it that is not done
    first = trio.Event()

    async def deliver(_: str) -> None:
        first.set()

    with trio.fail_after(GENEROUS):
        async with backend(fake) as open_one, trio.open_nursery() as nursery:
            nursery.start_soon(open_one.chat, request(), deliver)
            await first.wait()
            nursery.cancel_scope.cancel()
        await fake.disconnected.wait()


async def test_a_server_that_does_not_stream_is_as_good(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.PLAIN
    pieces, end = await ask(fake)
    assert (pieces, end) == (["One two three."], ChatEnd("stop", BackendUsage(70, 30)))


async def test_the_limit_of_tokens_is_told_from_the_end(fake: FakeOpenAI) -> None:
    fake.finish_reason = "length"
    assert (await ask(fake))[1].finish == "length"


async def test_what_is_asked_is_passed_on_and_nothing_else(fake: FakeOpenAI) -> None:
    await ask(fake)
    chosen = {"temperature": 0.5, "top_p": 0.25, "seed": 7, "response_format": {"type": "json_object"}}
    await ask(fake, request(stop=("END",), **chosen))
    plain, rich = (call.body for call in fake.calls)
    assert set(plain) == {"model", "messages", "max_tokens", "stream", "stream_options"}
    assert plain["messages"] == [{"role": one.role, "content": one.content} for one in ASKED]
    assert plain["max_tokens"] == 50
    assert {name: rich[name] for name in chosen} == chosen
    assert rich["stop"] == ["END"]


async def test_an_answer_that_was_begun_goes_last_and_vllm_is_told_so_if_configured(fake: FakeOpenAI) -> None:
    asked = request(messages=(*ASKED, ChatMessage("assistant", "One two")), continues=True)
    pieces, _ = await ask(fake, asked)
    assert "".join(pieces) == " three. "
    await ask(fake, asked, continue_final_message=True)
    plain, told = (call.body for call in fake.calls)
    assert plain["messages"][-1] == {"role": "assistant", "content": "One two"}
    assert "continue_final_message" not in plain
    assert (told["continue_final_message"], told["add_generation_prompt"]) == (True, False)


async def test_nothing_more_to_say_is_an_answer_only_where_one_was_begun(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.MISSING
    asked = request(messages=(*ASKED, ChatMessage("assistant", "One two three.")), continues=True)
    assert await ask(fake, asked) == ([], ChatEnd("stop", BackendUsage(70, 30)))
    with pytest.raises(BackendGarbage, match="without any text"):
        await ask(fake)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour.UNAUTHORISED, BackendUnauthorised),
        (Behaviour.TOO_MANY, BackendBusy),
        (Behaviour.FAILED, BackendFailed),
        (Behaviour.BAD_GATEWAY, BackendFailed),
        (Behaviour.BAD_REQUEST, BackendRefused),
        (Behaviour.TOO_LONG, PromptTooLong),
        (Behaviour.GARBAGE, BackendGarbage),
        (Behaviour.EMPTY, BackendGarbage),
        (Behaviour.MISSING, BackendGarbage),
        (Behaviour.REFUSE, BackendFailed),
        (Behaviour.BROKEN, BackendFailed),
        (Behaviour.RESET, BackendFailed),
        (Behaviour.ENDLESS, BackendGarbage),
        (Behaviour.ENDLESS_LINE, BackendGarbage),
        (Behaviour.HUGE, BackendGarbage),
    ],
)
async def test_every_failure_has_its_error_and_the_next_call_succeeds(
    fake: FakeOpenAI, behaviour: Behaviour, error: type[BackendError]
) -> None:
    fake.script.append(behaviour)
    fake.content = LONG
    with pytest.raises(error) as caught:
        await ask(fake)
    assert type(caught.value) is error
    assert "secret-key" not in str(caught.value)
    fake.content = "One two three."
    assert "".join((await ask(fake))[0]) == "One two three. "
    assert len(fake.calls) == 2


async def test_busy_says_when_to_come_back(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.TOO_MANY
    with pytest.raises(BackendBusy) as caught:
        await ask(fake)
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("behaviour", [Behaviour.HANG, Behaviour.DRIP])
async def test_a_server_that_says_nothing_for_so_long_is_given_up(fake: FakeOpenAI, behaviour: Behaviour) -> None:
    fake.otherwise = behaviour
    fake.pause = 0.1  # each byte is quick, the piece is not
    with pytest.raises(BackendTimeout):
        await ask(fake, patience=0.5)
    with trio.fail_after(GENEROUS):
        await fake.disconnected.wait()


async def test_pieces_keep_an_answer_alive_however_long_it_takes(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.SLOW
    fake.pause = 0.5
    fake.content = "one two three four five six seven eight"
    before = trio.current_time()
    assert len((await ask(fake, patience=3))[0]) == 8
    assert trio.current_time() - before > 3


async def test_a_reader_that_takes_its_time_is_not_the_servers_silence(fake: FakeOpenAI) -> None:
    pauses = [2.5]

    async def deliver(_: str) -> None:
        await trio.sleep(pauses.pop() if pauses else 0)

    with trio.fail_after(GENEROUS):
        async with backend(fake, patience=2) as open_one:
            assert (await open_one.chat(request(), deliver)).finish == "stop"


async def test_a_whole_text_is_an_answer_though_the_server_never_says_what_it_used(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.LINGER
    pieces, end = await ask(fake)
    assert ("".join(pieces), end) == ("One two three. ", ChatEnd("stop", None))


@pytest.mark.parametrize("usage", [{"prompt_tokens": -1, "completion_tokens": 3}, {"prompt_tokens": 2**40}, "lots", 7])
async def test_usage_that_is_nonsense_is_dropped(fake: FakeOpenAI, usage: object) -> None:
    fake.usage = usage
    assert (await ask(fake))[1].usage is None


async def test_a_long_text_comes_in_pieces_that_fit_a_frame(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.PLAIN
    fake.content = "漢" * 40_000
    pieces, _ = await ask(fake)
    assert "".join(pieces) == fake.content
    assert all(0 < len(piece.encode()) <= 64 * KIB for piece in pieces)


@given(st.text(), st.integers(0, 40_000))
def test_pieces_are_as_few_as_fit_frames_and_cut_no_character(text: str, times: int) -> None:
    text = text.encode(errors="replace").decode() * times
    pieces = list(in_pieces(text[:200_000]))
    assert "".join(pieces) == text[:200_000]
    sizes = [len(piece.encode()) for piece in pieces]
    assert all(64 * KIB - 4 < size <= 64 * KIB for size in sizes[:-1])
    assert all(0 < size <= 64 * KIB for size in sizes)


async def streams_asked(fake: FakeOpenAI, *asked: ChatRequest, **options: Any) -> list[bool]:
    """Make calls one after the other; tell of each that was answered or given up whether it asked for a stream."""

    async def drop(_: str) -> None:
        await trio.lowlevel.checkpoint()

    with trio.fail_after(GENEROUS):
        async with backend(fake, **options) as open_one:
            for one in asked:
                with suppress(BackendTimeout):
                    await open_one.chat(one, drop)
    return [bool(call.body.get("stream")) for call in fake.calls]


WHOLE = request(is_whole=True)


async def test_a_whole_answer_is_asked_for_where_nobody_reads_pieces_and_answers_are_known_to_be_quick(
    fake: FakeOpenAI,
) -> None:
    asked = WHOLE, WHOLE, request(), WHOLE, request(is_whole=True, max_tokens=4097), request(is_whole=True, model="new")
    assert await streams_asked(fake, *asked, quick=GENEROUS) == [True, False, True, False, True, True]
    assert set(fake.calls[1].body) == {"model", "messages", "max_tokens"}


async def test_a_model_whose_answers_take_long_is_asked_for_streams(fake: FakeOpenAI) -> None:
    fake.otherwise, fake.pause = Behaviour.SLOW, 0.1
    assert await streams_asked(fake, WHOLE, WHOLE, quick=0.1) == [True, True]


async def test_a_whole_answer_is_not_taken_for_silence_while_it_is_made(fake: FakeOpenAI) -> None:
    fake.otherwise, fake.pause, fake.content = Behaviour.SLOW, 1.0, "One"
    options = {"patience": 10.0, "quick": GENEROUS, "whole_patience": GENEROUS}
    async with backend(fake, **options) as open_one:
        pieces = list[str]()

        async def deliver(piece: str) -> None:
            pieces.append(piece)

        with trio.fail_after(GENEROUS):
            await open_one.chat(WHOLE, deliver)
            open_one._patience = 0.5
            assert await open_one.chat(WHOLE, deliver) == ChatEnd("stop", BackendUsage(70, 30))
    assert pieces == ["One ", "One"]


async def test_a_whole_answer_that_does_not_come_is_given_up_and_a_stream_asked_for_next(fake: FakeOpenAI) -> None:
    fake.script.extend([Behaviour.OK, Behaviour.HANG])
    asked = await streams_asked(fake, WHOLE, WHOLE, WHOLE, quick=GENEROUS, whole_patience=0.5)
    assert asked == [True, False, True]


@pytest.mark.parametrize("behaviour", [Behaviour.HUGE, Behaviour.GARBAGE, Behaviour.EMPTY])
async def test_a_whole_answer_that_is_none_or_endless_is_refused(fake: FakeOpenAI, behaviour: Behaviour) -> None:
    fake.script.extend([Behaviour.OK, behaviour])
    with pytest.raises(BackendGarbage):
        await streams_asked(fake, WHOLE, WHOLE, quick=GENEROUS)


@pytest.mark.parametrize("behaviour", [Behaviour.ENDLESS, Behaviour.ENDLESS_LINE])
async def test_an_endless_answer_takes_no_more_memory_than_twice_its_limit(
    fake: FakeOpenAI, behaviour: Behaviour
) -> None:
    async def drop(_: str) -> None:
        await trio.lowlevel.checkpoint()

    async with backend(fake) as open_one:
        await open_one.chat(request(), drop)
        fake.otherwise, fake.content = behaviour, LONG
        tracemalloc.start(1)
        try:
            with trio.fail_after(GENEROUS), pytest.raises(BackendGarbage):
                await open_one.chat(request(), drop)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 2 * 512 * KIB
