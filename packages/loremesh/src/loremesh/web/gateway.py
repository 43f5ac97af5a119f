"""The gateway: the mesh as a server that speaks OpenAI's API, for programs that know nothing of us.

Source: docs/gateway.md.
"""

import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from loremesh.errors import LoremeshError, UnsupportedModel
from loremesh.web.answers import (
    CHAT,
    TEXT,
    Answered,
    Failure,
    Form,
    Offered,
    failure_of,
    model_view,
    models_view,
    wrong_path,
)
from loremesh.web.chats import MAX_BODY_BYTES, Asked, read_chat, read_completion, read_json
from loremesh.web.guard import Guard, refuse
from loremesh.web.operating import OPERATING_PATHS, operating_app
from loremesh.web.reply import Reply
from loremesh.web.report import Figure, Kind, Report
from loremesh.web.server import Limits

logger = logging.getLogger("loremesh.gateway")

GATEWAY_LIMITS: Final = Limits(
    connections=512, lifetime=math.inf, stall=30.0, idle=75.0, head=32 * 1024, received=sys.maxsize
)
"""Answers take minutes and clients keep connections open: each step is bounded here, and not the sum of them."""
_CHAT_PATH: Final = "/v1/chat/completions"
_TEXT_PATH: Final = "/v1/completions"
_MODELS_PATH: Final = "/v1/models"
_PATHS: Final = (_CHAT_PATH, _TEXT_PATH, _MODELS_PATH)
_BODY_SECONDS: Final = 30.0
_SWALLOWED: Final = 8 * MAX_BODY_BYTES
_SWALLOW_SECONDS: Final = 2.0
_REQUEST: Final = "invalid_request_error"
_TOO_LARGE: Final = Failure(413, _REQUEST, "body_too_large", f"a body has at most {MAX_BODY_BYTES} bytes", closes=True)
_TOO_SLOW: Final = Failure(
    408, _REQUEST, "body_too_slow", f"the body did not come within {_BODY_SECONDS:g} s", closes=True
)
_STOPPING: Final = Failure(503, "server_error", "stopping", "the gateway is stopping", retry_after=1, closes=True)

Deliver = Callable[[str], Awaitable[None]]
Read = Callable[[dict[str, Any]], Asked]


class Answering(Protocol):
    """What a gateway stands on."""

    async def models(self) -> Sequence[Offered]:
        """Give what can be asked now."""

    async def call(self, asked: Asked, deliver: Deliver) -> Answered:
        """Have a chat answered, handing over each piece as it comes; cancelling gives it up, end to end.

        Raises:
            LoremeshError: There is no answer, or no whole one; `failure_of` says how a client learns of it.
        """


