"""The gateway over a fake mesh: OpenAI's shapes, as the official SDK and plain HTTP see them, and who is let in."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    Fault,
    InvalidField,
    InvalidMessage,
    LoremeshError,
    MachineError,
    NoExecutor,
    StorageError,
    Unreachable,
    UnsupportedModel,
    UsageError,
)
from loremesh.web.answers import Answered, Offered, failure_of
from loremesh.web.chats import MAX_BODY_BYTES, Asked, read_chat, read_completion, read_json
from loremesh.web.gateway import GATEWAY_LIMITS, Gateway
from loremesh.web.guard import check_exposure
from loremesh.web.server import Limits, bound_address, listen, serve

Ask = Callable[..., Awaitable[Any]]
Say = Callable[[str, bytes], Awaitable[bytes]]
Deliver = Callable[[str], Awaitable[None]]
PIECES = ("Nobody", " keeps", ' the lamp \u2014 it keeps itself. 🐉\n"Then\u2028we walk"', "\0")
TEXT = "".join(PIECES)
CHAT = {"model": "small", "messages": [{"role": "user", "content": "Who keeps the lamp?"}]}
JSON = "Content-Type: application/json"


@dataclass
class FakeMesh:
    """Answers what it is told to; `error` comes after `before_error` pieces."""

    pieces: Sequence[str] = PIECES
    error: Exception | None = None
    before_error: int = 0
    hangs: bool = False
    asked: list[Asked] = field(default_factory=list)
    reached: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def models(self) -> Sequence[Offered]:
        if self.error is not None:
            raise self.error
        return [Offered("small", ("16Uiu2one",), 4096, 250), Offered("a/b", ("16Uiu2one",), 512, 0)]

    async def call(self, asked: Asked, deliver: Deliver) -> Answered:
        self.asked.append(asked)
        pieces = self.pieces if self.error is None else self.pieces[: self.before_error]
        try:
            for piece in pieces:
                await deliver(piece)
            self.reached.set()
            if self.hangs:
                await self.go_on.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        return Answered("".join(pieces), "stop", 5, 9, ("16Uiu2one",), ("ab" * 32,), ())


@asynccontextmanager
async def gateway_at(
    mesh: FakeMesh, key: str | None = None, limits: Limits = GATEWAY_LIMITS
) -> AsyncIterator[tuple[str, Gateway]]:
    gateway = Gateway(mesh, key)
    listeners = await listen("127.0.0.1:0", "--listen")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, gateway.app(), listeners, limits)
        yield bound_address(listeners[0]), gateway
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def sdk_at(mesh: FakeMesh, key: str | None = None, sent: str = "any") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        gateway_at(mesh, key) as (address, _),
        openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key=sent, max_retries=0, timeout=60) as client,
    ):
        yield client


async def post(ask: Ask, address: str, body: object, *headers: str, path: str = "/v1/chat/completions") -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await ask(address, path, "POST", JSON, f"Content-Length: {len(data)}", *headers, body=data)


# ---- What clients get -----------------------------------------------------------------------------------------------


async def test_a_whole_answer_says_what_it_took_and_who_gave_it() -> None:
    mesh = FakeMesh()
    async with sdk_at(mesh) as client:
        answer = await client.chat.completions.create(
            model="small",
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who keeps the lamp?"}],
            max_tokens=77,
            temperature=0.5,
            top_p=0.25,
            seed=42,
            stop=["END", "FIN"],
            response_format={"type": "json_object"},
        )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 9, 14)
    assert (answer.model_extra or {})["loremesh"] == {
        "executors": ["16Uiu2one"],
        "receipts": ["ab" * 32],
        "tokenizer": "o200k_base",
        "warnings": [],
    }
    [asked] = mesh.asked
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed) == (77, 0.5, 0.25, 42)
    assert (asked.stop, asked.response_format) == (("END", "FIN"), {"type": "json_object"})


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_gives_each_piece_as_it_comes(include_usage: bool) -> None:  # noqa: FBT001 - both ways
    mesh = FakeMesh(hangs=True)
    options: Any = {"stream_options": {"include_usage": True}} if include_usage else {}
    async with (
        sdk_at(mesh) as client,
        await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "?"}], stream=True, **options
        ) as stream,
    ):
        texts, usages, ends, roles = [], [], [], []
        with trio.fail_after(60):
            async for chunk in stream:
                assert (chunk.object, chunk.model) == ("chat.completion.chunk", "small")
                for choice in chunk.choices:
                    roles += [choice.delta.role] if choice.delta.role else []
                    texts += [choice.delta.content] if choice.delta.content else []
                    ends += [choice.finish_reason] if choice.finish_reason else []
                if chunk.usage:
                    usages.append(chunk.usage.total_tokens)
                if len(texts) == len(PIECES):
                    mesh.go_on.set()  # all of them are here, and the call still runs
    assert (tuple(texts), roles, ends) == (PIECES, ["assistant"], ["stop"])
    assert usages == ([14] if include_usage else [])


async def test_the_older_way_to_ask_is_answered_whole_and_as_a_stream() -> None:
    mesh = FakeMesh()
    async with sdk_at(mesh) as client:
        whole = await client.completions.create(model="small", prompt="Who?", max_tokens=5)
        async with await client.completions.create(model="small", prompt=["Who?"], stream=True) as stream:
            texts = [chunk.choices[0].text async for chunk in stream if chunk.choices]
    assert (whole.object, whole.choices[0].text, whole.choices[0].finish_reason) == ("text_completion", TEXT, "stop")
    assert "".join(texts) == TEXT
    assert [(one.messages[0].role, one.messages[0].content) for one in mesh.asked] == [("user", "Who?")] * 2


async def test_the_sdk_lists_and_shows_the_models_that_are_served_now() -> None:
    async with sdk_at(FakeMesh()) as client:
        models = (await client.models.list()).data
        shown = await client.models.retrieve("a/b")
        with pytest.raises(openai.NotFoundError, match=r"nobody serves 'huge'; served: small, a/b"):
            await client.models.retrieve("huge")
    assert [(model.id, model.object, model.owned_by) for model in models] == [
        ("small", "model", "loremesh"),
        ("a/b", "model", "loremesh"),
    ]
    assert shown == models[1]


async def test_a_streamed_chat_of_the_sdk_accumulates_to_the_whole_answer() -> None:
    async with (
        sdk_at(FakeMesh()) as client,
        client.chat.completions.stream(model="small", messages=[{"role": "user", "content": "?"}]) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.content == TEXT


async def test_an_answer_without_text_is_one_too() -> None:
    async with sdk_at(FakeMesh(pieces=())) as client:
        whole = await client.chat.completions.create(model="small", messages=[{"role": "user", "content": "?"}])
        async with await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "?"}], stream=True
        ) as stream:
            ends = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
    assert whole.choices[0].message.content == ""
    assert ends == [None, "stop"]


async def test_a_connection_is_kept_for_the_next_call() -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, _):
        host, _, port = address.partition(":")
        body = json.dumps(CHAT).encode()
        request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        with trio.fail_after(60):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                for _ in range(3):
                    await stream.send_all(request + body)
                    answer = b""
                    while b'"warnings":[]}}' not in answer:
                        answer += await stream.receive_some()
    assert len(mesh.asked) == 3


# ---- What clients are refused ----------------------------------------------------------------------------------------

ERRORS = [
    (UnsupportedModel("small", ("tiny",)), 404, "invalid_request_error", "model_not_found", "model", None),
    (CallFailed(ErrorKind.UNSUPPORTED_MODEL, "x"), 404, "invalid_request_error", "model_not_found", "model", None),
    (ExecutorBusy("all slots are taken", 2.1), 429, "rate_limit_error", "rate_limit_exceeded", None, "3"),
    (CallFailed(ErrorKind.EXHAUSTED, "x"), 429, "insufficient_quota", "insufficient_quota", None, "600"),
    (CallFailed(ErrorKind.CONTEXT_TOO_LONG, "x"), 400, "invalid_request_error", "context_length_exceeded", None, None),
    (CallFailed(ErrorKind.BAD_REQUEST, "x"), 400, "invalid_request_error", "bad_request", None, None),
    (CallFailed(ErrorKind.BACKEND_FAILED, "x"), 503, "server_error", "backend_failed", None, None),
    (CallFailed(ErrorKind.TOO_EXPENSIVE, "x"), 503, "server_error", "too_expensive", None, None),
    (CallFailed(ErrorKind.EXPIRED, "x"), 504, "server_error", "expired", None, None),
    (NoExecutor("nobody", ("one: refused", "two: silent")), 503, "server_error", "no_executor", None, None),
    (DeadlinePassed("120 s"), 504, "server_error", "deadline_passed", None, None),
    (Unreachable("gone"), 503, "server_error", "unreachable", None, None),
    (InvalidMessage(Fault.BAD_SIGNATURE), 502, "server_error", "broken_rule", None, None),
    (MachineError("disk full"), 500, "server_error", "machine", None, None),
    (StorageError("disk broken"), 500, "server_error", "machine", None, None),
]


@pytest.mark.parametrize("case", ERRORS, ids=[f"{type(one[0]).__name__} {one[3]}" for one in ERRORS])
@pytest.mark.parametrize("stream", [True, False])
async def test_every_failure_has_openais_shape_and_its_own_status(
    case: tuple[LoremeshError, int, str, str, str | None, str | None],
    stream: bool,  # noqa: FBT001 - both ways
    ask: Ask,
) -> None:
    error, status, kind, code, param, retry_after = case
    async with gateway_at(FakeMesh(error=error)) as (address, _):
        answer = await post(ask, address, {**CHAT, "stream": stream})
    assert answer.status == status
    told = answer.json["error"]
    assert (told["type"], told["code"], told["param"]) == (kind, code, param)
    assert str(error) in told["message"]
    assert answer.headers.get("retry-after") == retry_after


def test_every_kind_of_failure_is_told() -> None:
    assert all(failure_of(CallFailed(kind, "x")).code for kind in ErrorKind)


async def test_who_was_tried_is_named(ask: Ask) -> None:
    error = NoExecutor("nobody", ("one: refused", "two: silent"))
    async with gateway_at(FakeMesh(error=error)) as (address, _):
        for answer in (await post(ask, address, CHAT), await ask(address, "/v1/models")):
            assert answer.status == 503
            assert "one: refused; two: silent" in answer.json["error"]["message"]


async def test_a_bug_of_ours_is_told_as_one_and_logged_and_the_next_call_is_answered(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = FakeMesh(error=LookupError("a secret"))
    async with gateway_at(mesh) as (address, _):
        for answer in (await post(ask, address, CHAT), await ask(address, "/v1/models")):
            assert (answer.status, answer.json["error"]["code"]) == (500, "bug")
            assert "secret" not in answer.body
        mesh.error = None
        assert (await post(ask, address, CHAT)).status == 200
    assert "LookupError: a secret" in caplog.text


async def test_a_stream_that_fails_half_way_ends_with_an_error_that_the_sdk_raises() -> None:
    mesh = FakeMesh(error=CallFailed(ErrorKind.BACKEND_FAILED, "it broke"), before_error=2)
    async with sdk_at(mesh) as client:
        texts: list[str] = []

        async def read() -> None:
            async with await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "?"}], stream=True
            ) as stream:
                async for chunk in stream:
                    texts.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

        with pytest.raises(openai.APIError, match="it broke") as raised:
            await read()
    assert tuple(texts) == PIECES[:2]
    assert raised.value.body == {
        "message": "backend_failed: it broke",
        "type": "server_error",
        "param": None,
        "code": "backend_failed",
    }


async def test_a_broken_off_stream_says_neither_done_nor_stop(ask: Ask) -> None:
    mesh = FakeMesh(error=DeadlinePassed("120 s"), before_error=1)
    async with gateway_at(mesh) as (address, _):
        answer = await post(ask, address, {**CHAT, "stream": True})
    assert answer.status == 200
    assert "[DONE]" not in answer.body
    assert '"finish_reason": "stop"' not in answer.body.replace('":"', '": "')


WRONG: list[tuple[str, object]] = [
    ("model", 7),
    ("model", ""),
    ("model", None),
    ("messages", "hello"),
    ("messages", []),
    ("messages", [{"role": "user", "content": "x"}] * 257),
    ("messages[0]", ["x"]),
    ("messages[0].role", [{"role": "tool", "content": "x"}]),
    ("messages[0].role", [{"role": ["user"], "content": "x"}]),
    ("messages[0].content", [{"role": "user"}]),
    ("messages[0].content", [{"role": "user", "content": 7}]),
    ("messages[0].content[1]", [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]),
    ("messages[0].content[0]", [{"role": "user", "content": [{"type": "text", "text": None}]}]),
    ("messages[0].tool_calls", [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]),
    ("messages", [{"role": "user", "content": "x" * 300_000}] * 2),
    ("n", 2),
    ("n", True),
    ("max_tokens", 0),
    ("max_tokens", 1.5),
    ("max_tokens", True),
    ("max_tokens", 1_000_000_000),
    ("max_tokens", "many"),
    ("max_completion_tokens", -1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_p", -0.1),
    ("seed", -1),
    ("seed", 2**64),
    ("seed", 0.5),
    ("stop", 7),
    ("stop", [""]),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ["x" * 257]),
    ("response_format", "json"),
    ("response_format", {"type": 7}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x" * 17_000}}),
    ("stream", "yes"),
    ("stream_options", 7),
    ("include_usage", {"include_usage": 1}),
    ("tools", [{"type": "function"}]),
    ("functions", [{}]),
    ("tool_choice", "required"),
    ("logprobs", True),
    ("audio", {"voice": "x"}),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name} {str(value)[:40]}" for name, value in WRONG])
async def test_a_field_that_cannot_be_used_is_refused_by_name(name: str, value: object, ask: Ask) -> None:
    key = "stream_options" if name == "include_usage" else name.partition("[")[0]
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, _):
        answer = await post(ask, address, {**CHAT, key: value})
    assert (answer.status, answer.json["error"]["param"]) == (400, name)
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert not mesh.asked


@pytest.mark.parametrize("name", ["prompt", "best_of", "suffix", "echo", "logprobs"])
def test_the_older_way_to_ask_refuses_by_name_too(name: str) -> None:
    with pytest.raises(InvalidField) as raised:
        read_completion({"model": "small", "prompt": "x", name: [7]})
    assert raised.value.field == name


def test_what_does_not_count_is_passed_over() -> None:
    usual = read_chat(CHAT)
    extras = {"user": "u", "metadata": {"a": "b"}, "store": False, "tools": [], "tool_choice": "auto", "n": 1}
    nothing = dict.fromkeys(("max_tokens", "temperature", "top_p", "seed", "stop", "response_format", "stream"))
    assert read_chat({**CHAT, **extras, **nothing, "response_format": {"type": "text"}, "frobnicate": 7}) == usual


def test_parts_of_text_are_joined_developers_speak_as_the_system_and_the_newer_limit_wins() -> None:
    parts = [{"type": "text", "text": "Who "}, {"type": "text", "text": "keeps?"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts, "name": "ann"}]
    asked = read_chat({"model": "m", "messages": messages, "max_tokens": 5, "max_completion_tokens": 7})
    assert [(one.role, one.content) for one in asked.messages] == [("system", "d"), ("user", "Who keeps?")]
    assert asked.max_tokens == 7


def test_halves_of_characters_become_whole_ones() -> None:
    body = read_json(b'{"model": "m\\ud800", "messages": [{"role": "user", "content": "\\ud83d\\ude00 \\ud83d"}]}')
    asked = read_chat(body)
    assert (asked.model, asked.messages[0].content) == ("m\ufffd", "😀 \ufffd")


NOT_JSON = [
    b"",
    b"{",
    b"[]",
    b"7",
    b"\xff\xfe",
    b'{"model": NaN}',
    b'{"a":' + b"1" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
async def test_a_body_that_is_no_json_object_is_refused_however_deep_it_is(body: bytes, ask: Ask) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        answer = await post(ask, address, body)
        assert (answer.status, answer.json["error"]["param"]) == (400, None)


def test_a_deep_object_in_a_field_that_counts_is_refused_too() -> None:
    deep: object = {"type": "json_schema"}
    for _ in range(5000):
        deep = {"type": "x", "inner": deep}
    with pytest.raises(InvalidField, match="response_format"):
        read_chat({**CHAT, "response_format": deep})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
numbers = ["n", "seed", "temperature", "top_p", "max_tokens"]
fields = st.sampled_from(
    [*numbers, "model", "messages", "prompt", "stop", "stream", "tools", "response_format", "stream_options"]
)


@given(st.dictionaries(fields, anything))
def test_whatever_the_fields_hold_they_are_read_or_refused(changes: dict[str, Any]) -> None:
    for read, usual in ((read_chat, CHAT), (read_completion, {"model": "m", "prompt": "x"})):
        with contextlib.suppress(InvalidField):
            assert isinstance(read({**usual, **changes}), Asked)


async def test_what_is_not_there_is_told_in_openais_shape(ask: Ask) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        nowhere = await ask(address, "/v1/embeddings", "POST", "Content-Length: 0")
        wrong = await ask(address, "/v1/chat/completions")
    assert (nowhere.status, nowhere.json["error"]["code"]) == (404, "unknown_url")
    assert (wrong.status, wrong.json["error"]["code"]) == (405, "method_not_supported")


async def test_a_base_url_without_v1_is_met_with_what_it_lacks(ask: Ask) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        answers = [
            await ask(address, "/"),
            await ask(address, "/models"),
            await ask(address, "/chat/completions", "POST", "Content-Length: 2"),
        ]
    for answer in answers:
        assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_url")
        assert "the API begins at /v1" in answer.json["error"]["message"]


# ---- Sizes, speeds and rudeness --------------------------------------------------------------------------------------


async def test_a_body_that_says_it_is_too_long_is_refused_unread(ask: Ask) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        for declared in (str(MAX_BODY_BYTES + 1), "9" * 18):
            answer = await ask(address, "/v1/chat/completions", "POST", f"Content-Length: {declared}")
            assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")


async def test_a_body_that_turns_out_too_long_is_refused_and_its_sender_reads_why(ask: Ask) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    async with gateway_at(FakeMesh()) as (address, _):
        answer = await ask(
            address, "/v1/chat/completions", "POST", "Transfer-Encoding: chunked", body=chunk * 40 + b"0\r\n\r\n"
        )
        assert (answer.status, answer.json["error"]["code"]) == (413, "body_too_large")
        assert (await post(ask, address, CHAT)).status == 200


async def test_the_sdk_reads_why_its_huge_request_is_refused() -> None:
    async with sdk_at(FakeMesh()) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "x" * 3 * MAX_BODY_BYTES}]
            )
    assert raised.value.status_code == 413


async def test_a_client_that_leaves_cancels_its_call() -> None:
    for stream in (True, False):
        mesh = FakeMesh(hangs=True)
        async with gateway_at(mesh) as (address, gateway):
            host, _, port = address.partition(":")
            body = json.dumps({**CHAT, "stream": stream}).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
            with trio.fail_after(60):
                async with await trio.open_tcp_stream(host, int(port)) as connection:
                    await connection.send_all(head.encode() + body)
                    await mesh.reached.wait()
                await mesh.cancelled.wait()
                await gateway.wait_idle()
        [figure] = [one for one in gateway.report().figures if one.name == "loremesh_gateway_calls_total"]
        assert figure.values == {("499",): 1}


async def test_an_sdk_stream_that_is_closed_cancels_its_call() -> None:
    mesh = FakeMesh(hangs=True)
    async with sdk_at(mesh) as client:
        stream = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "?"}], stream=True
        )
        async with stream:
            await anext(stream)
        with trio.fail_after(60):
            await mesh.cancelled.wait()


async def test_a_client_that_does_not_read_its_stream_is_cut_off() -> None:
    mesh = FakeMesh(pieces=["x" * 60_000] * 2000)
    limits = Limits(connections=4, lifetime=3600, stall=0.3, received=1 << 20)
    async with gateway_at(mesh, limits=limits) as (address, gateway):
        host, _, port = address.partition(":")
        body = json.dumps({**CHAT, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
        with trio.fail_after(60):
            async with await trio.open_tcp_stream(host, int(port)) as connection:
                await connection.send_all(head.encode() + body)
                assert await connection.receive_some(1)
                await gateway.wait_idle()
    [figure] = [one for one in gateway.report().figures if one.name == "loremesh_gateway_calls_total"]
    assert figure.values == {("499",): 1}


async def test_who_dawdles_over_a_head_or_a_body_does_not_keep_others_out(ask: Ask, say: Say) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh, limits=Limits(lifetime=3600, idle=0.2, received=1 << 21)) as (address, _):
        host, _, port = address.partition(":")
        with trio.fail_after(60):
            async with (
                await trio.open_tcp_stream(host, int(port)) as head,
                await trio.open_tcp_stream(host, int(port)) as body,
            ):
                await head.send_all(b"POST /v1/chat/completions HT")
                await body.send_all(
                    f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Length: 9\r\n\r\nabc".encode()
                )
                assert await head.receive_some() == b""
                assert (await post(ask, address, CHAT)).status == 200
    assert len(mesh.asked) == 1


async def test_a_hundred_streams_at_once_are_answered() -> None:
    texts: list[str] = []
    async with sdk_at(FakeMesh()) as client:

        async def one() -> None:
            async with await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "?"}], stream=True
            ) as stream:
                pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
                texts.append("".join(pieces))

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(one)
    assert texts == [TEXT] * 100


# ---- Who is let in ---------------------------------------------------------------------------------------------------


async def test_with_a_key_whoever_sends_it_is_let_in_and_nobody_else(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh, key="correct horse") as (address, _):
        for sent in ("", "Authorization: Bearer wrong horse", "Authorization: Basic correct horse", "Api-Key: correct"):
            for path in ("/v1/chat/completions", "/v1/models", "/metrics"):
                answer = await ask(address, path, "GET", *filter(None, [sent]))
                assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "bearer"
        assert (await ask(address, "/v1/models", "GET", "Authorization: Bearer correct horse")).status == 200
        assert (await ask(address, "/v1/models", "GET", "authorization: bearer correct horse")).status == 200
        assert (await ask(address, "/healthz")).status == 200


async def test_the_sdk_tells_a_wrong_key_from_other_failures() -> None:
    async with sdk_at(FakeMesh(), key="right", sent="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not the key"):
            await client.models.list()
    async with sdk_at(FakeMesh(), key="right", sent="right") as client:
        assert (await client.models.list()).data


LOCAL = ["127.0.0.1", "127.0.0.1:8080", "localhost:1", "LOCALHOST", "[::1]:80", "[::1]", "127.9.9.9"]
FOREIGN = [
    "evil.example",
    "evil.example:80",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "10.0.0.1",
    "",
    "[::2]",
]


@pytest.mark.parametrize("host", LOCAL + FOREIGN)
async def test_without_a_key_only_names_of_this_machine_are_answered(host: str, say: Say) -> None:
    async with gateway_at(FakeMesh()) as (address, _):
        answer = await say(address, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ")[1])
    assert status == (200 if host in LOCAL else 403)


async def test_without_a_key_a_web_page_is_not_answered(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, _):
        for origin in ("https://evil.example", "null", f"http://{address}"):
            answer = await post(ask, address, CHAT, f"Origin: {origin}")
            assert (answer.status, answer.json["error"]["code"]) == (403, "not_local")
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not mesh.asked


async def test_without_a_key_nobody_else_is_listened_to() -> None:
    for host, local in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):  # noqa: S104 - to be refused
        listeners = await listen(f"{host}:0", "--listen")
        try:
            check_exposure(listeners, "a key")
            if local:
                check_exposure(listeners, None)
            else:
                with pytest.raises(UsageError, match="set an API key"):
                    check_exposure(listeners, None)
        finally:
            for listener in listeners:
                await listener.aclose()


# ---- Its operator ----------------------------------------------------------------------------------------------------


async def test_an_operator_sees_calls_tokens_and_waits(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, _):
        await post(ask, address, CHAT)
        await post(ask, address, {**CHAT, "stream": True})
        await post(ask, address, {})
        metrics = (await ask(address, "/metrics")).body
        assert (await ask(address, "/healthz")).json == {"alive": True}
        assert (await ask(address, "/readyz")).status == 200
    assert 'loremesh_gateway_calls_total{status="200"} 2.0' in metrics
    assert 'loremesh_gateway_calls_total{status="400"} 1.0' in metrics
    assert 'loremesh_gateway_tokens_total{kind="completion"} 18.0' in metrics
    assert "loremesh_gateway_first_pieces_total 2.0" in metrics
    assert "loremesh_gateway_running_calls 0.0" in metrics


async def test_a_gateway_that_stops_ends_what_runs_and_takes_nothing_new(ask: Ask) -> None:
    mesh = FakeMesh(hangs=True)
    async with gateway_at(mesh) as (address, gateway):
        answers = []
        async with trio.open_nursery() as nursery:

            async def one() -> None:
                answers.append(await post(ask, address, CHAT))

            nursery.start_soon(one)
            with trio.fail_after(60):
                await mesh.reached.wait()
            gateway.close()
            refused = await post(ask, address, CHAT)
            assert (refused.status, refused.json["error"]["code"]) == (503, "stopping")
            assert (await ask(address, "/readyz")).status == 503
            mesh.go_on.set()
            with trio.fail_after(60):
                await gateway.wait_idle()
    assert [answer.status for answer in answers] == [200]
