"""Whom to ask: the order of executors, and what a wrong one costs."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.primitives import Millis, PeerId
from loremesh.protocol.cards import CARD_LIFE, CapabilityCard, ModelOffer
from loremesh.services.routing import (
    FIRST_REST,
    LONGEST_REST,
    Track,
    Wish,
    lower_bound,
    on_busy,
    on_failure,
    on_fault,
    on_success,
    rank,
)
from loremesh.testing.builders import ANN, BOB, CAT, START, identity

WISH = Wish("small-model", 1000)
LEVEL = [0.5] * 100
"""Prefers nobody."""


def card(
    peer: PeerId, *, price: int = 250, running: int = 0, slots: int = 4, model: str = WISH.model
) -> CapabilityCard:
    return CapabilityCard(peer, (), (ModelOffer(model, 8192, price),), running, slots, START, Millis(START + CARD_LIFE))


def tried(successes: int, failures: int = 0, first: float = 1.0, rate: float | None = 1000.0) -> Track:
    track = Track()
    for _ in range(failures):
        track = on_failure(track, -1e9, "lost")
    for _ in range(successes):
        track = on_success(track, first, rate)
    return track


def first_of(*cards: CapabilityCard, tracks: dict[PeerId, Track] | None = None, now: float = 0) -> PeerId:
    return rank(cards, tracks or {}, WISH, now, LEVEL[: len(cards) + 1])[0].executor


# ---- What makes one better than another -----------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(0, 500))
def test_the_lower_bound_is_below_what_was_seen_and_rises_with_success(successes: int, failures: int) -> None:
    bound = lower_bound(successes, failures)
    assert 0 <= bound <= (successes / (successes + failures) if successes + failures else 0) + 1e-12
    assert bound <= lower_bound(successes + 1, failures) + 1e-12
    assert lower_bound(successes, failures + 1) <= bound + 1e-12


def test_the_lower_bound_is_wilsons() -> None:
    assert lower_bound(0, 0) == 0
    assert lower_bound(1, 0) == pytest.approx(0.5)
    assert lower_bound(9, 1) == pytest.approx((0.95 - math.sqrt(0.9 * 0.1 / 10 + 1 / 400)) / 1.1)


def test_of_two_that_always_answer_the_one_with_more_calls_is_surer() -> None:
    tracks = {BOB.peer_id: tried(3), CAT.peer_id: tried(30)}
    assert first_of(card(BOB.peer_id), card(CAT.peer_id), tracks=tracks) == CAT.peer_id


def test_the_quicker_the_cheaper_and_the_freer_is_asked_first() -> None:
    one, other = BOB.peer_id, CAT.peer_id
    assert first_of(card(one, price=500), card(other, price=250)) == other
    assert first_of(card(one, running=3), card(other)) == other
    same = {one: tried(10, first=3.0), other: tried(10, first=0.2)}
    assert first_of(card(one), card(other), tracks=same) == other
    same = {one: tried(10, rate=50.0), other: tried(10, rate=5000.0)}
    assert first_of(card(one), card(other), tracks=same) == other


def test_the_newest_calls_count_most_of_how_quick_one_is() -> None:
    slow = tried(20, first=5.0)
    for _ in range(20):
        slow = on_success(slow, 0.1, 1000.0)
    assert slow.first is not None
    assert slow.first < 0.2


def test_an_executor_that_was_mended_is_found_out() -> None:
    track = tried(0, failures=300)
    for _ in range(300):
        track = on_success(track, 1.0, None)
    assert lower_bound(track.successes, track.failures) > 0.7


def test_strangers_take_their_turns_by_lot_and_now_and_then_before_those_who_are_known() -> None:
    cards = [card(identity(f"executor {number}").peer_id) for number in range(4)]
    chance = random.Random(1)

    def firsts(tracks: dict[PeerId, Track]) -> list[PeerId]:
        return [rank(cards, tracks, WISH, 0, [chance.random() for _ in range(5)])[0].executor for _ in range(1000)]

    assert all(200 < firsts({}).count(one.peer_id) < 300 for one in cards)
    known = firsts({cards[0].peer_id: tried(50)})
    assert 50 < sum(executor != cards[0].peer_id for executor in known) < 150


# ---- Rest -----------------------------------------------------------------------------------------------------------


def test_each_failure_in_a_row_doubles_the_rest_until_a_call_goes_well() -> None:
    track, rests = Track(), []
    for _ in range(12):
        track = on_failure(track, 100.0, "lost")
        rests.append(track.rests_until - 100)
    assert rests == [min(FIRST_REST * 2**n, LONGEST_REST) for n in range(12)]
    assert on_success(track, 1.0, None).rests_until == 0
    assert on_failure(on_success(track, 1.0, None), 0, "lost").rests_until == FIRST_REST


def test_who_rests_is_asked_only_if_nobody_else_can_be() -> None:
    tracks = {BOB.peer_id: on_failure(tried(100), 0, "lost")}
    cards = card(BOB.peer_id), card(CAT.peer_id, price=900, running=3)
    choices = rank(cards, tracks, WISH, 0.5, LEVEL[:3])
    assert [choice.executor for choice in choices] == [CAT.peer_id, BOB.peer_id]
    assert "rests for 0.5 s more: lost" in choices[1].why
    assert first_of(*cards, tracks=tracks, now=FIRST_REST) == BOB.peer_id
    assert first_of(cards[0], tracks=tracks) == BOB.peer_id


def test_a_lie_weighs_more_than_a_failure() -> None:
    failed, lied = on_failure(tried(20), 0, "lost"), on_fault(tried(20), 0, "wrong receipt")
    assert lied.rests_until > failed.rests_until
    assert lower_bound(lied.successes, lied.failures) < lower_bound(failed.successes, failed.failures)


def test_who_asks_us_to_wait_is_not_asked_before_and_loses_nothing() -> None:
    track = on_busy(tried(5), 10.0, 3.0)
    (choice,) = rank((card(BOB.peer_id),), {BOB.peer_id: track}, WISH, 11.0, LEVEL[:2])
    assert (choice.score, choice.busy) == (0, 2.0)
    assert track.failures == 0
    (choice,) = rank((card(BOB.peer_id),), {BOB.peer_id: track}, WISH, 13.0, LEVEL[:2])
    assert choice.score > 0
    assert on_busy(track, 10.0, 1e12).busy_until == 10.0 + LONGEST_REST


# ---- Explanations ---------------------------------------------------------------------------------------------------


def test_every_executor_is_named_with_why_it_is_asked_or_not() -> None:
    cards = (
        card(ANN.peer_id),
        card(BOB.peer_id, price=2000),
        card(CAT.peer_id, model="other-model"),
        replace(card(identity("eve").peer_id), slots=0),
        card(identity("fay").peer_id),
    )
    tracks = {ANN.peer_id: tried(12, 1), cards[4].peer_id: on_busy(Track(), 0, 9)}
    lines = [str(choice) for choice in rank(cards, tracks, WISH, 0, LEVEL[:6])]
    assert len(lines) == 5
    asked, too_dear, other, closed, busy = lines
    assert "12 of 13 calls went well, first piece after 1.00 s, 1000 bytes/s, 250 gwei" in asked
    assert "score 0." in asked
    assert "not asked: asks 2000 gwei per 1,000 tokens, above 1000" in too_dear
    assert "not asked: does not serve small-model" in other
    assert "not asked: takes no calls" in closed
    assert "not asked: busy for 9.0 s more" in busy


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2000),
            st.integers(0, 5),
            st.integers(0, 5),
            st.integers(0, 30),
            st.integers(0, 30),
            st.floats(0, 1),
        ),
        max_size=12,
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_everybody_is_in_the_order_once_whatever_is_known(
    facts: list[tuple[int, int, int, int, int, float]], draw: float
) -> None:
    cards, tracks = [], {}
    for number, (price, running, slots, successes, failures, first) in enumerate(facts):
        peer = identity(f"executor {number}").peer_id
        cards.append(card(peer, price=price, running=running, slots=slots))
        tracks[peer] = tried(successes, failures, first=first)
    choices = rank(cards, tracks, WISH, 0, [draw] * (len(cards) + 1))
    assert sorted(choice.executor for choice in choices) == sorted(one.peer_id for one in cards)
    scores = [choice.score for choice in choices]
    assert all((score == 0) is (position >= sum(map(bool, scores))) for position, score in enumerate(scores))
    assert all(0 <= score <= 1 for score in scores)


# ---- What wrong ones cost -------------------------------------------------------------------------------------------


def simulate(seed: int, *, executors: int = 20, bad: float = 0.3, calls: int = 1000) -> tuple[float, float, int]:
    """Make calls, a second apart; give extra requests per call, the share answered, and how many were ever asked."""
    chance = random.Random(seed)
    cards = [card(identity(f"executor {number}").peer_id, price=chance.randint(0, 500)) for number in range(executors)]
    broken = {one.peer_id for one in cards[: int(executors * bad)]}
    tracks: dict[PeerId, Track] = {}
    extra = answered = 0
    for now in range(calls):
        asked = 0
        for choice in rank(cards, tracks, WISH, now, [chance.random() for _ in range(executors + 1)])[:8]:
            asked += 1
            before = tracks.get(choice.executor, Track())
            if choice.executor in broken:
                tracks[choice.executor] = on_failure(before, now, "lost")
            else:
                tracks[choice.executor] = on_success(before, chance.uniform(0.1, 2), chance.uniform(100, 1000))
                answered += 1
                break
        extra += asked - 1
    return extra / calls, answered / calls, len(tracks)


@pytest.mark.parametrize("seed", range(5))
def test_with_three_in_ten_executors_broken_a_call_costs_at_most_one_request_more_and_is_answered(seed: int) -> None:
    extra, answered, asked = simulate(seed)
    assert extra <= 0.1
    assert answered >= 0.999
    assert asked == 20  # every stranger got its chance


@pytest.mark.parametrize("seed", range(5))
def test_the_first_calls_of_many_clients_that_know_nobody_cost_at_most_one_request_more_each(seed: int) -> None:
    costs = [simulate(1000 * seed + number, calls=1) for number in range(200)]
    assert sum(extra for extra, _, _ in costs) / 200 <= 1
    assert sum(answered for _, answered, _ in costs) / 200 >= 0.95
