"""Writing paragraphs with anything that answers chats: the prompt, the deadline, the daily cap and the fold."""

import contextlib
import secrets
from collections.abc import AsyncGenerator
from typing import Final

import trio

from loremesh.backends.base import Draft
from loremesh.backends.budget import DailyCap
from loremesh.backends.chat import ChatBackend, ChatEnd, ChatRequest
from loremesh.backends.prompt import ParagraphRequest, answer_tokens, build_messages, estimate_tokens
from loremesh.errors import (
    BackendBusy,
    BackendFailed,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    PromptTooLong,
)
from loremesh.protocol.content.paragraph import without_thoughts
from loremesh.protocol.llm import ChatMessage

_ENOUGH: Final = 3  # times the words of a paragraph: room for a heading and a lead-in, then we stop reading
_SETTLE_SECONDS: Final = 2.0
_NOTHING_USED: Final = (BackendUnauthorised, BackendBusy, BackendFailed, BackendRefused, PromptTooLong)


class ChatWriter:
    """Writes paragraphs with one model of a backend that answers chats."""

    def __init__(
        self,
        backend: ChatBackend,
        model: str,
        *,
        context: int = 4096,
        deadline: float = 30.0,
        cap: DailyCap | None = None,
    ) -> None:
        """Write with a backend that stays its owner's to close.

        Args:
            backend: What answers.
            model: The name that the backend knows; the story records it.
            context: The model's limit for prompt and answer together, in tokens.
            deadline: Seconds for a whole call, connecting and every pause included.
            cap: Tokens per day; None: no limit.
        """
        self.model = model
        self._backend = backend
        self._context = context
        self._deadline = deadline
        self._cap = cap

    async def write(self, request: ParagraphRequest) -> Draft:
        """Ask for a paragraph and fold what comes back; cancelling aborts the call.

        Raises:
            BackendError: As the backend; also:
            BackendGarbage: There is no paragraph in the answer.
            BackendTimeout: The deadline passed.
            BackendExhausted: The daily cap has no room for the call.
            PromptTooLong: The premise does not fit the model.
        """
        messages = build_messages(request, self._context, secrets.token_hex(16))
        answer = _Answer(_ENOUGH * request.max_words)
        async with self._within_cap(messages, request.max_words, answer):
            with trio.move_on_after(self._deadline) as scope:
                await self._ask(messages, request.max_words, answer)
            if scope.cancelled_caught:
                raise BackendTimeout(f"{self.model} took longer than {self._deadline:g} s")
        is_cut = answer.end is not None and answer.end.finish == "length"
        return Draft.fold(answer.text, request.max_words, self.model, messages, is_cut=is_cut)

    async def aclose(self) -> None:
        """Nothing is held: the backend is its owner's to close."""
        await trio.lowlevel.checkpoint()

    async def _ask(self, messages: tuple[ChatMessage, ...], max_words: int, answer: "_Answer") -> None:
        request = ChatRequest(self.model, messages, continues=False, max_tokens=answer_tokens(max_words))
        with trio.CancelScope() as scope:

            async def take(piece: str) -> None:
                if answer.add(piece):
                    scope.cancel()
                await trio.lowlevel.checkpoint()

            answer.end = await self._backend.chat(request, take)

    @contextlib.asynccontextmanager
    async def _within_cap(
        self, messages: tuple[ChatMessage, ...], max_words: int, answer: "_Answer"
    ) -> AsyncGenerator[None, None]:
        """Reserve what the call may take; afterwards count what it took, also when it was cancelled."""
        if self._cap is None:
            yield
            return
        prompt = estimate_tokens(messages)
        reserved = prompt + answer_tokens(max_words)
        day = await self._cap.reserve(reserved)
        used = None
        try:
            yield
        except _NOTHING_USED:
            if not answer.pieces:
                used = 0  # refused before the model ran
            raise
        finally:
            if used is None:
                used = answer.used(prompt)
            with trio.move_on_after(_SETTLE_SECONDS, shield=True):
                await self._cap.settle(day, reserved, used)


class _Answer:
    """What has come of one answer."""

    def __init__(self, enough_words: int) -> None:
        self.pieces: list[str] = []
        self.end: ChatEnd | None = None
        self._enough = enough_words
        self._spaces = 0
        self._look_at = enough_words

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, piece: str) -> bool:
        """Tell whether there are words enough, not counting thoughts: what follows them is dropped anyway."""
        self.pieces.append(piece)
        self._spaces += piece.count(" ")
        if self._spaces < self._look_at:
            return False
        self._look_at = self._spaces + self._enough // 2  # thoughts may be long: they are not read through each time
        return without_thoughts(self.text).count(" ") >= self._enough

    def used(self, prompt: int) -> int:
        """Tell the tokens of the call: the backend's own count, or an estimate that errs upwards."""
        if self.end is not None and self.end.usage is not None:
            return self.end.usage.prompt_tokens + self.end.usage.completion_tokens
        return prompt + estimate_tokens((ChatMessage("assistant", self.text),))
