"""Writing paragraphs through the mesh: for a miner without a backend of its own, another executor's model writes.

Source: docs/protocol/llm.md, "Served paragraphs".
"""

import secrets
from dataclasses import replace
from typing import Final, Protocol

import trio

from loremesh.backends.base import Draft
from loremesh.backends.budget import DailyCap
from loremesh.backends.chat import Deliver
from loremesh.backends.prompt import ParagraphRequest, answer_tokens, build_messages, estimate_tokens
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendFailed,
    BackendRefused,
    BackendTimeout,
    BackendUnauthorised,
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    PromptTooLong,
    ServiceError,
)
from loremesh.protocol.llm import MAX_PRICE
from loremesh.protocol.receipts import LENGTH
from loremesh.services.router import Answer, Chat

_SETTLE_SECONDS: Final = 2.0
_OF_KIND: Final[dict[ErrorKind, type[BackendError]]] = {
    ErrorKind.BAD_REQUEST: BackendRefused,
    ErrorKind.TOO_EXPENSIVE: BackendRefused,
    ErrorKind.CONTEXT_TOO_LONG: PromptTooLong,
    ErrorKind.UNAUTHORISED: BackendUnauthorised,
}


class Mesh(Protocol):
    """What the writer needs of the mesh."""

    async def call(self, chat: Chat, deliver: Deliver) -> Answer:
        """Have a chat answered, or raise ServiceError."""
        ...


class MeshWriter:
    """Writes paragraphs with a model that executors serve."""

    def __init__(
        self,
        mesh: Mesh,
        model: str,
        *,
        context: int = 4096,
        deadline: float = 30.0,
        max_price: int = MAX_PRICE,
        cap: DailyCap | None = None,
    ) -> None:
        """Write through a mesh that stays its owner's to leave.

        Args:
            mesh: Who is asked.
            model: The name that executors serve it by; the story records it.
            context: The model's limit for prompt and answer together, in tokens.
            deadline: Seconds for a whole call.
            max_price: Gwei per 1,000 tokens: executors that ask more are not asked.
            cap: Tokens per day; None: no limit.
        """
        self.model = model
        self._mesh = mesh
        self._context = context
        self._deadline = deadline
        self._max_price = max_price
        self._cap = cap

    async def write(self, request: ParagraphRequest) -> Draft:
        """Have a paragraph written, and fold it as its executor did; cancelling gives the call up.

        The draft carries the executor's word if that is of the very text.

        Raises:
            BackendError: Nobody wrote it; its kind says why.
        """
        messages = build_messages(request, self._context, secrets.token_hex(16))
        chat = Chat(
            self.model,
            messages,
            max_tokens=answer_tokens(request.max_words),
            max_price=self._max_price,
            fold_words=request.max_words,
            deadline=self._deadline,
            is_whole=True,
        )
        answer = await self._call(chat)
        is_cut = answer.finish == LENGTH
        draft = Draft.fold(answer.text, request.max_words, self.model, messages, is_cut=is_cut)
        is_same = answer.served is not None and answer.served.serving.output_digest == draft.output_digest
        return replace(draft, serving=answer.served) if is_same else draft

    async def aclose(self) -> None:
        """Nothing is held: the mesh is its owner's to leave."""
        await trio.lowlevel.checkpoint()

    async def _call(self, chat: Chat) -> Answer:
        """Ask, within the cap. Nothing is billed for a call that fails or is given up."""
        if self._cap is None:
            return await self._ask(chat)
        reserved = estimate_tokens(chat.messages) + chat.max_tokens
        day, used = await self._cap.reserve(reserved), 0
        try:
            answer = await self._ask(chat)
            used = answer.usage.total_tokens
        finally:
            with trio.move_on_after(_SETTLE_SECONDS, shield=True):
                await self._cap.settle(day, reserved, used)
        return answer

    async def _ask(self, chat: Chat) -> Answer:
        try:
            return await self._mesh.call(chat, _drop)
        except ExecutorBusy as error:
            raise BackendBusy(str(error), error.retry_after) from error
        except CallFailed as error:
            raise _OF_KIND.get(error.kind, BackendFailed)(str(error)) from error
        except DeadlinePassed as error:
            raise BackendTimeout(str(error)) from error
        except ServiceError as error:
            raise BackendFailed(str(error)) from error


async def _drop(_: str) -> None:
    """Take a piece of the answer: it is read when it is whole."""
    await trio.lowlevel.checkpoint()
