"""What every backend offers, and what it gives back."""

import hashlib
from dataclasses import dataclass
from typing import Protocol, Self

from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import BackendGarbage
from loremesh.primitives import Hash
from loremesh.protocol.content.paragraph import fold_paragraph
from loremesh.protocol.llm import ChatMessage, SignedServing, prompt_digest


@dataclass(frozen=True, slots=True)
class Draft:
    """A paragraph that a model wrote, and what its birth certificate says about that."""

    text: str
    """Folded: it passes `check_paragraph`."""
    model: str
    prompt_digest: Hash
    output_digest: Hash
    """SHA-256 of `text` in UTF-8."""
    serving: SignedServing | None = None
    """The word of the executor that served it; None: our own backend wrote it, or nobody stands by this text."""

    @classmethod
    def fold(
        cls, answer: str, max_words: int, model: str, messages: tuple[ChatMessage, ...], *, is_cut: bool = False
    ) -> Self:
        """Fold what a model answered to `messages`.

        Args:
            answer: All of it.
            max_words: Most words of the paragraph.
            model: Its name in the story.
            messages: The prompt.
            is_cut: The model came to a limit, so its last sentence is half a sentence, and is left out.

        Raises:
            BackendGarbage: There is no paragraph in the answer.
        """
        if is_cut:
            # Folding to one word less than there is cuts the half sentence off.
            max_words = min(max_words, max(1, len(answer.split()) - 1))
        text = fold_paragraph(answer, max_words)
        if text is None:
            raise BackendGarbage(f"{model} answered without a paragraph")
        return cls(text, model, prompt_digest(messages), Hash(hashlib.sha256(text.encode()).digest()))


class Backend(Protocol):
    """Something that writes paragraphs. One object serves any number of concurrent calls."""

    model: str
    """The name the story records."""

    async def write(self, request: ParagraphRequest) -> Draft:
        """Write the next paragraph; cancelling aborts the work behind it.

        Raises:
            BackendError: One of its kinds says why there is none.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections; no call may be running."""
        ...
