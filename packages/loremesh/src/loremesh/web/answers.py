"""What OpenAI's API answers: whole answers, the chunks of a stream, lists of models, and errors, each in its shape.

Source: docs/gateway.md.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    InvalidField,
    LoremeshError,
    MachineError,
    NoExecutor,
    ProtocolError,
    ServiceError,
    StorageError,
)
from loremesh.protocol.metering import TOKENIZER

DONE: Final = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Offered:
    """A model that can be asked now."""

    id: str
    executors: tuple[str, ...]
    """Peer ids, as text."""
    context: int
    """Tokens that prompt and answer may have together."""
    price: int
    """Gwei per 1,000 tokens of `o200k_base`."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer, and what it took."""

    text: str
    finish: str
    """`stop` or `length`."""
    prompt_tokens: int
    completion_tokens: int
    executors: tuple[str, ...]
    """Who wrote it, in order: peer ids, as text."""
    receipts: tuple[str, ...]
    """The requests whose receipts are in the journal, in hexadecimal."""
    warnings: tuple[str, ...]

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of `o200k_base`: what is billed."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    @property
    def extension(self) -> dict[str, Any]:
        """What OpenAI's shapes have no place for; clients pass over it."""
        return {
            "executors": self.executors,
            "receipts": self.receipts,
            "tokenizer": TOKENIZER,
            "warnings": self.warnings,
        }


@dataclass(frozen=True, slots=True)
class Form:
    """How one of the two ways to ask is answered."""

    prefix: str
    """Of an answer's id."""
    whole: str
    """The kind of a whole answer."""
    chunk: str
    """The kind of a chunk of a stream."""
    is_chat: bool

    def head(self, name: str, kind: str, created: int, model: str) -> dict[str, Any]:
        """Begin an answer or a chunk."""
        return {"id": name, "object": kind, "created": created, "model": model}

    def answer(self, name: str, created: int, model: str, answered: Answered) -> bytes:
        """Give a whole answer."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": answered.finish}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": answered.text, "refusal": None}
        else:
            choice["text"] = answered.text
        head = self.head(name, self.whole, created, model)
        return _json({**head, "choices": [choice], "usage": answered.usage, "loremesh": answered.extension})

    def chunks(self, name: str, created: int, model: str) -> "Chunks":
        """Prepare a stream."""
        return Chunks(self, self.head(name, self.chunk, created, model))


CHAT: Final = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", is_chat=True)
TEXT: Final = Form("cmpl-", "text_completion", "text_completion", is_chat=False)


class Chunks:
    """The events of one stream; what all of them have in common is put into JSON once."""

    __slots__ = ("_after", "_before", "_form", "_head")

    def __init__(self, form: Form, head: dict[str, Any]) -> None:
        self._form = form
        self._head = head
        hole = "\0"
        written = self._event(hole, None).decode().split(json.dumps(hole))
        self._before, self._after = written

    def first(self) -> bytes:
        """Say who speaks."""
        return self._choice({"role": "assistant", "content": ""}, None) if self._form.is_chat else b""

    def piece(self, text: str) -> bytes:
        """Give a piece of the answer."""
        return f"{self._before}{json.dumps(text)}{self._after}".encode()

    def last(self, answered: Answered, *, include_usage: bool) -> bytes:
        """End the answer."""
        end = self._event(None, answered.finish, {"loremesh": answered.extension})
        usage = _event({**self._head, "choices": [], "usage": answered.usage}) if include_usage else b""
        return end + usage + DONE

    def _event(self, text: str | None, finish: str | None, more: dict[str, Any] | None = None) -> bytes:
        if self._form.is_chat:
            return self._choice({} if text is None else {"content": text}, finish, more)
        choice = {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}
        return _event({**self._head, "choices": [choice], **(more or {})})

    def _choice(self, delta: dict[str, str], finish: str | None, more: dict[str, Any] | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self._head, "choices": [choice], **(more or {})})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request gets no answer."""

    status: int
    kind: str
    """What OpenAI calls `type`."""
    code: str | None
    message: str
    param: str | None = None
    retry_after: float | None = None
    """Seconds."""
    closes: bool = False
    """The connection is of no more use: a body was not read to its end."""

    @property
    def error(self) -> dict[str, Any]:
        """Put it into OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        """Give the body of an answer that is this failure."""
        return _json(self.error)

    @property
    def event(self) -> bytes:
        """Give the last event of a stream that fails."""
        return _event(self.error)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Give what the answer says beside its body."""
        headers = []
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after))).encode()))
        if self.status == 401:  # noqa: PLR2004 - the one status that must name what would be accepted
            headers.append((b"www-authenticate", b"Bearer"))
        if self.closes:
            headers.append((b"connection", b"close"))
        return headers


