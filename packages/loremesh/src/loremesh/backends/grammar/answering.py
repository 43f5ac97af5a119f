"""Answering a chat out of the grammar: prose about what the last user says, or a small JSON object that holds it.

Who it is about follows from what was asked alone, how it is told from the seeds; so another executor, asked to carry an
answer on, goes on with the same people in words of its own.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import Final

from loremesh.backends.chat import ChatRequest
from loremesh.backends.grammar.telling import Draws, tell
from loremesh.backends.prompt import ParagraphRequest, PromptParts, read_prompt
from loremesh.errors import BackendRefused
from loremesh.primitives import Hash, Height
from loremesh.protocol.content.paragraph import to_visible_lines
from loremesh.protocol.llm import ChatMessage, prompt_digest

_PARAGRAPHS: Final = 2
_MOST_WORDS: Final = 110
_MOST_READ: Final = 2000  # characters of one message
_MOST_TURNS: Final = 12
_WORD: Final = re.compile(r"\s*\S+")
_LETTERS_PER_TOKEN: Final = 3
_PLEASE: Final = re.compile(
    r"(?:please,? )?(?:write|tell|compose|invent|imagine|describe)\b[^.?!\n]{0,80}?\babout\s+(?=\S)", re.IGNORECASE
)
_FULL_STOPS: Final = ".!?…”"
_PAUSES: Final = ",;:—–-"
_ENDINGS: Final = (
    "and then, all at once, it was very quiet.",
    "but there the thought broke off, for somebody had knocked.",
    "and nobody who was there would ever agree on the rest.",
    "but the wind turned, and took the end of the sentence with it.",
    "and that was when the lamp went out.",
)
_KEY: Final = "answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the grammar says to a chat."""

    words: tuple[str, ...]
    """Each with the space before it; joined they are the text."""
    finish: str
    """`stop`, or `length` when `max_tokens` cut it."""


def compose(request: ChatRequest, seed: int) -> Answer:
    """Answer a chat; for one request and seed always the same.

    Args:
        request: What is asked; `temperature` and `top_p` change nothing.
        seed: The executor's own.

    Raises:
        BackendRefused: The response format is a JSON schema.
    """
    kind = (request.response_format or {}).get("type", "text")
    if kind not in ("text", "json_object"):
        raise BackendRefused(f"the builtin backend answers in text or as json_object, not as {str(kind)[:40]!r}")
    asked = request.messages[:-1] if request.continues else request.messages
    begun = request.messages[-1].content if request.continues else ""
    chosen = prompt_digest(asked) if request.seed is None else request.seed.to_bytes(8, "big")
    own = hashlib.sha256(b"%d/%b" % (seed, chosen)).digest()
    told = _tell(asked, "", own)
    whole = _as_json(told) if kind == "json_object" else told
    if begun:
        if whole.startswith(begun):
            whole = whole[len(begun) :]
        elif kind == "json_object":
            whole = _finish_json(begun, told)
        else:
            whole = _carry_on(begun, asked, own)
    ends = [found for word in request.stop if (found := whole.find(word)) >= 0]
    return _within(whole[: min(ends)] if ends else whole, request.max_tokens)


def _tell(asked: tuple[ChatMessage, ...], begun: str, seed: bytes) -> str:
    """Tell about the last user's words what follows what was said before, `begun` included."""
    users = [message.content for message in asked if message.role == "user"] or [""]
    said = [message.content for message in asked if message.role == "assistant"]
    before = tuple(line for text in (*said[-_MOST_TURNS:], begun) for line in _lines(text))
    parts = read_prompt(users[-1])
    if parts is not None:
        return tell(_request(replace(parts, paragraphs=(*parts.paragraphs, *before)), seed))
    told: tuple[str, ...] = ()
    for _ in range(1 if begun else _PARAGRAPHS):
        paragraphs = (*before, *told)
        topic = _PLEASE.sub("", users[-1][:_MOST_READ], count=1)
        parts = PromptParts("", topic, paragraphs, (), Height(1 + len(paragraphs)))
        told += (tell(_request(parts, seed)),)
    return "\n\n".join(told)


def _request(parts: PromptParts, seed: bytes) -> ParagraphRequest:
    matter = f"{parts.title}\n{parts.premise}".encode(errors="replace")
    return ParagraphRequest(
        story=Hash(hashlib.sha256(matter).digest()),
        title=parts.title,
        premise=parts.premise,
        language="en",
        height=parts.height,
        paragraphs=parts.paragraphs,
        suggestions=parts.suggestions,
        max_words=_MOST_WORDS,
        max_context=0,
        seed=seed,
    )


def _lines(text: str) -> list[str]:
    return [line for line in to_visible_lines(text[-_MOST_READ:]).split("\n") if line.strip()]


def _carry_on(begun: str, asked: tuple[ChatMessage, ...], seed: bytes) -> str:
    """Bring the sentence that `begun` breaks off in to an end, and tell on."""
    draws = Draws(seed, "carry on", begun)
    broken = begun.rstrip()
    ending = ""
    if broken and broken[-1] not in _FULL_STOPS:
        ending = draws.pick(_ENDINGS) if broken[-1] in _PAUSES else f"— {draws.pick(_ENDINGS)}"
        if broken.count("“") > broken.count("”"):
            ending = ending[:-1] + ".”"
    told = " ".join(part for part in (ending, _tell(asked, begun, seed)) if part)
    return f" {told}" if begun and not begun[-1].isspace() else told


def _as_json(text: str) -> str:
    return json.dumps({_KEY: text}, ensure_ascii=False)


def _finish_json(begun: str, text: str) -> str:
    """Make one JSON object of `begun` and what is added; nothing, when no addition known here does."""
    quoted = json.dumps(text, ensure_ascii=False)[1:]
    space = "" if begun.endswith((" ", '"')) else " "
    for added in (
        "",
        "}",
        f"{space}{quoted}}}",
        f"{quoted}}}",
        f'"{quoted}}}',
        f' "{_KEY}": "{quoted}}}',
        _as_json(text),
    ):
        try:
            if isinstance(json.loads(begun + added), dict):
                return added
        except ValueError:
            continue
    return ""


def _within(text: str, max_tokens: int) -> Answer:
    """Cut a text into words, as many as surely are no more than so many tokens."""
    words = _WORD.findall(text)
    left = max_tokens
    for number, word in enumerate(words):
        left -= _tokens(word)
        if left < 0:
            return Answer(tuple(words[:number]), "length")
    return Answer(tuple(words), "stop")


def _tokens(word: str) -> int:
    """Count upwards: a token has 3 letters or more in English, and a byte in anything else."""
    return 1 + len(word) // _LETTERS_PER_TOKEN if word.isascii() else len(word.encode(errors="replace"))
