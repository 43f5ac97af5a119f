"""What a client asks of the mesh, and what it gets: one answer, whoever gave it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from loremesh.primitives import PeerId
from loremesh.protocol.llm import MAX_PRICE, ChatMessage, SignedServing
from loremesh.protocol.receipts import BackendUsage, Evidence

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
