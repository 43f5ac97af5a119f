"""The builtin backend as a chat: the same request has the same answer, within its limits, and another carries it on."""

import json
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.chat import ChatEnd, ChatRequest
from loremesh.backends.grammar.answering import compose
from loremesh.backends.grammar.telling import tell
from loremesh.backends.prompt import build_messages, read_prompt
from loremesh.backends.tokens import load_counter
from loremesh.errors import BackendRefused
from loremesh.primitives import Height
from loremesh.protocol.content.paragraph import check_paragraph, fold_paragraph
from loremesh.protocol.llm import ChatMessage
from loremesh.testing.builders import paragraph_request

QUESTION = "Write a story about a lighthouse keeper named Mara who finds a map."
JSON = {"type": "json_object"}
THIRD = paragraph_request(
    premise="A keeper named Mara finds a map.",
    height=Height(3),
    paragraphs=("One.", "Two."),
    suggestions=("a talking fox", "rain"),
)


def request(asked: str = QUESTION, begun: str | None = None, **changes: Any) -> ChatRequest:
    messages = [ChatMessage("system", "Be kind."), ChatMessage("user", asked)]
    if begun is not None:
        messages.append(ChatMessage("assistant", begun))
    made = {"model": "builtin", "messages": tuple(messages), "continues": begun is not None, "max_tokens": 4096}
    return ChatRequest(**{**made, **changes})


def answer(asked: ChatRequest, seed: int = 0) -> str:
    return "".join(compose(asked, seed).words)


async def ask(backend: BuiltinBackend, asked: ChatRequest) -> tuple[list[str], ChatEnd]:
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        pieces.append(piece)

    return pieces, await backend.chat(asked, deliver)


async def test_an_answer_comes_word_by_word_and_its_own_tokens_are_words() -> None:
    pieces, end = await ask(BuiltinBackend(), request())
    assert "".join(pieces) == answer(request())
    assert len(pieces) == len(answer(request()).split())
    assert end.finish == "stop"
    assert end.usage is not None
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (15, len(pieces))


def test_it_is_about_what_the_last_user_says() -> None:
    told = answer(request())
    assert told.count("Mara") > 2
    assert "lighthouse keeper" in told
    assert "Write a story" not in told


def test_one_request_has_one_answer_and_each_seed_its_own() -> None:
    assert answer(request()) == answer(request())
    assert answer(request(), seed=1) != answer(request())
    assert answer(request(seed=1)) != answer(request(seed=2)) != answer(request())
    assert answer(request("Tell me about a fox.")) != answer(request())


def test_it_says_new_things_when_the_conversation_goes_on() -> None:
    first = answer(request())
    messages = (*request().messages, ChatMessage("assistant", first), ChatMessage("user", "And then?"))
    second = answer(request(messages=messages))
    assert not set(first.split(". ")) & set(second.split(". "))


@settings(deadline=None)
@given(cut=st.integers(0, 5000), seed=st.integers(0, 3))
def test_its_own_answer_is_carried_on_to_the_byte_wherever_it_was_cut(cut: int, seed: int) -> None:
    whole = answer(request(), seed)
    begun = whole[:cut]
    assert begun + answer(request(begun=begun), seed) == whole


@settings(deadline=None)
@given(cut=st.integers(1, 5000))
def test_another_carries_it_on_in_words_of_its_own_about_the_same_people(cut: int) -> None:
    whole = answer(request())
    begun = whole[:cut]
    added = answer(request(begun=begun), seed=1)
    assert not whole.endswith(added)
    assert "Mara" in added
    assert (begun[-1].isspace()) != added[0].isspace()  # one blank between them
    assert added[-1] in ".!?”"
    if begun.rstrip()[-1] in ".!?”":
        assert added.lstrip()[0] not in "—a"  # no sentence was left to bring to an end


@settings(max_examples=300, deadline=None)  # the vocabulary is loaded by the first
@given(
    asked=st.text(max_size=200) | st.sampled_from([QUESTION, "漢字 Ωmega", "x" * 500, "ünïcode ﷽" * 20]),
    most=st.integers(1, 300),
    seed=st.integers(0, 99),
    begun=st.none() | st.text(max_size=80),
)
def test_no_answer_has_more_tokens_than_were_asked_for(asked: str, most: int, seed: int, begun: str | None) -> None:
    count = load_counter()
    composed = compose(request(asked, begun, max_tokens=most), seed)
    text = "".join(composed.words)
    assert count(text) <= most
    assert composed.finish == ("stop" if text == answer(request(asked, begun), seed) else "length")


@pytest.mark.parametrize("begun", [None, "At dusk, Mara"])
def test_it_ends_before_a_stop_word(begun: str | None) -> None:
    whole = answer(request(begun=begun))
    for words in (("Mara",), (" the ", "Mara"), ("nowhere in it",)):
        ends = [whole.find(word) for word in words if word in whole]
        assert answer(request(begun=begun, stop=words)) == whole[: min(ends, default=len(whole))].rstrip()


def test_a_json_object_is_one_also_when_another_carries_it_on() -> None:
    whole = answer(request(response_format=JSON))
    assert json.loads(whole)["answer"].count("Mara") > 2
    for cut in range(1, len(whole)):
        begun = whole[:cut]
        both = begun + answer(request(begun=begun, response_format=JSON), seed=1)
        assert isinstance(json.loads(both), dict), both


async def test_a_json_schema_is_refused_for_the_grammar_knows_none() -> None:
    with pytest.raises(BackendRefused, match="not as 'json_schema'"):
        await ask(BuiltinBackend(), request(response_format={"type": "json_schema"}))
    assert (await ask(BuiltinBackend(), request(response_format={"type": "text"})))[1].finish == "stop"


async def test_it_looks_as_slow_as_it_is_told_to_and_can_be_stopped_in_the_middle(
    autojump_clock: MockClock,
) -> None:
    before = trio.current_time()
    await ask(BuiltinBackend((2, 2)), request())
    assert trio.current_time() - before == pytest.approx(2)
    pieces = list[str]()

    async def deliver(piece: str) -> None:
        pieces.append(piece)

    with trio.move_on_after(1) as scope:
        await BuiltinBackend((2, 2)).chat(request(), deliver)
    assert scope.cancelled_caught
    assert 0 < len(pieces) < len(answer(request()).split())


def test_a_prompt_for_a_paragraph_is_answered_with_that_paragraph() -> None:
    messages = build_messages(THIRD, 4096, "0123456789abcdef")
    told = answer(request(messages=messages))
    check_paragraph(told, 140)
    assert fold_paragraph(told, 140) == told
    assert "Mara" in told
    assert "talking fox" in told
    assert "0123456789abcdef" not in told


def test_a_prompt_can_be_read_back_and_no_other_text_is_taken_for_one() -> None:
    (_, user) = build_messages(THIRD, 4096, "0123456789abcdef")
    parts = read_prompt(user.content)
    assert parts is not None
    assert (parts.title, parts.premise) == ("The Lamp", "A keeper named Mara finds a map.")
    assert (parts.paragraphs, parts.suggestions) == (("One.", "Two."), ("a talking fox", "rain"))
    assert parts.height == 3
    assert tell(THIRD)
    assert read_prompt(QUESTION) is None


@settings(deadline=None)
@given(st.text(max_size=300).map(lambda rest: f"0123456789abcdef title and premise\n{rest}"))
def test_whatever_begins_like_a_prompt_is_answered(text: str) -> None:
    assert answer(request(text))
