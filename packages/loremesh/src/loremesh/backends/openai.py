"""Any server that speaks the OpenAI chat API: OpenAI itself, Ollama, vLLM, llama.cpp. The only door to `openai`.

Import it only when such a backend is configured: the SDK takes half a second to load. One object holds one client for
all calls; close it with `aclose`.
"""

import contextlib
import ipaddress
import json
import math
import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, cast
from urllib.parse import urlsplit

import openai
import trio

from loremesh.backends.answer import AnswerReader
from loremesh.backends.base import Draft
from loremesh.backends.budget import DailyCap
from loremesh.backends.prompt import ParagraphRequest, answer_tokens, build_messages, estimate_tokens
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendGarbage,
    BackendTimeout,
    BackendUnauthorised,
    UsageError,
)
from loremesh.protocol.content.paragraph import to_visible_lines
from loremesh.protocol.llm import ChatMessage

_Bytes = AsyncGenerator[bytes, None]

_CONNECT_SECONDS: Final = 5.0
_ENOUGH: Final = 3  # times the words of a paragraph: room for a heading and a lead-in, then we stop reading
_MAX_REASON_BYTES: Final = 2048
_MAX_LIST_BYTES: Final = 1 << 20
_MAX_REASON: Final = 200
_MAX_RETRY_AFTER: Final = 3600.0
_SETTLE_SECONDS: Final = 2.0
_UNAUTHORISED: Final = (401, 403)
_BUSY: Final = (429, 503)
_FIRST_ERROR: Final = 400


class OpenAIBackend:
    """Writes paragraphs with a model behind an OpenAI-compatible API."""

    def __init__(
        self,
        *,
        model: str,
        base_url: str,
        api_key: str = "",
        aliases: Mapping[str, str] | None = None,
        token_limit: int = 4096,
        deadline: float = 30.0,
        cap: DailyCap | None = None,
    ) -> None:
        """Prepare a client; nothing is sent yet.

        Args:
            model: What to ask for: a name the server knows, or a key of `aliases`.
            base_url: Where the API begins, usually ending in `/v1`.
            api_key: From the environment or a file, never from the command line; local servers take none.
            aliases: Names such as `story-default` and what they stand for here.
            token_limit: The model's limit for prompt and answer together.
            deadline: Seconds for a whole call, connecting and every pause included.
            cap: Tokens per day; None: no limit.

        Raises:
            UsageError: `base_url` is no HTTP URL.
        """
        self.model = (aliases or {}).get(model, model)
        self._deadline = deadline
        self._token_limit = token_limit
        self._cap = cap
        self._api_key = api_key
        # Errors are read in our own hook: the SDK would read a body without end. A proxy never serves this machine.
        http_client = openai.DefaultAsyncHttpxClient(
            event_hooks={"response": [self._check_head]}, trust_env=not _is_this_machine(base_url)
        )
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            max_retries=0,  # another executor, or the next round, is the retry
            timeout=openai.Timeout(deadline, connect=_CONNECT_SECONDS),
            default_headers={"Accept-Encoding": "identity"},
            http_client=http_client,
        )

    async def write(self, request: ParagraphRequest) -> Draft:
        """Ask for a paragraph and fold what comes back; cancelling closes the connection to the server.

        Raises:
            BackendUnauthorised: 401 or 403.
            BackendBusy: 429 or 503, with the seconds to wait if the server names them.
            BackendFailed: Any other error status, a refused or broken connection.
            BackendGarbage: An answer that is no answer, is endless, or holds no paragraph.
            BackendTimeout: The deadline passed.
            BackendExhausted: The daily cap has no room for the call.
            PromptTooLong: The premise does not fit the model.
        """
        messages = build_messages(request, self._token_limit, secrets.token_hex(16))
        answer = AnswerReader(_ENOUGH * request.max_words)
        async with self._within_cap(messages, request.max_words, answer):
            with trio.move_on_after(self._deadline) as scope:
                await self._ask(messages, request.max_words, answer)
            if scope.cancelled_caught:
                raise BackendTimeout(f"{self.model} took longer than {self._deadline:g} s")
        max_words = request.max_words
        if answer.is_truncated:
            # The last sentence is half a sentence: folding to one word less than there is cuts it off.
            max_words = min(max_words, max(1, len(answer.text.split()) - 1))
        return Draft.fold(answer.text, max_words, self.model, messages)

    async def served_models(self) -> tuple[str, ...]:
        """Ask the server which models it has; writes nothing and costs no tokens.

        Raises:
            BackendError: As `write`; BackendGarbage also for a list that is none.
        """
        data = b""
        with trio.move_on_after(self._deadline) as scope:
            call = self._client.models.with_streaming_response.list()
            async with contextlib.aclosing(self._bytes_of(call)) as body:
                async for piece in body:
                    data += piece
                    if len(data) > _MAX_LIST_BYTES:
                        raise BackendGarbage(f"{self._client.base_url} answers without end when asked for its models")
        if scope.cancelled_caught:
            raise BackendTimeout(f"{self._client.base_url} took longer than {self._deadline:g} s")
        try:
            return tuple(str(model["id"]) for model in json.loads(data)["data"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BackendGarbage(f"{self._client.base_url} gives no list of models") from error

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, messages: tuple[ChatMessage, ...], max_words: int, answer: AnswerReader) -> None:
        async with contextlib.aclosing(self._body(messages, max_words)) as body:
            async for data in body:
                answer.feed(data)
                if answer.is_complete:
                    return
        answer.finish()

    def _body(self, messages: tuple[ChatMessage, ...], max_words: int) -> AsyncGenerator[bytes, None]:
        chat: Any = [{"role": message.role, "content": message.content} for message in messages]
        call = self._client.chat.completions.with_streaming_response.create(
            model=self.model, messages=chat, max_tokens=answer_tokens(max_words), stream=True
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
        if status in _BUSY:
            raise BackendBusy(reason, _retry_after(response.headers.get("retry-after", "")))
        raise BackendFailed(reason)

    @contextlib.asynccontextmanager
    async def _within_cap(
        self, messages: tuple[ChatMessage, ...], max_words: int, answer: AnswerReader
    ) -> AsyncGenerator[None, None]:
        """Reserve what the call may take; afterwards count what it took, also when it was cancelled."""
        if self._cap is None:
            yield
            return
        prompt = estimate_tokens(messages)
        reserved = prompt + answer_tokens(max_words)
        day = await self._cap.reserve(reserved)
        try:
            yield
        except (BackendUnauthorised, BackendBusy, BackendFailed):
            if not answer.text:
                answer.total_tokens = 0  # refused before the model ran
            raise
        finally:
            with trio.move_on_after(_SETTLE_SECONDS, shield=True):
                await self._cap.settle(day, reserved, _used(prompt, answer))


def _used(prompt: int, answer: AnswerReader) -> int:
    """Tell the tokens of a call: the server's own count, or an estimate that errs upwards."""
    if answer.total_tokens is not None:
        return answer.total_tokens
    return prompt + estimate_tokens((ChatMessage("assistant", answer.text),))


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


def _retry_after(header: str) -> float | None:
    """Read a Retry-After in seconds, at most an hour; the form with a date counts as unknown."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER) if math.isfinite(seconds) else None
