"""What every backend offers to those who serve calls: an answer to a chat, piece by piece."""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from loremesh.protocol.llm import MAX_DELTA_BYTES, ChatMessage
from loremesh.protocol.receipts import BackendUsage

WHOLE_SECONDS: Final = 120.0
"""A whole answer shows nothing of itself before it is there: after so long it is given up."""
_BYTES_OF_A_CHARACTER: Final = 4  # of UTF-8, at most

Deliver = Callable[[str], Awaitable[None]]
"""Takes one piece of an answer: not empty, whole characters, at most 64 KiB of UTF-8. Waits while nobody reads."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What is asked of a backend. None and empty mean: as the backend likes."""

    model: str
    """The name that the backend itself knows."""
    messages: tuple[ChatMessage, ...]
    continues: bool
    """The last message is the beginning of the answer: carry on from its last character."""
    max_tokens: int
    """As the backend counts."""
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    response_format: Mapping[str, Any] | None = None
    """A JSON object as OpenAI's API has it."""
    is_whole: bool = False
    """Nobody reads the pieces as they come."""


@dataclass(frozen=True, slots=True)
class ChatEnd:
    """How an answer ended."""

    finish: str
    """`stop` or `length`, as a receipt has it."""
    usage: BackendUsage | None
    """In the backend's own tokens; None when it did not say."""


class ChatBackend(Protocol):
    """Something that answers chats. One object serves any number of concurrent calls."""

    async def chat(self, request: ChatRequest, deliver: Deliver) -> ChatEnd:
        """Answer, handing each piece to `deliver` as it comes; cancelling aborts the work behind it.

        The deadline of the whole is the caller's; a backend that says nothing for 30 s is given up, for
        `WHOLE_SECONDS` where a whole answer is asked of it.

        Raises:
            BackendError: One of its kinds says why there is no answer, or no whole one.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections; no call may be running."""
        ...


def in_pieces(text: str) -> Iterator[str]:
    """Cut a text of whole characters into what `Deliver` takes; nothing, when it is empty."""
    if len(text) <= MAX_DELTA_BYTES // _BYTES_OF_A_CHARACTER:
        if text:
            yield text
        return
    data, start = text.encode(), 0
    while start < len(data):
        piece = data[start : start + MAX_DELTA_BYTES].decode(errors="ignore")  # a character that is cut goes next
        yield piece
        start += len(piece.encode())
