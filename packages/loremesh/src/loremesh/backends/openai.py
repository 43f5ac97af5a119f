"""Any server that speaks the OpenAI chat API: OpenAI itself, Ollama, vLLM, llama.cpp. The only door to `openai`.

Import it only when such a backend is configured: the SDK takes half a second to load. One object holds one client for
all calls; close it with `aclose`.
"""

import contextlib
import ipaddress
import json
import math
import re
from collections.abc import Awaitable
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies

import openai
import trio

from loremesh.backends.answer import AnswerReader
from loremesh.backends.chat import WHOLE_SECONDS, ChatEnd, ChatRequest, Deliver, in_pieces
from loremesh.backends.connections import NONE_KEPT, REST, Bytes, KeptConnections, Response
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendGarbage,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    PromptTooLong,
    UsageError,
)
from loremesh.protocol.content.paragraph import to_visible_lines

_CONNECT_SECONDS: Final = 5.0
_MAX_REASON_BYTES: Final = 2048
_MAX_LIST_BYTES: Final = 1 << 20
_MAX_REASON: Final = 200
_MAX_RETRY_AFTER: Final = 3600.0
_USAGE_SECONDS: Final = 2.0  # after the text, for the count of tokens
_TAIL_SECONDS: Final = 0.1  # after the answer, for the end of the body
QUICK: Final = 5.0
_MOST_WHOLE: Final = 4096
"""Tokens of an answer that is asked for as a whole."""
_NEWEST_COUNTS: Final = 0.2
_UNAUTHORISED: Final = (401, 403)
_REFUSED: Final = (400, 413, 422)
_TOO_LONG: Final = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:length|size|window)", re.IGNORECASE
)
_BUSY: Final = (429, 503)
_FIRST_ERROR: Final = 400
_AnyStream = openai.AsyncStream[object]  # the SDK wants to know, and does not make one: we take the bytes