@dataclass(slots=True)
class Gateway:
    """One gateway, and what it has done.

    Attributes:
        mesh: Answers.
        key: What clients must send; None: whatever runs on this machine may ask.
    """

    mesh: Answering
    key: str | None = None
    _since: int = field(default_factory=lambda: int(time.time()))
    _stopping: bool = False
    _running: int = 0
    _idle: trio.Event = field(default_factory=trio.Event)
    _ended: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _tokens: Counter[tuple[str, ...]] = field(default_factory=Counter)
    _firsts: int = 0
    _first_seconds: float = 0.0

    def app(self) -> ASGIApp:
        """Make the application."""
        operating = operating_app(self.report)
        routes = [
            Route(_CHAT_PATH, _Endpoint(self, CHAT, read_chat), methods=["POST"]),
            Route(_TEXT_PATH, _Endpoint(self, TEXT, read_completion), methods=["POST"]),
            Route(_MODELS_PATH, self._list, methods=["GET"]),
            Route(_MODELS_PATH + "/{model:path}", self._show, methods=["GET"]),
            *(Route(path, operating) for path in OPERATING_PATHS),
            Mount("/", _nothing_here),
        ]
        return Guard(Starlette(routes=routes), self.key)

    def close(self) -> None:
        """Take no more calls; those that run go on."""
        self._stopping = True

    async def wait_idle(self) -> None:
        """Wait until no call runs."""
        while self._running:
            await self._idle.wait()

    def begin(self) -> Failure | None:
        """Take a call in, unless we are stopping."""
        if self._stopping:
            return _STOPPING
        self._running += 1
        return None

    def end(self, reply: Reply) -> None:
        """Count a call that has ended."""
        self._ended[str(reply.status),] += 1
        if reply.answered is not None:
            self._tokens["prompt",] += reply.answered.prompt_tokens
            self._tokens["completion",] += reply.answered.completion_tokens
        if reply.first_after is not None:
            self._firsts += 1
            self._first_seconds += reply.first_after
        self._running -= 1
        self._idle.set()
        self._idle = trio.Event()

    def report(self) -> Report:
        """Give the figures."""

        def counter(name: str, meaning: str, values: dict[tuple[str, ...], float], *labels: str) -> Figure:
            return Figure(f"loremesh_gateway_{name}_total", Kind.COUNTER, meaning, labels, values)

        running = Figure(
            "loremesh_gateway_running_calls", Kind.GAUGE, "Calls being answered.", (), {(): float(self._running)}
        )
        figures = (
            running,
            counter("calls", "Calls that ended, by HTTP status; 499: the client left.", {**self._ended}, "status"),
            counter("tokens", "Tokens of o200k_base that whole answers took.", {**self._tokens}, "kind"),
            counter("first_pieces", "Answers that began.", {(): self._firsts}),
            counter("first_piece_seconds", "Seconds that they took to begin, together.", {(): self._first_seconds}),
        )
        return Report(("it is stopping",) if self._stopping else (), figures)

    async def _list(self, _: Request) -> Response:
        try:
            return JSONResponse(models_view(await self.mesh.models(), self._since))
        except Exception as error:  # noqa: BLE001 - whatever it is: the client is told in its shape, the next is served
            return _response(_failure(error))

    async def _show(self, request: Request) -> Response:
        name = request.path_params["model"]
        try:
            models = await self.mesh.models()
        except Exception as error:  # noqa: BLE001 - as above
            return _response(_failure(error))
        for model in models:
            if model.id == name:
                return JSONResponse(model_view(model, self._since))
        return _response(_failure(UnsupportedModel(name, tuple(model.id for model in models))))


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Answers one of the two ways to ask."""

    gateway: Gateway
    form: Form
    read: Read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and count it."""
        stopping = self.gateway.begin()
        if stopping is not None:
            await refuse(stopping, send)
            return
        reply = Reply(self.form, send)
        try:
            await self._answer(scope, receive, reply)
        finally:
            self.gateway.end(reply)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        body = await _read_body(scope, receive)
        if isinstance(body, Failure):
            await reply.fail(body, partial(_swallow, receive))
        elif body is not None:
            end = await self._outcome(body, receive, reply)
            # Outside the watch for the client leaving: hypercorn says that it left as soon as the last byte is sent.
            match end:
                case Answered():
                    await reply.finish(end)
                case Failure():
                    await reply.fail(end)

    async def _outcome(self, body: bytes, receive: Receive, reply: Reply) -> Answered | Failure | None:
        """Have a request answered; give what is left to say, None to a client that left."""
        outcome: Answered | Failure | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_left, receive, nursery.cancel_scope)
            try:
                asked = self.read(read_json(body))
                reply.prepare(asked)
                outcome = await self.gateway.mesh.call(asked, reply.deliver)
            except Exception as error:  # noqa: BLE001 - as above
                outcome = _failure(error)
            nursery.cancel_scope.cancel()
        return outcome


async def _read_body(scope: Scope, receive: Receive) -> bytes | Failure | None:
    """Read a body that is not too long; None when its client left."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if not declared.isdigit() or int(declared) > MAX_BODY_BYTES:
        return _TOO_LARGE
    body = bytearray()
    with trio.move_on_after(_BODY_SECONDS):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > MAX_BODY_BYTES:
                return _TOO_LARGE
            if not message.get("more_body", False):
                return bytes(body)
    return _TOO_SLOW


async def _swallow(receive: Receive) -> None:
    """Take in what still comes of a body: a client that is cut off while it sends does not read why."""
    size = 0
    with trio.move_on_after(_SWALLOW_SECONDS):
        while size < _SWALLOWED:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


async def _cancel_when_left(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _failure(error: Exception) -> Failure:
    if not isinstance(error, LoremeshError):
        logger.error("a request ended by a bug of ours", exc_info=error)
    return failure_of(error)


def _response(failure: Failure) -> Response:
    headers = {name.decode(): value.decode() for name, value in failure.headers}
    return Response(failure.body, failure.status, headers, "application/json")


async def _nothing_here(scope: Scope, _: Receive, send: Send) -> None:
    path = scope["path"]
    await refuse(wrong_path(405 if path in _PATHS else 404, scope["method"], path), send)
