"""Vectors of the paragraph's two rules, for another implementation to run against.

A case is `{"rule": "check", "name", "text", "max_words", "fault"}` (`fault` null: the text is accepted) or
`{"rule": "fold", "name", "text", "max_words", "folded"}` (`folded` null: no paragraph in it).
"""

from loremesh.errors import InvalidContent
from loremesh.protocol.content.paragraph import MAX_PARAGRAPH_BYTES, check_paragraph, fold_paragraph

_WORDS = 140

_CHECKED = (
    ("one word", "Begin.", _WORDS),
    ("a sentence", "The lamp burned low, and nobody came.", _WORDS),
    ("as many words as allowed", " ".join(["word"] * _WORDS), _WORDS),
    ("one word too many", " ".join(["word"] * (_WORDS + 1)), _WORDS),
    ("typographic quotes", "“Go,” she said — “now…”", _WORDS),
    ("other scripts", "灯が消えた。 Светильник погас. خرج الليل.", _WORDS),
    ("an emoji", "The dragon 🐉 slept.", _WORDS),
    ("as many bytes as allowed", "é" * (MAX_PARAGRAPH_BYTES // 2), _WORDS),
    ("one byte too many", "é" * (MAX_PARAGRAPH_BYTES // 2) + "x", _WORDS),
    ("nothing", "", _WORDS),
    ("only spaces", "   ", _WORDS),
    ("two paragraphs", "One.\n\nTwo.", _WORDS),
    ("a line feed", "One.\nTwo.", _WORDS),
    ("a trailing line feed", "One.\n", _WORDS),
    ("a line separator", "One.\u2028Two.", _WORDS),
    ("a next-line control", "One.\u0085Two.", _WORDS),
    ("a tab", "One.\tTwo.", _WORDS),
    ("a null", "One\u0000.", _WORDS),
    ("an escape", "\u001b[31mred", _WORDS),
    ("a delete", "One\u007f.", _WORDS),
    ("a no-break space", "One\u00a0two.", _WORDS),
    ("an ideographic space", "一\u3000二", _WORDS),
    ("a bidi override", "abc\u202edef", _WORDS),
    ("a bidi isolate", "abc\u2066def", _WORDS),
    ("a zero-width space", "abc\u200bdef", _WORDS),
    ("a zero-width joiner", "👩\u200d🚀", _WORDS),
    ("a byte order mark", "\ufeffOne.", _WORDS),
    ("a soft hyphen", "lan\u00adtern", _WORDS),
    ("a variation selector", "❤\ufe0f", _WORDS),
    ("a Hangul filler", "abc\u3164def", _WORDS),
    ("a tag character", "abc\U000e0041", _WORDS),
    ("private use", "abc\ue000", _WORDS),
    ("a noncharacter", "abc\uffff", _WORDS),
    ("a replacement character", "abc\ufffd", _WORDS),
    ("unassigned in Unicode 14.0", "abc\u0378", _WORDS),
    ("assigned after Unicode 14.0", "abc\U0001fae8", _WORDS),
    ("decomposed", "cafe\u0301", _WORDS),
    ("a singleton that NFC replaces", "10 \u212b", _WORDS),
    ("a leading space", " One.", _WORDS),
    ("a trailing space", "One. ", _WORDS),
    ("two spaces between words", "One.  Two.", _WORDS),
)

_FOLDED = (
    ("a clean paragraph", "The lamp burned low.", _WORDS),
    ("the first of two", "The lamp burned low.\n\nThe door opened.", _WORDS),
    ("hard-wrapped lines", "The lamp\nburned\r\nlow.", _WORDS),
    ("spaces of all kinds", "\u00a0 The\tlamp\u3000burned  low. ", _WORDS),
    ("invisible characters", "The la\u200bmp\u202e burned\u0000 low.\ufeff", _WORDS),
    ("decomposed", "The cafe\u0301 was closed.", _WORDS),
    ("an announcement", "Sure! Here is the next one:\n\nThe lamp burned low.", _WORDS),
    ("an inline lead-in", "Next paragraph: The lamp burned low.", _WORDS),
    ("a farewell", "The lamp burned low.\n\nLet me know what happens next!", _WORDS),
    ("a heading", "## Chapter 3\nThe lamp burned low.", _WORDS),
    ("a bold heading", "**Chapter 3**\n\nThe lamp burned low.", _WORDS),
    ("bold words", "The **lamp** burned low.", _WORDS),
    ("a code fence", "```text\nThe lamp burned low.\n```", _WORDS),
    ("bullets", "- The lamp burned low.\n- The door opened.", _WORDS),
    ("a numbered answer", "1. The lamp burned low.", _WORDS),
    ("a block quote", "> The lamp burned low.", _WORDS),
    ("enclosing quotes", '"The lamp burned low."', _WORDS),
    ("enclosing typographic quotes", "“The lamp burned low.”", _WORDS),
    ("dialogue keeps its quotes", "“Who is there?” she said. “Nobody.”", _WORDS),
    ("thoughts", "<think>A lamp?\n\nYes.</think>\n\nThe lamp burned low.", _WORDS),
    ("thoughts without end", "<think>A lamp? Or rather", _WORDS),
    ("a rule above", "---\nThe lamp burned low.", _WORDS),
    ("only a rule", "* * *", _WORDS),
    ("nothing", "", _WORDS),
    ("cut after a sentence", "The lamp burned low. It was out of oil and nobody came.", 8),
    ("cut in a sentence", "The lamp that burned low was out of oil, and nobody came.", 9),
    ("cut in bytes", "灯" * 2000, _WORDS),
    ("cut after a sentence in bytes", "灯が消えた。" * 400, _WORDS),
)


def cases() -> list[dict[str, object]]:
    """Compute every case from the rules as they stand."""
    checked: list[dict[str, object]] = [
        {"rule": "check", "name": name, "text": text, "max_words": words, "fault": _fault(text, words)}
        for name, text, words in _CHECKED
    ]
    folded: list[dict[str, object]] = [
        {"rule": "fold", "name": name, "text": text, "max_words": words, "folded": fold_paragraph(text, words)}
        for name, text, words in _FOLDED
    ]
    return checked + folded


def _fault(text: str, max_words: int) -> str | None:
    try:
        check_paragraph(text, max_words)
    except InvalidContent as error:
        return str(error.fault)
    return None
