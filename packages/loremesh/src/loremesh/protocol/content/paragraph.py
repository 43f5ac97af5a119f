"""A paragraph: what its text must be, and the public rule that folds any answer of a model into one.

One text has one form: words of visible characters, in NFC, separated by single plain spaces. So equal paragraphs are
equal bytes, and whoever knows what a model answered can compute the paragraph that was made of it.

Both rules use the frozen alphabet of `characters`, so they do not depend on the Unicode table of the running Python.

Source: docs/protocol/content.md.
"""

import re
import unicodedata
from functools import cache
from typing import Final

from loremesh.errors import Fault, InvalidContent
from loremesh.primitives import KIB
from loremesh.protocol.content.characters import VISIBLE_CLASS

MAX_PARAGRAPH_BYTES: Final = 4 * KIB
"""Of UTF-8."""

_LINE_BREAKS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_ANY_BREAK: Final = re.compile(f"\r\n|[{_LINE_BREAKS}]")
_ANY_SPACE: Final = re.compile("[\t\x1f \xa0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_PRINTABLE_ASCII: Final = bytes(range(0x20, 0x7F))


def check_paragraph(text: str, max_words: int) -> None:
    """Accept the one form of one paragraph of 1 to `max_words` words.

    A word is a run of characters without a space; words stand apart by exactly one U+0020, and none begins or ends the
    text. The faults are looked for in the order given here.

    Raises:
        InvalidContent: TOO_LARGE, more than 4 KiB of UTF-8. EMPTY_TEXT, nothing but spaces. NOT_ONE_PARAGRAPH, a line
            break of any kind. FORBIDDEN_CHARACTER, a character that is neither visible nor U+0020. NOT_NFC.
            NOT_CANONICAL, a space too many. TOO_MANY_WORDS.
    """
    # Every block passes here. Almost all are plain ASCII, for which four scans in C give the answer of the rule below.
    if (
        text.isascii()
        and 0 < len(text) <= MAX_PARAGRAPH_BYTES
        and text[0] != " " != text[-1]
        and "  " not in text
        and text.count(" ") < max_words
        and not text.encode().translate(None, _PRINTABLE_ASCII)
    ):
        return
    _check_in_full(text, max_words)


def fold_paragraph(text: str, max_words: int) -> str | None:
    """Make one paragraph out of whatever a model answered; None when there is none in it.

    The result passes `check_paragraph` and folds to itself. What is dropped, and in which order, belongs to the
    protocol: whoever serves a text for another signs exactly this.

    Args:
        text: The answer: any characters, any length.
        max_words: At least 1.
    """
    folded = to_visible_lines(without_thoughts(text)[:_MAX_INPUT])
    # A real answer is stable after two rounds; something nested deeper than this is no paragraph.
    for _ in range(_MAX_ROUNDS):
        before = folded
        folded = _cut(_unwrap(_first_paragraph(before)), max_words)
        if folded == before:
            return folded or None
    return None


def to_visible_lines(text: str) -> str:
    """Leave visible characters in NFC, single plain spaces, and line feeds: text that is safe to show or to quote."""
    spaced = _ANY_SPACE.sub(" ", _ANY_BREAK.sub("\n", text))
    visible = "\n".join(_invisible().sub("", line) for line in spaced.split("\n"))
    return _SPACES.sub(" ", unicodedata.normalize("NFC", visible))


def without_thoughts(text: str) -> str:
    """Drop what a reasoning model thought aloud; everything, when it never stopped thinking."""
    spoken = text.rpartition(_END_OF_THOUGHT)[2]
    return "" if spoken.lstrip(" \n").startswith(_THOUGHT) else spoken


def _check_in_full(text: str, max_words: int) -> None:
    size = len(text.encode("utf-8", "surrogatepass")) if len(text) <= MAX_PARAGRAPH_BYTES else len(text)
    if size > MAX_PARAGRAPH_BYTES:
        raise InvalidContent(Fault.TOO_LARGE, f"paragraph of more than {MAX_PARAGRAPH_BYTES} bytes")
    if not text.strip(" "):
        raise InvalidContent(Fault.EMPTY_TEXT)
    if _ANY_BREAK.search(text):
        raise InvalidContent(Fault.NOT_ONE_PARAGRAPH, "line break")
    forbidden = _invisible().search(text)
    if forbidden:
        raise InvalidContent(Fault.FORBIDDEN_CHARACTER, f"U+{ord(forbidden[0]):04X} at {forbidden.start()}")
    if not unicodedata.is_normalized("NFC", text):
        raise InvalidContent(Fault.NOT_NFC, "paragraph")
    if text.strip(" ") != text or "  " in text:
        raise InvalidContent(Fault.NOT_CANONICAL, "a space that separates no words")
    words = text.count(" ") + 1
    if words > max_words:
        raise InvalidContent(Fault.TOO_MANY_WORDS, f"{words}, at most {max_words}")


@cache
def _invisible() -> re.Pattern[str]:
    """Match what is neither visible nor a plain space; made when first needed (some 6 ms)."""
    return re.compile(f"[^{VISIBLE_CLASS} ]")


# ---- Folding: each of these is one numbered step of docs/protocol/content.md -----------------------------------------

_MAX_INPUT: Final = 8 * KIB  # normalising takes the square of a run of combining marks: 40 ms at most for this many
_MAX_ROUNDS: Final = 8
_MAX_LEAD_IN_WORDS: Final = 20
_MAX_HEADING_WORDS: Final = 12
_SHORTEST_SHARE: Final = 3

_SPACES: Final = re.compile(" +")
_THOUGHT: Final = "<think>"
_END_OF_THOUGHT: Final = "</think>"
_BULLETS: Final = re.compile(r"\A(?:(?:[-*+>•]|[0-9]{1,3}[.)]) +)+")
_FENCE: Final = re.compile(r"(?:```|~~~)[A-Za-z0-9_+-]*")
_HEADING: Final = re.compile(r"#{1,6} .*")
_PUNCTUATION_ONLY: Final = re.compile(r"[ !-/:-@\[-`{-~]*")
_LEAD_IN: Final = re.compile(r"\A[^:]{0,80}\b(?:paragraph|continuation)\b[^:]{0,40}:", re.IGNORECASE | re.ASCII)
_ALL_BOLD: Final = re.compile(r"\*\*[^*]+\*\*")
_BOLD: Final = re.compile(r"\*\*|__")
_WRAPPERS: Final = (
    ("```", "```"),
    ("*", "*"),
    ("_", "_"),
    ("`", "`"),
    ('"', '"'),
    ("“", "”"),
    ("«", "»"),
)
_SENTENCE_END: Final = re.compile(r"""[.!?…]["'”’»)\]]*(?= |$)|[。！？]["'”’»」』）]*""")


def _first_paragraph(text: str) -> str:
    """Join the first run of lines that carry prose: without marks, headings and announcements."""
    paragraph: list[str] = []
    lines = [_BULLETS.sub("", line.strip(" ")) for line in without_thoughts(text).strip(" \n").split("\n")]
    for number, line in enumerate(lines):
        is_last = number == len(lines) - 1
        if _is_furniture(line) or (not paragraph and not is_last and _is_announcement(line)):
            if paragraph:
                break
        else:
            paragraph.append(line)
    return " ".join(paragraph)


def _is_furniture(line: str) -> bool:
    """Tell a line that separates or entitles paragraphs: empty, a rule, a fence, a heading."""
    is_title = _ALL_BOLD.fullmatch(line) and line.count(" ") < _MAX_HEADING_WORDS
    return bool(is_title) or any(mark.fullmatch(line) for mark in (_PUNCTUATION_ONLY, _FENCE, _HEADING))


def _is_announcement(line: str) -> bool:
    return line.endswith(":") and line.count(" ") < _MAX_LEAD_IN_WORDS


def _unwrap(paragraph: str) -> str:
    """Drop an inline lead-in, marks of bold type, and the marks or quotes that enclose the whole paragraph."""
    bare = _BOLD.sub("", _LEAD_IN.sub("", paragraph)).strip(" ")
    for opening, closing in _WRAPPERS:
        inside = bare[len(opening) : -len(closing)]
        is_wrapped = bare.startswith(opening) and bare.endswith(closing) and inside
        if is_wrapped and opening not in inside and closing not in inside:
            bare = inside.strip(" ")
    return _SPACES.sub(" ", bare)


def _cut(paragraph: str, max_words: int) -> str:
    """Shorten to the limits: to whole sentences if they are a third of what fits, else to words and an ellipsis."""
    words = paragraph.split(" ")
    if len(words) <= max_words and len(paragraph.encode()) <= MAX_PARAGRAPH_BYTES:
        return paragraph
    ellipsis = "…"
    room = MAX_PARAGRAPH_BYTES - len(ellipsis.encode())
    fits = " ".join(words[:max_words]).encode()[:room].decode(errors="ignore").rstrip(" ")
    ends = [end.end() for end in _SENTENCE_END.finditer(fits)]
    if ends and ends[-1] * _SHORTEST_SHARE >= len(fits):
        return fits[: ends[-1]]
    return fits.rstrip(" ,;:-–—") + ellipsis
