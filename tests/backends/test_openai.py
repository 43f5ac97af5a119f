"""Paragraphs out of a scripted server: every way a backend misbehaves has one typed error, in bounded time."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from loremesh.backends.budget import DailyCap, MemoryTokenCounter
from loremesh.backends.openai import OpenAIBackend
from loremesh.backends.writer import ChatWriter
from loremesh.errors import (
    BackendBusy,
    BackendExhausted,
    BackendFailed,
    BackendGarbage,
    BackendTimeout,
    BackendUnauthorised,
    PromptTooLong,
    UsageError,
)
from loremesh.primitives import Height, Millis
from loremesh.protocol.content.paragraph import check_paragraph
from loremesh.testing.builders import paragraph_request
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI

GENEROUS = 30  # seconds, for whatever must end by itself
REQUEST = paragraph_request(height=Height(3), paragraphs=("One.", "Two."), suggestions=("a talking fox",))
NOON = Millis(20_000 * 86_400_000 + 43_200_000)


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeOpenAI:
    fake = FakeOpenAI()
    await nursery.start(fake.serve)
    return fake


@asynccontextmanager
async def backend(base_url: str, api_key: str = "secret-key", **options: Any) -> AsyncIterator[ChatWriter]:
    made = OpenAIBackend(base_url=base_url, api_key=api_key)
    try:
        yield ChatWriter(made, "fake", **options)
    finally:
        await made.aclose()


@pytest.mark.parametrize("behaviour", [Behaviour.OK, Behaviour.PLAIN, Behaviour.SLOW])
async def test_a_paragraph_is_written_whether_the_server_streams_or_not(fake: FakeOpenAI, behaviour: Behaviour) -> None:
    fake.otherwise = behaviour
    fake.pause = 0.001
    async with backend(fake.base_url) as writer:
        with trio.fail_after(GENEROUS):
            draft = await writer.write(REQUEST)
    assert draft.text.startswith("On evening 1 the keeper climbed")
    assert draft.text.endswith("and blew out the light.")
    assert draft.model == "fake"


async def test_what_is_sent_is_the_prompt_the_key_and_a_limit(fake: FakeOpenAI) -> None:
    async with backend(fake.base_url) as writer:
        await writer.write(REQUEST)
    (call,) = fake.calls
    assert call.path == "/v1/chat/completions"
    assert call.headers["authorization"] == "Bearer secret-key"
    assert [message["role"] for message in call.body["messages"]] == ["system", "user"]
    assert "a talking fox" in call.body["messages"][1]["content"]
    assert call.body["max_tokens"] == 560
    assert set(call.body) == {"model", "messages", "max_tokens", "stream", "stream_options"}


async def test_each_request_has_its_own_delimiter(fake: FakeOpenAI) -> None:
    async with backend(fake.base_url) as writer:
        drafts = [await writer.write(REQUEST), await writer.write(REQUEST)]
    delimiters = {call.body["messages"][1]["content"].split(" ")[0] for call in fake.calls}
    assert len(delimiters) == 2
    assert drafts[0].prompt_digest != drafts[1].prompt_digest


async def test_two_paragraphs_with_a_lead_in_come_back_as_one(fake: FakeOpenAI) -> None:
    fake.content = "Sure, here it is:\n\nThe lamp burned low.\n\nWhat next?"
    async with backend(fake.base_url) as writer:
        assert (await writer.write(REQUEST)).text == "The lamp burned low."


async def test_a_sentence_cut_by_the_token_limit_is_left_out(fake: FakeOpenAI) -> None:
    fake.content = "The lamp burned low. The door opened. And then the"
    fake.finish_reason = "length"
    async with backend(fake.base_url) as writer:
        assert (await writer.write(REQUEST)).text == "The lamp burned low. The door opened."


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (Behaviour.UNAUTHORISED, BackendUnauthorised),
        (Behaviour.TOO_MANY, BackendBusy),
        (Behaviour.FAILED, BackendFailed),
        (Behaviour.GARBAGE, BackendGarbage),
        (Behaviour.EMPTY, BackendGarbage),
        (Behaviour.REFUSE, BackendFailed),
        (Behaviour.BROKEN, BackendFailed),
        (Behaviour.ENDLESS_LINE, BackendGarbage),
    ],
)
async def test_every_failure_has_its_error_and_the_next_call_succeeds(
    fake: FakeOpenAI, behaviour: Behaviour, error: type[Exception]
) -> None:
    fake.script.append(behaviour)
    async with backend(fake.base_url) as writer:
        with trio.fail_after(GENEROUS), pytest.raises(error) as caught:
            await writer.write(REQUEST)
        assert type(caught.value) is error
        assert "secret-key" not in str(caught.value)
        assert (await writer.write(REQUEST)).text
    assert len(fake.calls) == 2  # no retries of the SDK's own


async def test_an_error_repeats_what_the_server_said_but_not_the_key(fake: FakeOpenAI) -> None:
    fake.script.append(Behaviour.UNAUTHORISED)
    async with backend(fake.base_url, api_key="scripted") as writer:
        with pytest.raises(BackendUnauthorised, match=r"answered 401: \*\*\* 401"):
            await writer.write(REQUEST)


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-1", 0.0), ("1e9", 3600.0), ("nan", None), ("Fri", None)]
)
async def test_busy_says_when_to_come_back(fake: FakeOpenAI, header: str, seconds: float | None) -> None:
    fake.script.append(Behaviour.TOO_MANY)
    fake.retry_after = header
    async with backend(fake.base_url) as writer:
        with pytest.raises(BackendBusy) as caught:
            await writer.write(REQUEST)
    assert caught.value.retry_after == seconds


async def test_nobody_there_is_a_failure() -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with backend(f"http://127.0.0.1:{port}/v1") as writer:
        with trio.fail_after(GENEROUS), pytest.raises(BackendFailed):
            await writer.write(REQUEST)


@pytest.mark.parametrize("behaviour", [Behaviour.HANG, Behaviour.SLOW])
async def test_the_deadline_is_for_the_whole_call_and_the_server_sees_us_leave(
    fake: FakeOpenAI, behaviour: Behaviour
) -> None:
    fake.otherwise = behaviour
    fake.pause = 0.2  # each read is quick, all of them together are not
    async with backend(fake.base_url, deadline=0.5) as writer:
        with trio.fail_after(GENEROUS):
            with pytest.raises(BackendTimeout):
                await writer.write(REQUEST)
            await fake.disconnected.wait()


async def test_an_endless_answer_is_cut_and_the_connection_closed(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.ENDLESS
    async with backend(fake.base_url) as writer:
        with trio.fail_after(GENEROUS):
            draft = await writer.write(REQUEST)
            await fake.disconnected.wait()
    check_paragraph(draft.text, 140)


async def test_cancelling_aborts_the_request(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.HANG
    async with backend(fake.base_url) as writer:
        with trio.fail_after(GENEROUS):
            async with trio.open_nursery() as race:
                race.start_soon(writer.write, REQUEST)
                await fake.called.wait()
                race.cancel_scope.cancel()
            await fake.disconnected.wait()
        fake.otherwise = Behaviour.OK
        assert (await writer.write(REQUEST)).text


async def test_many_calls_share_one_client(fake: FakeOpenAI) -> None:
    texts = set[str]()
    async with backend(fake.base_url) as writer:

        async def write() -> None:
            texts.add((await writer.write(REQUEST)).text)

        with trio.fail_after(GENEROUS):
            async with trio.open_nursery() as several:
                for _ in range(8):
                    several.start_soon(write)
    assert len(texts) == 8


async def test_the_daily_cap_refuses_before_anything_is_sent_and_says_when_it_resets(fake: FakeOpenAI) -> None:
    cap = DailyCap(100, MemoryTokenCounter(), lambda: NOON)
    async with backend(fake.base_url, cap=cap) as writer:
        with pytest.raises(BackendExhausted) as caught:
            await writer.write(REQUEST)
    assert caught.value.resets_at == 20_001 * 86_400_000
    assert not fake.calls


async def test_the_daily_cap_counts_what_was_used_and_starts_again_the_next_day(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.PLAIN  # says: 100 tokens
    clock = [NOON]
    counter = MemoryTokenCounter()
    async with backend(fake.base_url, cap=DailyCap(1200, counter, lambda: clock[0])) as writer:
        await writer.write(REQUEST)
        await writer.write(REQUEST)
        assert counter.days == {20_000: 200}
        await counter.add(20_000, 500)
        with pytest.raises(BackendExhausted):
            await writer.write(REQUEST)
        clock[0] = Millis(NOON + 86_400_000)
        assert (await writer.write(REQUEST)).text


async def test_a_refused_call_costs_nothing_and_a_cancelled_one_its_prompt(fake: FakeOpenAI) -> None:
    counter = MemoryTokenCounter()
    fake.script.extend([Behaviour.TOO_MANY, Behaviour.HANG])
    async with backend(fake.base_url, cap=DailyCap(10_000, counter, lambda: NOON), deadline=0.5) as writer:
        with pytest.raises(BackendBusy):
            await writer.write(REQUEST)
        assert counter.days == {20_000: 0}
        with pytest.raises(BackendTimeout):
            await writer.write(REQUEST)
        assert 300 < counter.days[20_000] < 560


async def test_calls_at_once_do_not_pass_the_cap_together(fake: FakeOpenAI) -> None:
    cap = DailyCap(2000, MemoryTokenCounter(), lambda: NOON)
    refused = list[BackendExhausted]()
    async with backend(fake.base_url, cap=cap) as writer:

        async def write() -> None:
            try:
                await writer.write(REQUEST)
            except BackendExhausted as error:
                refused.append(error)

        async with trio.open_nursery() as several:
            for _ in range(6):
                several.start_soon(write)
    assert len(fake.calls) == 2
    assert len(refused) == 4


async def test_a_prompt_that_cannot_fit_is_never_sent(fake: FakeOpenAI) -> None:
    async with backend(fake.base_url, context=600) as writer:
        with pytest.raises(PromptTooLong):
            await writer.write(REQUEST)
    assert not fake.calls


@pytest.mark.parametrize(
    "base_url", ["", "127.0.0.1:80", "ftp://127.0.0.1/v1", "http://", "http://h:99999/v1", "http://["]
)
def test_a_base_url_that_is_none_is_a_usage_error(base_url: str) -> None:
    with pytest.raises(UsageError, match="--base-url"):
        OpenAIBackend(base_url=base_url)


async def test_thoughts_do_not_count_as_words_enough(fake: FakeOpenAI) -> None:
    fake.content = f"<think>{'hm ' * 2000}</think>The lamp burned low."
    async with backend(fake.base_url) as writer:
        with trio.fail_after(GENEROUS):
            assert (await writer.write(REQUEST)).text == "The lamp burned low."
