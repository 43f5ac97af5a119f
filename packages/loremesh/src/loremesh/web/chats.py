"""What OpenAI's API asks, read out of a stranger's JSON: every field that counts is checked, others are passed over.

Source: docs/gateway.md.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from loremesh.errors import InvalidField
from loremesh.primitives import KIB, MIB
from loremesh.protocol.llm import MAX_CONTENT_BYTES, MAX_TOKENS, ROLES, ChatMessage, whole_characters

MAX_BODY_BYTES: Final = MIB
_MAX_MESSAGES: Final = 256
_MAX_STOPS: Final = 4
_MAX_STOP_BYTES: Final = 256
_MAX_FORMAT_BYTES: Final = 16 * KIB
_MAX_SEED: Final = 2**64 - 1
_NONE: Final[tuple[object, ...]] = (None, False, 0, "", [], {}, "none", "auto")
# What would change the answer if it were there; to pass over it would be to lie.
_UNSUPPORTED: Final = ("tools", "functions", "tool_choice", "function_call", "audio", "logprobs", "top_logprobs")
_UNSUPPORTED_OF_TEXT: Final = ("suffix", "echo", "logprobs")


@dataclass(frozen=True, slots=True)
class Asked:
    """A chat that somebody wants answered. None and empty: as the executor likes."""

    model: str
    messages: tuple[ChatMessage, ...]
    """Whole characters, together at most 512 KiB of UTF-8."""
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: tuple[str, ...]
    response_format: Mapping[str, Any] | None
    stream: bool
    include_usage: bool
    """Of a stream: say at its end what it took."""


def read_json(data: bytes) -> dict[str, Any]:
    """Read a body.

    Raises:
        InvalidField: It is no JSON object.
    """
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise InvalidField(None, "the body is not JSON") from error
    if not isinstance(value, dict):
        raise InvalidField(None, "the body is no JSON object")
    return value


def read_chat(body: Mapping[str, Any]) -> Asked:
    """Read what `/v1/chat/completions` is asked.

    Raises:
        InvalidField: A field that counts is wrong, or asks what the mesh cannot do.
    """
    _refuse(body, _UNSUPPORTED)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidField("messages", "should be a list of at least one message")
    if len(messages) > _MAX_MESSAGES:
        raise InvalidField("messages", f"there are {len(messages)}, at most {_MAX_MESSAGES} are taken")
    return _asked(body, tuple(_message(one, f"messages[{number}]") for number, one in enumerate(messages)))


def read_completion(body: Mapping[str, Any]) -> Asked:
    """Read what `/v1/completions` is asked; the prompt becomes a user's message.

    Raises:
        InvalidField: As `read_chat`.
    """
    _refuse(body, _UNSUPPORTED_OF_TEXT)
    _only_one(body, "best_of")
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidField("prompt", "should be one text: lists of prompts and tokens are not supported")
    return _asked(body, (ChatMessage("user", whole_characters(prompt)),))


def _asked(body: Mapping[str, Any], messages: tuple[ChatMessage, ...]) -> Asked:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidField("model", "should name a model, as /v1/models lists them")
    _only_one(body, "n")
    size = sum(len(message.content.encode()) for message in messages)
    if size > MAX_CONTENT_BYTES:
        raise InvalidField("messages", f"{size} bytes of text, at most {MAX_CONTENT_BYTES} are taken")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise InvalidField("stream_options", "should be an object")
    newer = "max_completion_tokens"
    return Asked(
        whole_characters(model),
        messages,
        _whole(body, newer if body.get(newer) is not None else "max_tokens", 1, MAX_TOKENS),
        _number(body, "temperature", 2),
        _number(body, "top_p", 1),
        _whole(body, "seed", 0, _MAX_SEED),
        _stop(body.get("stop")),
        _format(body.get("response_format")),
        _flag(body, "stream"),
        _flag(options or {}, "include_usage"),
    )


def _message(value: object, where: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise InvalidField(where, "should be an object with a role and a content")
    role = "system" if value.get("role") == "developer" else value.get("role")
    if role not in ROLES:
        raise InvalidField(f"{where}.role", f"should be one of {', '.join(ROLES)}, developer")
    _refuse(value, ("tool_calls", "function_call", "audio"), f"{where}.")
    return ChatMessage(role, whole_characters(_content(value.get("content"), f"{where}.content")))


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidField(where, "should be a text, or a list of parts of type text")
    texts = []
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidField(f"{where}[{number}]", "only parts of type text are supported, no images, sound or files")
        texts.append(part["text"])
    return "".join(texts)


def _refuse(body: Mapping[str, Any], names: tuple[str, ...], where: str = "") -> None:
    for name in names:
        if body.get(name) not in _NONE:
            raise InvalidField(where + name, "is not supported: executors answer with text alone")


def _only_one(body: Mapping[str, Any], name: str) -> None:
    value = body.get(name)
    if value is not None and (value != 1 or isinstance(value, bool)):
        raise InvalidField(name, "only 1 is supported")


def _whole(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidField(name, f"should be a whole number from {least} to {most}")
    return value


def _number(body: Mapping[str, Any], name: str, most: int) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise InvalidField(name, f"should be a number from 0 to {most}")
    return float(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidField(name, "should be true or false")
    return bool(value)


def _stop(value: object) -> tuple[str, ...]:
    words = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise InvalidField("stop", "should be a text or a list of texts, none of them empty")
    whole = tuple(map(whole_characters, words))
    if len(whole) > _MAX_STOPS or any(len(word.encode()) > _MAX_STOP_BYTES for word in whole):
        raise InvalidField("stop", f"at most {_MAX_STOPS} texts of {_MAX_STOP_BYTES} bytes are taken")
    return whole


def _format(value: object) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InvalidField("response_format", "should be an object with a type")
    if value["type"] == "text":
        return None
    try:
        size = len(json.dumps(value))
    except RecursionError:
        size = _MAX_FORMAT_BYTES + 1
    if size > _MAX_FORMAT_BYTES:
        raise InvalidField("response_format", f"at most {_MAX_FORMAT_BYTES} bytes of JSON are taken")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
