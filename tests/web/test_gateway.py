"""The gateway over a fake mesh: OpenAI's shapes, as the official SDK and plain HTTP see them."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import trio

from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    Fault,
    InvalidMessage,
    LoremeshError,
    MachineError,
    NoExecutor,
    StorageError,
    Unreachable,
    UnsupportedModel,
)
from loremesh.testing.gateway_scene import CHAT, PIECES, TEXT, FakeMesh, gateway_at, post
from loremesh.web.answers import failure_of
from loremesh.web.chats import MAX_BODY_BYTES

Ask = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def sdk_at(mesh: FakeMesh, key: str | None = None, sent: str = "any") -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        gateway_at(mesh, key) as (address, _),
        openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key=sent, max_retries=0, timeout=60) as client,
    ):
        yield client


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


async def test_the_sdk_reads_why_its_huge_request_is_refused() -> None:
    async with sdk_at(FakeMesh()) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await client.chat.completions.create(
                model="small", messages=[{"role": "user", "content": "x" * 3 * MAX_BODY_BYTES}]
            )
    assert raised.value.status_code == 413


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


async def test_the_sdk_tells_a_wrong_key_from_other_failures() -> None:
    async with sdk_at(FakeMesh(), key="right", sent="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not the key"):
            await client.models.list()
    async with sdk_at(FakeMesh(), key="right", sent="right") as client:
        assert (await client.models.list()).data


# ---- Its operator ----------------------------------------------------------------------------------------------------


async def test_an_operator_sees_calls_tokens_and_waits(ask: Ask) -> None:
    mesh = FakeMesh()
    async with gateway_at(mesh) as (address, gateway):
        await post(ask, address, CHAT)
        await post(ask, address, {**CHAT, "stream": True})
        await post(ask, address, {})
        await gateway.wait_idle()
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
