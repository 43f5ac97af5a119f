"""The builtin backend: one request, one answer; a story that goes on, follows its premise and never repeats itself."""

import hashlib
import re
import struct
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.grammar.phrases import NAMES, PHRASES
from loremesh.backends.grammar.reading import names_in, noun_phrases, read_premise
from loremesh.backends.grammar.sentences import BEATS, OPENING_BEAT, SENTENCES, SPARE
from loremesh.backends.grammar.settings import COAST, SETTINGS, STARS, WILDS
from loremesh.backends.grammar.telling import Draws, cast_of, chapter_of, tell
from loremesh.backends.grammar.weaving import (
    AGAIN,
    ASKED,
    CLAIMED,
    MET,
    ORDERED,
    WRITTEN,
    pattern_for,
)
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import UsageError
from loremesh.primitives import Hash, Height, StoryId
from loremesh.protocol.content.paragraph import check_paragraph, fold_paragraph
from loremesh.testing.builders import paragraph_request

TITLE = "The Redrawn Coast"
PREMISE = "A lighthouse keeper finds a map that redraws itself every night."
SUGGESTIONS = ("a talking fox", "Let it rain!", "What if the map is alive?", "the king should return", "zzz")


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def request(height: int = 1, paragraphs: tuple[str, ...] = (), **changes: object) -> ParagraphRequest:
    own = {"story": StoryId(Hash(digest("story"))), "title": TITLE, "premise": PREMISE}
    now = {"height": Height(height), "paragraphs": paragraphs, "seed": digest(f"seed {height}")}
    return paragraph_request(**{**own, **now, **changes})


def story(length: int, **changes: object) -> tuple[str, ...]:
    paragraphs: tuple[str, ...] = ()
    for height in range(1, length + 1):
        paragraphs += (tell(request(height, paragraphs, **changes)),)
    return paragraphs


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?…”]) (?=[“A-Z])", paragraph)


@pytest.mark.parametrize("premise", [PREMISE, "", "On the ship Halcyon, Mirela wakes too early.", "Dragons. Dragons!"])
def test_200_paragraphs_all_different_and_no_sentence_twice_within_twelve(premise: str) -> None:
    paragraphs = story(200, premise=premise)
    assert len(set(paragraphs)) == 200
    for paragraph in paragraphs:
        check_paragraph(paragraph, 140)
        assert fold_paragraph(paragraph, 140) == paragraph
        assert 40 <= len(paragraph.split()) <= 110
    said = [sentences(paragraph) for paragraph in paragraphs]
    for number, own in enumerate(said):
        before = {sentence for paragraph in said[max(0, number - 12) : number] for sentence in paragraph}
        assert not before & {sentence for sentence in own if len(sentence.split()) > 3}
        assert len(own) == len(set(own))


def test_rivals_at_one_height_write_different_paragraphs_about_the_same_people() -> None:
    rivals = [tell(request(1, seed=digest(f"rival {number}"))) for number in range(50)]
    assert len(set(rivals)) == 50
    hero = cast_of(request().story, read_premise(TITLE, PREMISE)).hero
    assert all(hero in paragraph for paragraph in rivals)


def test_one_request_has_one_answer_on_every_machine() -> None:
    assert story(24) == story(24)
    # The only chance there is: SHA-256 of the key's parts, each behind its length, and a counter.
    key = hashlib.sha256(b"\0\0\0\x01a\0\0\0\x017").digest()
    block = hashlib.sha256(key + bytes(8)).digest()
    draws = Draws("a", 7)
    assert [draws.below(1 << 32) for _ in range(8)] == list(struct.unpack(">8I", block))


def test_a_paragraph_that_exists_is_not_told_again() -> None:
    first = tell(request(5))
    # The same words as an older paragraph, outside what is remembered: only the comparison with the canon finds it.
    again = tell(request(5, (first, *["Else."] * 20)))
    assert again != first


