"""The state is a fold: what a block does to nonces, suggestions and authors, and nothing else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.errors import Fault, InvalidContent, InvalidTransaction
from loremesh.primitives import Hash, Height
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.merkle import MerkleMap
from loremesh.protocol.production import paragraph
from loremesh.protocol.state import (
    MAX_OPEN_SUGGESTIONS,
    MAX_SUPPORTERS,
    State,
    Suggestion,
    _Nonce,
    with_nonce,
    with_suggestion,
)
from loremesh.protocol.state_transition import apply, apply_transaction
from loremesh.protocol.transaction import Transaction, suggestion_id
from loremesh.testing.builders import ANN, BOB, CAT, DAN, identity, small_genesis, suggestion

GENESIS = small_genesis()
STORY = story_id(GENESIS)
PEOPLE = (ANN, BOB, CAT, DAN)
WISHES = ("Rain.", "Snow.", "A storm.")


def after(
    state: State,
    producer: Identity,
    *transactions: Transaction,
    height: int = 1,
    cited: tuple[Hash, ...] = (),
) -> State:
    return apply(
        state,
        story=STORY,
        height=Height(height),
        producer=producer.peer_id,
        content=paragraph(producer.peer_id, "Night.", "builtin", Hash(bytes(32)), cited),
        transactions=transactions,
    )


def root_of(state: State) -> bytes:
    """Compute the root again from what the typed maps say."""
    tree = MerkleMap()
    for sender, nonce in state.nonces.items():
        tree = tree.put(b"nonce/" + sender, encode(_Nonce(nonce)))
    for name, entry in state.suggestions.items():
        tree = tree.put(b"suggestion/" + name, encode(entry))
    for author, record in state.authors.items():
        tree = tree.put(b"author/" + author, encode(record))
    return tree.root


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_root_says_what_the_maps_say_after_any_blocks(chance: random.Random) -> None:
    state = State()
    for height in range(1, 12):
        senders = chance.sample(PEOPLE, chance.randrange(3))
        transactions = []
        for sender in senders:
            wish = suggestion(sender, GENESIS, chance.choice(WISHES), state.nonce(sender.peer_id))
            try:
                apply_transaction(state, STORY, Height(height), wish)
            except InvalidTransaction:
                continue
            transactions.append(wish)
        cited = tuple(name for name in sorted(state.suggestions) if chance.random() < 0.3)
        state = after(state, chance.choice(PEOPLE), *transactions, height=height, cited=cited)
        assert state.root == root_of(state)
    assert sum(author.paragraphs for author in state.authors.values()) == 11


def test_a_fold_leaves_the_state_before_it_alone() -> None:
    before = after(State(), ANN, suggestion(BOB, GENESIS, "Rain."))
    root, nonces = before.root, dict(before.nonces.items())
    after(before, CAT, suggestion(BOB, GENESIS, "Snow.", 1))
    assert before.root == root
    assert dict(before.nonces.items()) == nonces


def test_a_suggestion_opens_gathers_support_and_is_taken_up_once() -> None:
    rain = suggestion_id(STORY, "Rain.")
    state = after(State(), ANN, suggestion(BOB, GENESIS, "Rain."), height=4)
    assert state.suggestions[rain] == Suggestion("Rain.", Height(4), (BOB.peer_id,))
    state = after(state, CAT, suggestion(DAN, GENESIS, "Rain."), height=5)
    assert state.suggestions[rain] == Suggestion("Rain.", Height(4), (BOB.peer_id, DAN.peer_id))
    state = after(state, ANN, cited=(rain,))
    assert rain not in state.suggestions
    with pytest.raises(InvalidContent) as refusal:
        after(state, BOB, cited=(rain,))
    assert refusal.value.fault is Fault.UNKNOWN_SUGGESTION


def test_a_block_may_take_up_a_suggestion_that_it_carries_itself() -> None:
    rain = suggestion_id(STORY, "Rain.")
    assert rain not in after(State(), ANN, suggestion(BOB, GENESIS, "Rain."), cited=(rain,)).suggestions


def test_an_author_has_a_paragraph_more_with_each_block() -> None:
    state = after(after(after(State(), ANN, height=1), BOB, height=2), ANN, height=3)
    assert (state.authors[ANN.peer_id].paragraphs, state.authors[ANN.peer_id].last_height) == (2, 3)
    assert (state.authors[BOB.peer_id].paragraphs, state.authors[BOB.peer_id].last_height) == (1, 2)


@pytest.mark.parametrize(("nonce", "fault"), [(0, Fault.WRONG_NONCE), (1, None), (2, Fault.WRONG_NONCE)])
def test_nonces_go_up_by_one(nonce: int, fault: Fault | None) -> None:
    state = with_nonce(State(), BOB.peer_id, 1)
    wish = suggestion(BOB, GENESIS, "Rain.", nonce)
    if fault is None:
        assert after(state, ANN, wish).nonce(BOB.peer_id) == 2
        return
    with pytest.raises(InvalidTransaction) as refusal:
        after(state, ANN, wish)
    assert refusal.value.fault is fault


def test_one_senders_support_counts_once() -> None:
    state = after(State(), ANN, suggestion(BOB, GENESIS, "Rain."))
    with pytest.raises(InvalidTransaction) as refusal:
        after(state, ANN, suggestion(BOB, GENESIS, "Rain.", 1))
    assert refusal.value.fault is Fault.DUPLICATE


def test_a_suggestion_has_at_most_64_supporters() -> None:
    state = State()
    for number in range(MAX_SUPPORTERS):
        state = after(state, ANN, suggestion(identity(f"reader {number}"), GENESIS, "Rain."))
    with pytest.raises(InvalidTransaction) as refusal:
        after(state, ANN, suggestion(BOB, GENESIS, "Rain."))
    assert refusal.value.fault is Fault.QUOTA
    assert encode(state.suggestions[suggestion_id(STORY, "Rain.")])


def test_the_thousand_and_first_suggestion_closes_the_oldest_of_the_least_wanted() -> None:
    state = State()
    for number in range(MAX_OPEN_SUGGESTIONS):
        supporters = (ANN.peer_id, BOB.peer_id) if number < 5 else (ANN.peer_id,)
        entry = Suggestion(f"Wish {number}.", Height(100 - number if number < 50 else number), supporters)
        state = with_suggestion(state, suggestion_id(STORY, entry.text), entry)
    state = after(state, ANN, suggestion(BOB, GENESIS, "Rain."))
    assert len(state.suggestions) == MAX_OPEN_SUGGESTIONS
    assert suggestion_id(STORY, "Rain.") in state.suggestions
    # Of those with one supporter, numbers 49 and 50 were opened lowest: 49 at height 51, 50 at height 50.
    assert suggestion_id(STORY, "Wish 50.") not in state.suggestions
    assert suggestion_id(STORY, "Wish 49.") in state.suggestions
    assert state.root == root_of(state)
