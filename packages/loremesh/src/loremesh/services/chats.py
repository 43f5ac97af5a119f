"""What is asked of the mesh, the answer to it, and what lies between: an answer of which parts are there.

Source: docs/protocol/llm.md.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from loremesh.errors import CallFailed, ErrorKind, InvalidMessage
from loremesh.primitives import Hash, Millis, PeerId
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.identity import NO_STORY
from loremesh.protocol.llm import MAX_PRICE, ChatMessage, LlmRequest, SignedServing, check_chat
from loremesh.protocol.receipts import BackendUsage, Evidence
from loremesh.services.attempt import Attempt
from loremesh.services.routing import short_name

DEFAULT_MAX_TOKENS: Final = 1024
DEFAULT_DEADLINE: Final = 120.0


@dataclass(frozen=True, slots=True)
class Chat:
    """What is asked. None and empty mean: as the executor likes."""

    model: str
    messages: tuple[ChatMessage, ...]
    """Whole characters only (`protocol.llm.whole_characters`), together at most 512 KiB of UTF-8."""
    max_tokens: int = DEFAULT_MAX_TOKENS
    """1 to 2**20."""
    temperature: float | None = None
    """0 to 2."""
    top_p: float | None = None
    """0 to 1."""
    seed: int | None = None
    """0 to 2**64 - 1."""
    stop: tuple[str, ...] = ()
    """At most 4, each of at most 256 bytes."""
    response_format: Mapping[str, Any] | None = None
    """A JSON object as OpenAI's API has it."""
    max_price: int = MAX_PRICE
    """Gwei per 1,000 tokens: executors that ask more are not asked."""
    fold_words: int = 0
    """Above 0: the executor signs what the answer folds to in so many words."""
    deadline: float = DEFAULT_DEADLINE
    """Seconds for the whole call, at most 600."""
    is_whole: bool = False
    """Nobody reads the pieces as they come: there are fewer of them, and later."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of `o200k_base`, as the client itself has counted them."""

    prompt_tokens: int
    """Of all requests that had a part in the answer: a continuation's has the delivered text in it."""
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together: what is billed."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, complete."""

    text: str
    """What was delivered, all of it."""
    model: str
    executors: tuple[PeerId, ...]
    """Who wrote it, in order: more than one when it was continued elsewhere."""
    usage: Usage
    finish: str
    """`stop` or `length`."""
    evidence: tuple[Evidence, ...]
    """What is in the journal, in the order of the executors; a receipt that the recount refused is not there."""
    backend_usage: BackendUsage | None
    """What the last executor's backend says, in tokens of its own: shown, never billed."""
    served: SignedServing | None
    """The last executor's statement, when `fold_words` asked for one and it wrote the answer alone."""
    attempts: tuple[str, ...]
    """A line for each executor that was considered: why it was chosen or not, and what came of it."""
    warnings: tuple[str, ...]
    """A line for each bill that was not signed."""


@dataclass(slots=True)
class OpenCall:
    """A chat that is being answered."""

    chat: Chat
    expires: float
    """Of trio's clock."""
    parts: list[Attempt] = field(default_factory=list)
    """Those that delivered something, in order; the last may have ended the answer, the others were lost."""
    text: str = ""
    """Of all parts."""
    tokens: int = 0
    """Of the text."""
    failed: set[PeerId] = field(default_factory=set)
    failures: list[Exception] = field(default_factory=list)
    """Other than being busy."""
    retry_after: float = math.inf
    """What the last busy executor said, in seconds."""
    considered: tuple[str, ...] = ()
    outcomes: list[str] = field(default_factory=list)

    @property
    def attempts(self) -> tuple[str, ...]:
        """What was considered and what came of it."""
        return (*self.considered, *self.outcomes)

    def note(self, executor: PeerId, outcome: str) -> None:
        """Write down what came of asking an executor."""
        self.outcomes.append(f"{short_name(executor)}: {outcome}")

    def request(self, client: PeerId, executor: PeerId, session: Hash, now: Millis) -> LlmRequest:
        """Make what is asked of one executor now: the rest of the answer."""
        chat = self.chat
        delivered = (ChatMessage("assistant", self.text),) if self.text else ()
        seconds = max(self.expires - trio.current_time(), 0.001)
        return LlmRequest(
            id=Hash(secrets.token_bytes(32)),
            client=client,
            executor=executor,
            session=session,
            model=chat.model,
            messages=(*chat.messages, *delivered),
            continues=1 if delivered else 0,
            max_tokens=chat.max_tokens - self.tokens,
            temperature=_thousandths(chat.temperature),
            top_p=_thousandths(chat.top_p),
            seed=() if chat.seed is None else (chat.seed,),
            stop=chat.stop,
            response_format="" if chat.response_format is None else json.dumps(chat.response_format),
            max_price=chat.max_price,
            fold_words=0 if delivered else chat.fold_words,
            time=now,
            expires=Millis(now + math.ceil(seconds * 1000)),
        )

    def check(self, client: PeerId, now: Millis) -> None:
        """See that what is asked can be asked of anybody.

        Raises:
            CallFailed: BAD_REQUEST: too long, or something is out of its range.
        """
        try:
            check_chat(decode(LlmRequest, encode(self.request(client, client, NO_STORY, now))))
        except (InvalidMessage, OverflowError, ValueError) as error:  # no number, half a character
            raise CallFailed(ErrorKind.BAD_REQUEST, str(error)) from error


def _thousandths(value: float | None) -> tuple[int, ...]:
    return () if value is None else (round(value * 1000),)