def test_the_first_paragraph_tells_the_premise_and_the_first_chapter_is_about_it() -> None:
    first, *rest = story(12)
    assert PREMISE[2:-1] in first
    assert sum("map" in paragraph for paragraph in rest) >= 5


def test_the_setting_follows_the_premise() -> None:
    assert read_premise(TITLE, PREMISE).setting is COAST
    assert read_premise("", "A robot wakes alone on a space station.").setting is STARS
    assert read_premise("", "The wolves come back to the valley.").setting is WILDS


def test_names_roles_places_and_things_are_read_out_of_the_premise() -> None:
    read = read_premise("Ash", "On the ship Halcyon, Mirela and her brother Tam find an old letter in the chapel.")
    assert read.names == ("Mirela", "Tam")
    assert read.places[0] == "Halcyon"
    assert "the chapel" in read.places
    assert read.roles == ("brother",)
    assert "old letter" in read.things


def test_articles_show_nouns_and_verbs_end_them() -> None:
    assert noun_phrases(PREMISE) == ("lighthouse keeper", "map", "night")
    assert noun_phrases("the drowned bell rings, a girl runs, 7 of 9") == ("drowned bell rings", "girl")


def test_a_story_told_by_others_keeps_their_people() -> None:
    canon = (
        "Down by the water old Severin waited, and Severin sang.",
        "At noon, Severin and Agata left with Agata’s dog.",
    )
    assert names_in(canon, frozenset()) == ("Severin", "Agata")
    later = [tell(request(height, canon, premise="", title="")) for height in range(3, 15)]
    assert sum("Severin" in paragraph for paragraph in later) >= 6


def test_a_newcomer_in_our_own_story_gets_a_part() -> None:
    canon = story(5)
    met = (*canon[:-1], canon[-1] + " That night, Ottilie came, and it was Ottilie who stayed.")
    assert "Ottilie" in tell(request(6, met))


@pytest.mark.parametrize(
    ("suggestion", "patterns", "text"),
    [
        ("a talking fox", MET, "a talking fox"),
        ("Add a dragon to the harbour.", MET, "a dragon to the harbour"),
        ("I would like to see more dragons", MET, "more dragons"),
        ("please, the ghost of the old king", MET, "the ghost of the old king"),
        ("let it rain!", ORDERED, "Let it rain"),
        ("Kill the king", ORDERED, "Kill the king"),
        ("the king should return", CLAIMED, "The king should return"),
        ("A fox juggles lamps", WRITTEN, "A fox juggles lamps"),
        ("what if the map is alive?", ASKED, "What if the map is alive"),
        ("ein sprechender Fuchs", WRITTEN, "Ein sprechender Fuchs"),
        ("say “hello” <b>now</b>", WRITTEN, "Say hello bnow/b"),
        ("see https://example.com/x now", WRITTEN, "See now"),
    ],
)
def test_a_suggestion_is_taken_up_in_a_form_that_suits_it(
    suggestion: str, patterns: tuple[str, ...], text: str
) -> None:
    assert pattern_for(suggestion) == (patterns, text)


@pytest.mark.parametrize("suggestion", ["", "  ", "!!!", "\u202e\u200b", "https://example.com", "“”"])
def test_a_suggestion_without_words_is_passed_over(suggestion: str) -> None:
    assert pattern_for(suggestion) is None
    check_paragraph(tell(request(4, suggestions=(suggestion,))), 140)


def test_up_to_three_suggestions_show_in_the_paragraph() -> None:
    for height in range(1, 25):
        paragraph = tell(request(height, suggestions=SUGGESTIONS)).lower()
        assert len(paragraph.split()) <= 110
        assert "a talking fox" in paragraph
        assert "let it rain" in paragraph
        assert "what if the map is alive" in paragraph
        assert "the king should return" not in paragraph


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(max_size=200), max_size=4),
    st.text(max_size=100),
    st.text(max_size=200),
    st.lists(st.text(max_size=100), max_size=3),
    st.integers(0, 40),
)
def test_whatever_strangers_write_a_paragraph_comes_out(
    suggestions: list[str], title: str, premise: str, canon: list[str], height: int
) -> None:
    told = tell(request(height, tuple(canon), suggestions=tuple(suggestions), title=title, premise=premise))
    assert fold_paragraph(told, 140) is not None