class OpenAIBackend:
    """Answers chats with the models behind an OpenAI-compatible API."""

    def __init__(
        self,
        *,
        base_url: str,
        api_key: str = "",
        patience: float = 30.0,
        whole_patience: float = WHOLE_SECONDS,
        quick: float = QUICK,
        rest: float = REST,
        continue_final_message: bool = False,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: Where the API begins, usually ending in `/v1`.
            api_key: From the environment or a file, never from the command line; local servers take none.
            patience: Seconds without a piece of the answer after which a call is given up.
            whole_patience: The same where a whole answer was asked for.
            quick: Seconds: of a model whose answers take less of late, whole ones are asked for.
            rest: Seconds for which a connection is kept.
            continue_final_message: Say in vLLM's words that an answer begun is to be continued; others refuse that.

        Raises:
            UsageError: `base_url` is no HTTP URL.
        """
        self._patience = patience
        self._api_key = api_key
        self._continue_final_message = continue_final_message
        self._quick = quick
        self._whole_patience = whole_patience
        self._usual: dict[str, float] = {}  # by the model, seconds that its answers take of late
        # Errors are read in our own hook: the SDK would read a body without end. A proxy never serves this machine.
        is_proxied = not _is_this_machine(base_url) and bool(getproxies())
        http_client = openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [self._check_head]},
            transport=None if is_proxied else KeptConnections(rest),
            limits=NONE_KEPT,
            trust_env=is_proxied,
        )
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            max_retries=0,  # another executor, or the next round, is the retry
            timeout=openai.Timeout(None, connect=_CONNECT_SECONDS),  # how long an answer may take is counted here
            default_headers={"Accept-Encoding": "identity"},
            http_client=http_client,
        )

    async def chat(self, request: ChatRequest, deliver: Deliver) -> ChatEnd:
        """Answer, piece by piece; cancelling closes the connection to the server.

        Where nobody reads the pieces, a whole answer is asked for, unless such an answer might take long: it would show
        nothing of itself in the meantime, so a server that hangs would be noticed late.

        Raises:
            BackendUnauthorised: 401 or 403.
            BackendBusy: 429 or 503, with the seconds to wait if the server names them.
            PromptTooLong: 400, 413 or 422, because of the model's context.
            BackendRefused: 400, 413 or 422 for another reason.
            BackendFailed: Any other error status, a refused or broken connection.
            BackendGarbage: An answer that is no answer, is endless, or has no text.
            BackendTimeout: Nothing came for as long as we have patience.
        """
        model, began = request.model, trio.current_time()
        is_quick = self._usual.get(model, math.inf) < self._quick and request.max_tokens <= _MOST_WHOLE
        streams = not (request.is_whole and is_quick)
        answer = AnswerReader()
        async with contextlib.aclosing(self._body(request, streams=streams)) as body:
            try:
                has_text = await self._read(body, answer, deliver, self._patience if streams else self._whole_patience)
            except BackendTimeout as error:
                self._usual.pop(model, None)
                raise BackendTimeout(f"{model} {error}") from error
            with trio.move_on_after(_TAIL_SECONDS):
                while await anext(body, None) is not None:
                    pass  # what is left of a body is in the way of the next call on its connection
        if not has_text and not request.continues:
            raise BackendGarbage(f"{model} answered without any text")
        took = trio.current_time() - began
        usual = self._usual.setdefault(model, took)
        self._usual[model] = usual + _NEWEST_COUNTS * (took - usual)
        return ChatEnd(answer.finish or "stop", answer.usage)

    async def _read(self, body: Bytes, answer: AnswerReader, deliver: Deliver, patience: float) -> bool:
        """Deliver what comes until the answer is complete; tell if there was any text.

        Raises:
            BackendTimeout: No text for so many seconds.
        """
        has_text = False
        deadline = trio.current_time() + patience
        while not answer.is_complete:
            with trio.move_on_at(deadline) as scope:
                data = await anext(body, None)
            if scope.cancelled_caught:
                if answer.finish is not None:
                    break  # the text is whole, only the count of tokens did not come
                raise BackendTimeout(f"said nothing for {patience:g} s")
            finished = answer.finish is not None
            text = answer.end() if data is None else answer.feed(data)
            for piece in in_pieces(text):
                await deliver(piece)
                has_text = True
            if text:
                deadline = trio.current_time() + patience
            if answer.finish is not None and not finished:
                deadline = trio.current_time() + _USAGE_SECONDS
        return has_text

    async def served_models(self) -> tuple[str, ...]:
        """Ask the server which models it has; writes nothing and costs no tokens.

        Raises:
            BackendError: As `write`; BackendGarbage also for a list that is none.
        """
        data = b""
        with trio.move_on_after(self._patience) as scope:
            asked = self._client.get("/models", cast_to=Response, stream=True, stream_cls=_AnyStream)
            async with contextlib.aclosing(self._bytes_of(asked)) as body:
                async for piece in body:
                    data += piece
                    if len(data) > _MAX_LIST_BYTES:
                        raise BackendGarbage(f"{self._client.base_url} answers without end when asked for its models")
        if scope.cancelled_caught:
            raise BackendTimeout(f"{self._client.base_url} took longer than {self._patience:g} s")
        try:
            return tuple(str(model["id"]) for model in json.loads(data)["data"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BackendGarbage(f"{self._client.base_url} gives no list of models") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _body(self, request: ChatRequest, *, streams: bool) -> Bytes:
        body = {
            "model": request.model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            "response_format": request.response_format,
        }
        if streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if request.continues and self._continue_final_message:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        given = {name: value for name, value in body.items() if value is not None}
        # Not `chat.completions.create`: it takes three times as long to make the same request.
        return self._bytes_of(
            self._client.post("/chat/completions", cast_to=Response, body=given, stream=True, stream_cls=_AnyStream)
        )

    async def _bytes_of(self, asked: Awaitable[Any]) -> Bytes:
        """Yield an answer's bytes as they come; whatever the HTTP stack raises becomes one of our errors."""
        where = self._client.base_url
        try:
            response: Response = await asked
            async with contextlib.aclosing(response), contextlib.aclosing(response.aiter_raw()) as body:
                async for data in body:
                    yield data
        except BackendError:
            raise
        except openai.APITimeoutError as error:
            raise BackendTimeout(f"no connection to {where} in {_CONNECT_SECONDS:g} s") from error
        except openai.OpenAIError as error:
            if isinstance(error.__cause__, BackendError):
                raise error.__cause__ from None  # raised by our hook, wrapped by the SDK
            raise BackendFailed(f"no answer from {where}: {error.__cause__ or error}") from error
        except Exception as error:  # while a body is read, the HTTP library's own errors come through
            raise BackendFailed(f"the connection to {where} broke: {error!r}") from error

    async def _check_head(self, response: Any) -> None:  # noqa: ANN401 - the SDK's HTTP library is its own affair
        """Raise our error for an error status, after reading no more of its body than a message takes."""
        status: int = response.status_code
        if status < _FIRST_ERROR:
            # A small compressed body can be a huge one: nothing is unpacked here.
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BackendGarbage(f"{self._client.base_url} compresses its answer though asked not to")
            return
        body = b""
        async with contextlib.aclosing(response.aiter_raw()) as pieces:
            async for piece in pieces:
                body += piece[:_MAX_REASON_BYTES]
                if len(body) >= _MAX_REASON_BYTES:
                    break
        reason = f"{self._client.base_url} answered {status}: {_reason(body)}"
        if self._api_key:
            reason = reason.replace(self._api_key, "***")
        if status in _UNAUTHORISED:
            raise BackendUnauthorised(reason)
        if status in _REFUSED:
            raise PromptTooLong(reason) if _is_too_long(body) else BackendRefused(reason)
        if status in _BUSY:
            raise BackendBusy(reason, _retry_after(response.headers.get("retry-after", "")))
        raise BackendFailed(reason)


def _is_this_machine(base_url: str) -> bool:
    """Tell whether a URL names this machine.

    Raises:
        UsageError: It is no HTTP URL.
    """
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"--base-url {base_url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"--base-url {base_url!r} is no HTTP URL: one looks like http://127.0.0.1:11434/v1")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reason(body: bytes) -> str:
    """Find the sentence in an error's body; text of a stranger, made safe to log."""
    try:
        text = json.loads(body)["error"]["message"]
    except (ValueError, TypeError, KeyError, RecursionError):
        text = body.decode(errors="ignore")
    return to_visible_lines(str(text)).replace("\n", " ").strip()[:_MAX_REASON] or "no reason given"


def _is_too_long(body: bytes) -> bool:
    """Tell a prompt that does not fit from other bad requests: servers say it by a code, a type or a sentence."""
    return _TOO_LONG.search(body.decode(errors="ignore")) is not None


def _retry_after(header: str) -> float | None:
    """Read a Retry-After in seconds, at most an hour; the form with a date counts as unknown."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER) if math.isfinite(seconds) else None
