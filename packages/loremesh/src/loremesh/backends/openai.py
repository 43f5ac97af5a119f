"""Any server that speaks the OpenAI chat API: OpenAI itself, Ollama, vLLM, llama.cpp. The only door to `openai`.

Import it only when such a backend is configured: the SDK takes half a second to load. One object holds one client for
all calls; close it with `aclose`.
"""

import contextlib
import ipaddress
import json
import math
import re
from collections.abc import AsyncGenerator
from typing import Any, Final, cast
from urllib.parse import urlsplit

import openai
import trio

from loremesh.backends.answer import AnswerReader
from loremesh.backends.chat import ChatEnd, ChatRequest, Deliver, in_pieces
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

_Bytes = AsyncGenerator[bytes, None]

_CONNECT_SECONDS: Final = 5.0
_MAX_REASON_BYTES: Final = 2048
_MAX_LIST_BYTES: Final = 1 << 20
_MAX_REASON: Final = 200
_MAX_RETRY_AFTER: Final = 3600.0
_USAGE_SECONDS: Final = 2.0  # after the text, for the count of tokens
_UNAUTHORISED: Final = (401, 403)
_REFUSED: Final = (400, 413, 422)
_TOO_LONG: Final = re.compile(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:length|size|window)", re.IGNORECASE
)
_BUSY: Final = (429, 503)
_FIRST_ERROR: Final = 400


class OpenAIBackend:
    """Answers chats with the models behind an OpenAI-compatible API."""

    def __init__(
        self, *, base_url: str, api_key: str = "", patience: float = 30.0, continue_final_message: bool = False
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            base_url: Where the API begins, usually ending in `/v1`.
            api_key: From the environment or a file, never from the command line; local servers take none.
            patience: Seconds without a piece of the answer after which a call is given up.
            continue_final_message: Say in vLLM's words that an answer begun is to be continued; others refuse that.

        Raises:
            UsageError: `base_url` is no HTTP URL.
        """
        self._patience = patience
        self._api_key = api_key
        self._continue_final_message = continue_final_message
        # Errors are read in our own hook: the SDK would read a body without end. A proxy never serves this machine.
        http_client = openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [self._check_head]}, trust_env=not _is_this_machine(base_url)
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
        """Stream an answer; cancelling closes the connection to the server.

        Raises:
            BackendUnauthorised: 401 or 403.
            BackendBusy: 429 or 503, with the seconds to wait if the server names them.
            PromptTooLong: 400, 413 or 422, because of the model's context.
            BackendRefused: 400, 413 or 422 for another reason.
            BackendFailed: Any other error status, a refused or broken connection.
            BackendGarbage: An answer that is no answer, is endless, or has no text.
            BackendTimeout: Nothing came for as long as we have patience.
        """
        answer = AnswerReader()
        delivered = False
        async with contextlib.aclosing(self._body(request)) as body:
            deadline = trio.current_time() + self._patience
            while not answer.is_complete:
                with trio.move_on_at(deadline) as scope:
                    data = await anext(body, None)
                if scope.cancelled_caught:
                    if answer.finish is not None:
                        break  # the text is whole, only the count of tokens did not come
                    raise BackendTimeout(f"{request.model} said nothing for {self._patience:g} s")
                finished = answer.finish is not None
                text = answer.end() if data is None else answer.feed(data)
                for piece in in_pieces(text):
                    await deliver(piece)
                    delivered = True
                if text:
                    deadline = trio.current_time() + self._patience
                if answer.finish is not None and not finished:
                    deadline = trio.current_time() + _USAGE_SECONDS
        if not delivered and not request.continues:
            raise BackendGarbage(f"{request.model} answered without any text")
        return ChatEnd(answer.finish or "stop", answer.usage)

    async def served_models(self) -> tuple[str, ...]:
        """Ask the server which models it has; writes nothing and costs no tokens.

        Raises:
            BackendError: As `write`; BackendGarbage also for a list that is none.
        """
        data = b""
        with trio.move_on_after(self._patience) as scope:
            call = self._client.models.with_streaming_response.list()
            async with contextlib.aclosing(self._bytes_of(call)) as body:
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

    def _body(self, request: ChatRequest) -> AsyncGenerator[bytes, None]:
        chosen = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stop": list(request.stop) or None,
            "response_format": request.response_format,
        }
        options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        if request.continues and self._continue_final_message:
            options["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
        chat: Any = [{"role": message.role, "content": message.content} for message in request.messages]
        call = self._client.chat.completions.with_streaming_response.create(
            model=request.model,
            messages=chat,
            max_tokens=request.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        return self._bytes_of(call)

    async def _bytes_of(self, call: contextlib.AbstractAsyncContextManager[Any]) -> AsyncGenerator[bytes, None]:
        """Yield an answer's bytes as they come; whatever the HTTP stack raises becomes one of our errors."""
        where = self._client.base_url
        try:
            async with call as response, contextlib.aclosing(cast(_Bytes, response.iter_bytes())) as body:
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