async def test_the_draft_is_folded_named_and_digested() -> None:
    writer = BuiltinBackend()
    draft = await writer.write(request(3, ("Before.",), max_words=12))
    check_paragraph(draft.text, 12)
    assert draft.model == writer.model == "builtin"
    assert draft.output_digest == digest(draft.text)
    other = await writer.write(request(3, ("Else.",), max_words=12))
    assert other.prompt_digest != draft.prompt_digest
    await writer.aclose()


async def test_latency_is_simulated_within_its_range_and_repeatably(autojump_clock: trio.testing.MockClock) -> None:
    writer = BuiltinBackend((0.1, 5.0))
    taken: list[float] = []
    for height in (1, 2, 3, 1):
        before = trio.current_time()
        await writer.write(request(height))
        taken.append(round(trio.current_time() - before, 6))
    assert all(0.1 <= seconds <= 5.0 for seconds in taken)
    assert len(set(taken[:3])) == 3
    assert taken[0] == pytest.approx(taken[3], abs=1e-5)


async def test_without_latency_no_time_passes(autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    await BuiltinBackend().write(request())
    assert trio.current_time() == before


@pytest.mark.parametrize("latency", [(-1, 1), (2, 1), (0, 5.1), (float("nan"), 1)])
def test_a_latency_outside_0_to_5_seconds_is_a_usage_error(latency: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="latency"):
        BuiltinBackend(latency)


def test_draws_spread_evenly() -> None:
    draws = Draws(b"key", 7)
    counts = [0] * 10
    for _ in range(10_000):
        counts[draws.below(10)] += 1
    assert all(850 < count < 1150 for count in counts)
    assert [Draws("a", "bc").below(1 << 30)] != [Draws("ab", "c").below(1 << 30)]


def test_chapters_change_place_thing_danger_and_company() -> None:
    premise = read_premise(TITLE, PREMISE)
    chapters = [chapter_of(request().story, premise, number) for number in range(20)]
    for one, next_one in pairwise(chapters):
        assert one.place != next_one.place
        assert one.thing != next_one.thing
        assert one.hazard != next_one.hazard
        assert one.person != next_one.person


def test_every_slot_of_every_sentence_can_be_filled() -> None:
    known = {
        "hero", "ally", "rival", "guest", "he", "him", "his", "place", "next_place", "old_place", "thing", "a_thing",
        "old_thing", "hazard", "person", "motif", "role", "premise", "title", "sight", "sound", "sound2", "smell",
        "gesture2", "text", *PHRASES,
    }  # fmt: skip
    templates = [template for choices in SENTENCES.values() for template in choices]
    templates += [*MET, *ORDERED, *CLAIMED, *ASKED, *WRITTEN, *AGAIN]
    assert {slot for template in templates for slot in re.findall(r"\{(.*?)\}", template)} <= known
    for template in templates:
        assert template[-1] in ".!?”"
        assert template.count("“") == template.count("”")
    used = {slot for beat in BEATS for way in beat for slot in way} | set(OPENING_BEAT) | set(SPARE)
    assert used <= set(SENTENCES)
    assert len({len(template) for template in templates}) > 50
    assert len(set(templates)) == len(templates)


def test_the_vocabulary_is_wide_and_without_repeats() -> None:
    lists = [list(NAMES), *map(list, PHRASES.values())]
    for setting in SETTINGS:
        lists += map(
            list,
            (
                setting.places,
                setting.things,
                setting.hazards,
                setting.people,
                setting.sights,
                setting.sounds,
                setting.smells,
            ),
        )
    assert all(len(set(words)) == len(words) for words in lists)
    assert sum(map(len, lists)) + sum(map(len, SENTENCES.values())) > 600
