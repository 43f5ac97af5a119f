"""The builtin backend: a seeded grammar that tells a story in English, without a network, a key or a download.

It writes a story's paragraphs, and answers chats with prose about what the last user says. One request has one answer,
on every machine and Python.
"""

from typing import Final

import trio

from loremesh.backends.base import Draft
from loremesh.backends.chat import ChatEnd, ChatRequest, Deliver, in_pieces
from loremesh.backends.grammar.answering import compose
from loremesh.backends.grammar.telling import MEMORY, MOST_WOVEN, Draws, tell
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import UsageError
from loremesh.protocol.llm import ChatMessage
from loremesh.protocol.receipts import BackendUsage

MODEL: Final = "builtin"

_LONGEST_LATENCY: Final = 5.0


class BuiltinBackend:
    """Writes in well under a millisecond, and looks as slow as it is told to."""

    def __init__(self, latency: tuple[float, float] = (0.0, 0.0), *, seed: int = 0) -> None:
        """Prepare to write.

        Args:
            latency: The least and the most seconds a paragraph or an answer shall seem to take, within 0 to 5.
            seed: Of answers to chats: two with different seeds say different things.

        Raises:
            UsageError: A latency is outside its limits, or they are the wrong way round.
        """
        low, high = latency
        if not 0 <= low <= high <= _LONGEST_LATENCY:
            raise UsageError(
                f"a latency of {low:g} to {high:g} s: it lies within 0 to {_LONGEST_LATENCY:g}, least first"
            )
        self.model = MODEL
        self._latency = latency
        self._seed = seed

    async def write(self, request: ParagraphRequest) -> Draft:
        """Tell the next paragraph, in English whatever the story's language.

        Raises:
            BackendFailed: Nothing new could be said; with a premise and a limit of words that is next to impossible.
        """
        await trio.sleep(self._seconds(Draws(request.seed, "latency", request.height)))
        return Draft.fold(tell(request), request.max_words, MODEL, _messages(request))

    async def chat(self, request: ChatRequest, deliver: Deliver) -> ChatEnd:
        """Answer in English, word by word.

        Raises:
            BackendRefused: A JSON schema is asked for: the grammar knows none.
        """
        answer = compose(request, self._seed)
        seconds, began = self._seconds(Draws(self._seed, "latency", *answer.words)), trio.current_time()
        for number, word in enumerate(answer.words, 1):
            await trio.sleep_until(began + seconds * number / len(answer.words))
            for piece in in_pieces(word):
                await deliver(piece)
        asked = sum(len(message.content.split()) for message in request.messages)
        return ChatEnd(answer.finish, BackendUsage(asked, len(answer.words)))

    async def aclose(self) -> None:
        """Nothing is held."""
        await trio.lowlevel.checkpoint()

    def _seconds(self, draws: Draws) -> float:
        low, high = self._latency
        return low + (high - low) * draws.below(1_000_001) / 1_000_000


def _messages(request: ParagraphRequest) -> tuple[ChatMessage, ...]:
    """Say what the paragraph was made of, in the form every prompt has, for its digest."""
    origin = "\n".join((request.story.hex(), str(request.height), request.seed.hex(), request.title, request.premise))
    parts = (origin, *request.paragraphs[-MEMORY:], *request.suggestions[:MOST_WOVEN])
    return (ChatMessage("system", MODEL), ChatMessage("user", "\n".join(parts)))