_SERVER: Final = "server_error"
_REQUEST: Final = "invalid_request_error"
_KINDS: Final[dict[ErrorKind, tuple[int, str, str]]] = {
    ErrorKind.UNSUPPORTED_MODEL: (404, _REQUEST, "model_not_found"),
    ErrorKind.BUSY: (429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorKind.CONTEXT_TOO_LONG: (400, _REQUEST, "context_length_exceeded"),
    ErrorKind.BAD_REQUEST: (400, _REQUEST, "bad_request"),
    ErrorKind.BACKEND_FAILED: (503, _SERVER, "backend_failed"),
    ErrorKind.UNAUTHORISED: (503, _SERVER, "unauthorised"),  # between us and executors: the client's key is a good one
    ErrorKind.EXPIRED: (504, _SERVER, "expired"),
    ErrorKind.REPLAYED: (503, _SERVER, "replayed"),
    ErrorKind.TOO_EXPENSIVE: (503, _SERVER, "too_expensive"),
    ErrorKind.EXHAUSTED: (429, "insufficient_quota", "insufficient_quota"),
}
_RETRY: Final = {ErrorKind.EXHAUSTED: 600.0}
# The first class that fits decides, so what is more special stands above.
_ERRORS: Final[tuple[tuple[type[LoremeshError], int, str], ...]] = (
    (NoExecutor, 503, "no_executor"),
    (DeadlinePassed, 504, "deadline_passed"),
    (StorageError, 500, "machine"),
    (MachineError, 500, "machine"),
    (ServiceError, 503, "unreachable"),
    (ProtocolError, 502, "broken_rule"),
)


def failure_of(error: Exception) -> Failure:
    """Tell how a client learns of an error; of a bug of ours it learns that it is one."""
    if isinstance(error, InvalidField):
        return Failure(400, _REQUEST, None, str(error), error.field)
    if isinstance(error, CallFailed):
        status, kind, code = _KINDS[error.kind]
        param = "model" if error.kind is ErrorKind.UNSUPPORTED_MODEL else None
        retry = error.retry_after if isinstance(error, ExecutorBusy) else _RETRY.get(error.kind)
        return Failure(status, kind, code, str(error), param, retry)
    for one, status, code in _ERRORS:
        if isinstance(error, one):
            return Failure(status, _SERVER, code, str(error))
    return Failure(500, _SERVER, "bug", "a bug of ours; the gateway's log says more")


def wrong_path(status: int, method: str, path: str) -> Failure:
    """Tell that nothing is here, or not for this method."""
    what = "unknown_url" if status == 404 else "method_not_supported"  # noqa: PLR2004 - not found
    hint = "" if path.startswith("/v1/") else "; the API begins at /v1, so base URLs end in it"
    return Failure(status, _REQUEST, what, f"nothing answers {method} {path}{hint}")


def model_view(model: Offered, since: int) -> dict[str, Any]:
    """Show a model as OpenAI does.

    Args:
        model: Served now.
        since: Unix seconds.
    """
    return {
        "id": model.id,
        "object": "model",
        "created": since,
        "owned_by": "loremesh",
        "loremesh": {
            "executors": model.executors,
            "context": model.context,
            "price": model.price,
            "unit": TOKENIZER,
        },
    }


def models_view(models: Sequence[Offered], since: int) -> dict[str, Any]:
    """Show a list of models as OpenAI does."""
    return {"object": "list", "data": [model_view(model, since) for model in models]}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
