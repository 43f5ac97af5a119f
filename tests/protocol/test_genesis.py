"""A genesis: a file for people, one encoding, one story; and a wrong file says which key is wrong."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.errors import InvalidGenesis, InvalidMessage
from loremesh.primitives import Hash, Millis
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import (
    Genesis,
    Parameters,
    Rules,
    Validator,
    genesis_from_bytes,
    genesis_from_toml,
    genesis_to_toml,
    story_id,
)
from loremesh.protocol.identity import peer_id_text
from loremesh.testing.builders import ANN, BOB, CAT, DAN, START, small_genesis

PEOPLE = [made.peer_id for made in (ANN, BOB, CAT, DAN)]
HEAD = 'title = "Lanterns"\npremise = "A keeper finds a map."\ntime = 1700000000000\n'
SECTION = HEAD + "[parameters]\n"
WORDS = st.text(st.sampled_from("abc\"\\#é灯🐉'="), min_size=1, max_size=8)
LINES = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)
SPANS = st.integers(1, 24 * 3600 * 1000)


@st.composite
def genesises(draw: st.DrawFn) -> Genesis:
    people = draw(st.lists(st.sampled_from(PEOPLE), unique=True, max_size=4))
    spacing, work = draw(SPANS), draw(st.integers(1, 2**64 - 1))
    return Genesis(
        title=draw(LINES),
        premise=draw(LINES),
        language=draw(st.sampled_from(["en", "de-CH", "zh-Hant"])),
        time=Millis(draw(st.integers(0, 2**63 - 1))),
        validators=tuple(Validator(peer, draw(st.just("") | WORDS)) for peer in people),
        tracker=tuple(people[:1]) if draw(st.booleans()) else (),
        rules=Rules(
            draw(st.integers(1, 140)),
            draw(st.integers(1, 30)),
            draw(st.integers(8192, 2**18)),
            draw(st.integers(0, 256)),
        ),
        parameters=Parameters(
            spacing=Millis(spacing),
            min_spacing=Millis(draw(st.integers(0, spacing))),
            max_ahead=Millis(draw(SPANS)),
            half_life=Millis(draw(SPANS)),
            initial_work=work,
            easiest_work=draw(st.integers(1, work)),
            solo_after=Millis(draw(SPANS)),
        ),
    )


@settings(max_examples=200, deadline=None)
@given(genesises())
def test_a_file_and_its_bytes_begin_the_same_story(genesis: Genesis) -> None:
    assert genesis_from_toml(genesis_to_toml(genesis)) == genesis
    assert genesis_from_bytes(encode(genesis), story_id(genesis)) == genesis


def test_every_field_changes_the_story() -> None:
    genesis = small_genesis(tracker=ANN)
    others = [
        replace(genesis, title="Lanterns II"),
        replace(genesis, premise="Another."),
        replace(genesis, language="de"),
        replace(genesis, time=Millis(START + 1)),
        replace(genesis, validators=(Validator(BOB.peer_id),)),
        replace(genesis, tracker=()),
        replace(genesis, rules=Rules(words=139)),
        replace(genesis, parameters=replace(genesis.parameters, solo_after=Millis(1))),
    ]
    assert len({story_id(other) for other in [genesis, *others]}) == len(others) + 1


def test_what_a_file_leaves_out_has_the_documented_default() -> None:
    genesis = genesis_from_toml(HEAD)
    assert genesis.language == "en"
    assert genesis.validators == ()
    assert genesis.tracker == ()
    assert genesis.rules == Rules(words=140, context=30, block_bytes=64 * 1024, transactions=64)
    assert genesis.parameters == Parameters(
        spacing=Millis(3000),
        min_spacing=Millis(1000),
        max_ahead=Millis(500),
        half_life=Millis(60_000),
        initial_work=2**20,
        easiest_work=2**14,
        solo_after=Millis(9000),
    )


def test_solo_after_is_three_spacings_unless_said_otherwise() -> None:
    assert genesis_from_toml(SECTION + "spacing = 30000\n").parameters.solo_after == 90_000
    assert genesis_from_toml(SECTION + "spacing = 30000\nsolo_after = 5\n").parameters.solo_after == 5


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("title = Lanterns", "not TOML"),
        ("x = " + "[" * 20_000, "not TOML"),
        ("time = " + "9" * 5000, "not TOML"),
        (HEAD.replace("title", "tittle"), "unknown key 'tittle'; known are .*title"),
        (HEAD.replace('title = "Lanterns"\n', ""), "'title' is missing"),
        (HEAD.replace('premise = "A keeper finds a map."\n', ""), "'premise' is missing"),
        (HEAD.replace("time = 1700000000000\n", ""), "'time' is missing"),
        (HEAD.replace('"Lanterns"', "7"), "'title' is not of type str"),
        (HEAD.replace("1700000000000", "1.5"), "'time' is not of type int"),
        (HEAD.replace("1700000000000", "true"), "'time' is not of type int"),
        (HEAD.replace("1700000000000", "-1"), "time is not in 0"),
        (HEAD.replace("1700000000000", str(2**64)), "genesis: "),
        (HEAD.replace("Lanterns", ""), "no words"),
        (HEAD.replace("Lanterns", "x" * 201), "title has more than 200 bytes"),
        (HEAD.replace("Lanterns", "Lan\\u001bterns"), "forbidden character"),
        (HEAD.replace("Lanterns", "cafe\\u0301"), "NFC"),
        (HEAD.replace("Lanterns", "a\\nb"), "not exactly one paragraph"),
        (HEAD + 'language = ""\n', "no words"),
        (HEAD + 'language = "plain English"\n', "too many words"),
        (HEAD + 'language = "en\\u007f"\n', "forbidden character"),
        (HEAD + "rules = 3\n", "'rules' is not of type dict"),
        (HEAD + "[rules]\nparagraphs = 2\n", "rules: unknown key 'paragraphs'; known are .*words"),
        (HEAD + '[rules]\nwords = "140"\n', "'words' is not of type int"),
        (HEAD + "[rules]\nwords = 0\n", r"Rules.words is not in 1\.\.140"),
        (HEAD + "[rules]\nwords = 141\n", r"Rules.words is not in 1\.\.140"),
        (HEAD + "[rules]\ncontext = 31\n", r"Rules.context is not in 1\.\.30"),
        (HEAD + "[rules]\nblock_bytes = 8191\n", r"Rules.block_bytes is not in 8192\.\.262144"),
        (HEAD + "[rules]\ntransactions = 257\n", r"Rules.transactions is not in 0\.\.256"),
        (SECTION + "pace = 2\n", "parameters: unknown key 'pace'; known are .*spacing"),
        (SECTION + "spacing = 0\n", r"Parameters.spacing is not in 1\.\."),
        (SECTION + "spacing = 3.0\n", "'spacing' is not of type int"),
        (SECTION + "half_life = 0\n", r"Parameters.half_life is not in 1\.\."),
        (SECTION + "max_ahead = -1\n", r"Parameters.max_ahead is not in 0\.\."),
        (SECTION + "initial_work = 0\n", r"Parameters.initial_work is not in 1\.\."),
        (SECTION + "spacing = 999\n", "min_spacing may not exceed spacing"),
        (SECTION + "initial_work = 16383\n", "easiest_work may not exceed initial_work"),
        (HEAD + 'tracker = "ann"\n', "tracker: bad key"),
        (HEAD + "tracker = 7\n", "'tracker' is not of type str"),
        (HEAD + "validators = 7\n", "'validators' is not of type list"),
        (HEAD + "validators = [7]\n", "each of 'validators' is a table with a peer_id"),
        (HEAD + "[[validators]]\n", "'peer_id' is missing"),
        (HEAD + '[[validators]]\npeer_id = "x"\n', "validators.peer_id: bad key"),
        (
            HEAD + f'[[validators]]\npeer_id = "{peer_id_text(PEOPLE[0])}"\nmood = ""\n',
            "validators: unknown key 'mood'",
        ),
        (HEAD + f'[[validators]]\npeer_id = "{peer_id_text(PEOPLE[0])}"\n' * 2, "a validator is named twice"),
        (
            HEAD + f'[[validators]]\npeer_id = "{peer_id_text(PEOPLE[0])}"\npersonality = "a\\tb"\n',
            "forbidden character",
        ),
    ],
)
def test_a_wrong_file_says_what_is_wrong(toml: str, said: str) -> None:
    with pytest.raises(InvalidGenesis, match=said) as refusal:
        genesis_from_toml(toml)
    assert "\n" not in str(refusal.value)


def test_a_genesis_of_another_story_is_not_taken() -> None:
    genesis = small_genesis()
    with pytest.raises(InvalidGenesis, match="not " + "00" * 32):
        genesis_from_bytes(encode(genesis), Hash(bytes(32)))


def test_bytes_that_contradict_themselves_are_no_genesis() -> None:
    genesis = small_genesis()
    wrong = [
        replace(genesis, parameters=Parameters(spacing=Millis(10))),
        replace(genesis, parameters=Parameters(initial_work=1)),
        replace(genesis, title="two\nlines"),
        replace(genesis, validators=(Validator(ANN.peer_id), Validator(ANN.peer_id, "calm"))),
        replace(genesis, tracker=(type(ANN.peer_id)(bytes(39)),)),
    ]
    for other in wrong:
        with pytest.raises(InvalidGenesis):
            genesis_from_bytes(encode(other))
    with pytest.raises(InvalidMessage):
        genesis_from_bytes(encode(genesis)[:-1])
