"""The objective rules of a paragraph and the public folding rule (docs/protocol/content.md)."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import Fault, InvalidContent
from loremesh.protocol.content.characters import VISIBLE_RANGES
from loremesh.protocol.content.paragraph import (
    MAX_PARAGRAPH_BYTES,
    _check_in_full,
    check_paragraph,
    fold_paragraph,
)
from loremesh.testing.vectors import paragraph as vectors

WORDS = 140


def fault_of(text: str, max_words: int = WORDS) -> Fault | None:
    try:
        check_paragraph(text, max_words)
    except InvalidContent as error:
        return error.fault
    return None


def test_one_to_140_words_are_a_paragraph() -> None:
    assert fault_of("word") is None
    assert fault_of(" ".join(["word"] * 140)) is None


def test_0_and_141_words_are_not() -> None:
    assert fault_of("") is Fault.EMPTY_TEXT
    assert fault_of("  ") is Fault.EMPTY_TEXT
    assert fault_of(" ".join(["word"] * 141)) is Fault.TOO_MANY_WORDS
    assert fault_of(" ".join(["wörd"] * 141)) is Fault.TOO_MANY_WORDS


@pytest.mark.parametrize("mark", ["\n", "\n\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_a_line_break_makes_two(mark: str) -> None:
    assert fault_of(f"One.{mark}Two.") is Fault.NOT_ONE_PARAGRAPH
    assert fault_of(f"One.{mark}") is Fault.NOT_ONE_PARAGRAPH


@pytest.mark.parametrize("code", [0x00, 0x09, 0x1B, 0x7F, 0x9F, 0xA0, 0xAD, 0x3000, 0x3164, 0x2800])
@pytest.mark.parametrize("words", ["a{}b", "ä{}b"])
def test_control_characters_odd_spaces_and_blanks_are_forbidden(code: int, words: str) -> None:
    assert fault_of(words.format(chr(code))) is Fault.FORBIDDEN_CHARACTER


@pytest.mark.parametrize(
    "code", [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x61C, 0xFEFF]
)
def test_bidi_and_zero_width_characters_are_forbidden(code: int) -> None:
    assert fault_of(f"a{chr(code)}b") is Fault.FORBIDDEN_CHARACTER


@pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0xE000, 0xFFFD, 0xFFFE, 0x378, 0x1FAE8, 0xE0041, 0x10FFFF])
def test_surrogates_private_use_and_unassigned_are_forbidden(code: int) -> None:
    assert fault_of(f"a{chr(code)}b") is Fault.FORBIDDEN_CHARACTER


def test_the_text_is_in_nfc() -> None:
    assert fault_of("caf\u00e9") is None
    assert fault_of("cafe\u0301") is Fault.NOT_NFC


@pytest.mark.parametrize("text", [" One.", "One. ", "One.  Two.", " Öne.", "Öne.  Two."])
def test_one_text_has_one_spacing(text: str) -> None:
    assert fault_of(text) is Fault.NOT_CANONICAL


@pytest.mark.parametrize("character", ["x", "é", "灯", "🐉"])
def test_the_limit_is_4_kib_of_utf8(character: str) -> None:
    size = len(character.encode())
    fits = character * (MAX_PARAGRAPH_BYTES // size)
    assert fault_of(fits) is None
    assert fault_of(fits + character) is Fault.TOO_LARGE


@given(st.text(st.sampled_from("ab .\n\t\x00\x7fé\u0301\u200b\ud800"), max_size=12), st.integers(1, 3))
def test_the_short_cut_for_ascii_never_disagrees_with_the_rule(text: str, max_words: int) -> None:
    try:
        _check_in_full(text, max_words)
        expected = None
    except InvalidContent as error:
        expected = error.fault
    assert fault_of(text, max_words) is expected


def test_the_alphabet_is_assigned_and_stable_in_this_python() -> None:
    visible = {chr(code) for first, last in VISIBLE_RANGES for code in range(first, last + 1)}
    assert {unicodedata.category(character)[0] for character in visible} == set("LMNPS")
    assert all(set(unicodedata.normalize("NFC", character)) <= visible for character in visible)
    digits_and_letters = {chr(code) for code in range(0x2FF) if chr(code).isalnum()}
    assert digits_and_letters <= visible


texts = st.one_of(
    st.text(max_size=300),
    st.text(st.sampled_from('ab .,!?:\n"“”«»*_`#>-1)é\u0301\u200b\u202e\u00a0灯。<>/think'), max_size=80),
    st.lists(
        st.sampled_from(
            ["The lamp. ", "\n", "\n\n", "**", "“", "”", '"', "# ", "- ", "1. ", "```", "paragraph: ", "word ", ":",
             "<think>", "</think>", "é", "e\u0301", "\u200b", "___", "…"]
        ),
        max_size=30,
    ).map("".join),
)  # fmt: skip


@given(texts, st.integers(1, 12))
def test_what_is_folded_is_a_paragraph_and_folds_to_itself(text: str, max_words: int) -> None:
    folded = fold_paragraph(text, max_words)
    if folded is not None:
        check_paragraph(folded, max_words)
        assert fold_paragraph(folded, max_words) == folded


def test_the_vectors_show_every_fault_and_what_is_allowed() -> None:
    faults = {str(case["name"]): case["fault"] for case in vectors.cases() if case["rule"] == "check"}
    assert {name for name, fault in faults.items() if fault is None} == {
        "one word", "a sentence", "as many words as allowed", "typographic quotes", "other scripts", "an emoji",
        "as many bytes as allowed",
    }  # fmt: skip
    assert set(faults.values()) - {None} == {
        "no words", "too many words", "not exactly one paragraph", "forbidden character", "text not in NFC",
        "not canonical", "too large",
    }  # fmt: skip


def folded(name: str) -> object:
    return next(case["folded"] for case in vectors.cases() if case["rule"] == "fold" and case["name"] == name)


@pytest.mark.parametrize(
    "name",
    ["a clean paragraph", "the first of two", "hard-wrapped lines", "spaces of all kinds", "invisible characters",
     "an announcement", "an inline lead-in", "a farewell", "a heading", "a bold heading", "bold words", "a code fence",
     "a numbered answer", "a block quote", "enclosing quotes", "enclosing typographic quotes", "thoughts",
     "a rule above"],
)  # fmt: skip
def test_folding_keeps_the_paragraph_and_drops_what_is_round_it(name: str) -> None:
    assert folded(name) == "The lamp burned low."


def test_folding_keeps_dialogue_and_several_lines() -> None:
    assert folded("dialogue keeps its quotes") == "“Who is there?” she said. “Nobody.”"
    assert folded("bullets") == "The lamp burned low. The door opened."


@pytest.mark.parametrize("name", ["nothing", "only a rule", "thoughts without end"])
def test_folding_says_when_there_is_no_paragraph(name: str) -> None:
    assert folded(name) is None


def test_folding_cuts_after_a_sentence_or_with_an_ellipsis() -> None:
    assert folded("cut after a sentence") == "The lamp burned low."
    assert folded("cut in a sentence") == "The lamp that burned low was out of oil…"
    assert folded("cut in bytes") == "灯" * 1364 + "…"
    assert str(folded("cut after a sentence in bytes")).endswith("消えた。")


def test_folding_hostile_text_takes_no_long_time() -> None:
    for text in ("a" + "\u0301\u0316" * 500_000, "- 1. " * 200_000, "a:\n" * 300_000, "paragraph: " * 100_000):
        answer = fold_paragraph(text, WORDS)
        assert answer is None or len(answer) <= MAX_PARAGRAPH_BYTES
