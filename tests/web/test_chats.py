"""Requests of OpenAI's API: each field is read or refused by name, whatever it holds."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import (
    InvalidField,
)
from loremesh.testing.gateway_scene import CHAT, FakeMesh, gateway_at, post
from loremesh.web.chats import Asked, read_chat, read_completion, read_json

Ask = Callable[..., Awaitable[Any]]


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
