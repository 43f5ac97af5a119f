"""Scores: what a fault costs, what costs nothing, how time heals, and how long a breaker of rules stays out."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import (
    Fault,
    InvalidBlock,
    InvalidMessage,
    InvalidTransaction,
    ProtocolError,
    RequestRefused,
    ServiceError,
)
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.peer_score import (
    COSTS,
    FIRST_BAN,
    FOUL,
    FREE,
    HALF_LIFE,
    LIE,
    LONGEST_BAN,
    MAX_PEERS,
    SLIP,
    WORST_SCORE,
    Standing,
    ban_time,
    banned,
    cost,
    is_banned,
    next_release,
    on_fault,
    score,
)
from loremesh.protocol.persistent import Map
from loremesh.testing.builders import ANN, BOB, CAT

NOBODY: Map[PeerId, Standing] = Map()
EVE, MAX = ANN.peer_id, BOB.peer_id
FATAL = -int(WORST_SCORE)
NAME = Hash(bytes(32))


def stranger(number: int) -> PeerId:
    return PeerId(hashlib.sha256(str(number).encode()).digest())


times = st.floats(0, 10 * LONGEST_BAN)
faults = st.lists(st.tuples(st.sampled_from([EVE, MAX, CAT.peer_id]), st.sampled_from([SLIP, FOUL, LIE]), times))


def after(events: list[tuple[PeerId, int, float]]) -> tuple[Map[PeerId, Standing], float]:
    """Take in faults in the order of their times; give the standings and the last time."""
    standings, now = NOBODY, 0.0
    for peer, points, now in sorted(events, key=lambda event: event[2]):
        standings = on_fault(standings, peer, points, now)
    return standings, now


# ---- what it costs


def test_every_fault_has_a_cost() -> None:
    assert COSTS.keys() == set(Fault)
    assert set(COSTS.values()) == {FREE, SLIP, FOUL, LIE}


@pytest.mark.parametrize(
    "error",
    [
        InvalidTransaction(Fault.DUPLICATE),
        InvalidTransaction(Fault.WRONG_NONCE),
        InvalidTransaction(Fault.QUOTA),
        InvalidTransaction(Fault.UNKNOWN_SUGGESTION),
        InvalidMessage(Fault.DUPLICATE),
        InvalidBlock(Fault.PARENT_REFUSED, NAME),
        RequestRefused(Fault.NOT_AS_ASKED),
    ],
    ids=str,
)
def test_what_happens_to_honest_peers_costs_nothing(error: ProtocolError) -> None:
    assert cost(error) == FREE
    assert on_fault(NOBODY, EVE, cost(error), 5.0) == NOBODY


def test_a_failure_of_the_world_cannot_even_be_asked_about() -> None:
    assert not issubclass(ServiceError, ProtocolError)


def test_a_block_whose_transaction_is_out_of_turn_is_its_producers_fault() -> None:
    assert cost(InvalidBlock(Fault.WRONG_NONCE, NAME)) == FOUL
    assert cost(InvalidBlock(Fault.UNKNOWN_SUGGESTION, NAME)) == FOUL
    assert cost(InvalidBlock(Fault.DUPLICATE, NAME)) == FOUL
    assert cost(InvalidBlock(Fault.BAD_SIGNATURE, NAME)) == LIE


def test_a_slip_is_forgiven_sooner_than_a_foul_and_that_sooner_than_a_lie() -> None:
    assert FREE < SLIP < FOUL < LIE < FATAL


# ---- how it adds up, and heals


def test_a_stranger_has_a_clean_score() -> None:
    assert score(NOBODY, EVE, 0.0) == 0.0
    assert not is_banned(NOBODY, EVE, 0.0)


def test_faults_add_up_and_touch_nobody_else() -> None:
    standings = on_fault(on_fault(NOBODY, EVE, FOUL, 0.0), EVE, LIE, 0.0)
    assert score(standings, EVE, 0.0) == -FOUL - LIE
    assert score(standings, MAX, 0.0) == 0.0


def test_half_of_it_comes_back_in_a_half_life_and_all_of_it_some_day() -> None:
    standings = on_fault(NOBODY, EVE, 40, 100.0)
    assert score(standings, EVE, 100.0 + HALF_LIFE) == -20
    assert score(standings, EVE, 100.0 + 10 * HALF_LIFE) == 0.0


@given(faults, st.floats(0, LONGEST_BAN), st.floats(0, LONGEST_BAN))
def test_time_only_heals(events: list[tuple[PeerId, int, float]], first: float, second: float) -> None:
    standings, now = after(events)
    assert score(standings, EVE, now) <= score(standings, EVE, now + first) <= 0
    assert score(standings, EVE, now + first) <= score(standings, EVE, now + first + second)


@given(faults, times)
def test_a_score_never_falls_from_what_costs_nothing(events: list[tuple[PeerId, int, float]], later: float) -> None:
    standings, now = after(events)
    assert on_fault(standings, EVE, FREE, now + later) == standings


def test_slips_one_a_minute_never_keep_anybody_out() -> None:
    standings = NOBODY
    for minute in range(24 * 60):
        standings = on_fault(standings, EVE, SLIP, 60.0 * minute)
    assert not banned(standings, 24 * 3600.0)


# ---- the ban


def test_a_point_before_the_worst_score_a_peer_is_in_and_at_it_it_is_out() -> None:
    almost = on_fault(NOBODY, EVE, FATAL - 1, 0.0)
    assert not is_banned(almost, EVE, 0.0)
    assert is_banned(on_fault(almost, EVE, 1, 0.0), EVE, 0.0)


def test_a_ban_ends_and_the_peer_begins_anew() -> None:
    standings = on_fault(NOBODY, EVE, FATAL, 50.0)
    assert banned(standings, 50.0 + FIRST_BAN - 1) == {EVE}
    assert not banned(standings, 50.0 + FIRST_BAN)
    assert score(standings, EVE, 50.0 + FIRST_BAN) == 0.0


def test_whoever_is_out_loses_nothing_by_what_it_sent_before() -> None:
    standings = on_fault(NOBODY, EVE, FATAL, 0.0)
    assert on_fault(standings, EVE, FATAL, 1.0) == standings


def test_each_ban_in_a_row_is_twice_as_long_up_to_a_day() -> None:
    assert [ban_time(number) for number in (1, 2, 3)] == [FIRST_BAN, 2 * FIRST_BAN, 4 * FIRST_BAN]
    assert ban_time(20) == ban_time(10**9) == LONGEST_BAN
    standings, now = NOBODY, 0.0
    for number in range(1, 12):
        standings = on_fault(standings, EVE, FATAL, now)
        assert next_release(standings, now) == now + ban_time(number)
        now += ban_time(number)


def test_after_a_good_day_the_next_ban_is_a_first_one() -> None:
    standings = on_fault(NOBODY, EVE, FATAL, 0.0)
    now = FIRST_BAN + LONGEST_BAN
    assert next_release(on_fault(standings, EVE, FATAL, now), now) == now + FIRST_BAN


def test_the_next_release_is_the_earliest() -> None:
    standings = on_fault(on_fault(NOBODY, EVE, FATAL, 0.0), MAX, FATAL, 10.0)
    assert next_release(NOBODY, 0.0) is None
    assert next_release(standings, 10.0) == FIRST_BAN
    assert next_release(standings, FIRST_BAN) == FIRST_BAN + 10.0
    assert next_release(standings, FIRST_BAN + 10.0) is None


@given(faults)
def test_no_ban_lasts_longer_than_a_day(events: list[tuple[PeerId, int, float]]) -> None:
    standings, now = after(events)
    assert not banned(standings, now + LONGEST_BAN)


# ---- the table


def test_the_table_has_an_end_and_keeps_the_worst() -> None:
    standings = on_fault(on_fault(NOBODY, EVE, FATAL, 0.0), MAX, LIE, 0.0)
    for number in range(2 * MAX_PEERS):
        standings = on_fault(standings, stranger(number), FOUL, 1.0)
    assert len(standings) == MAX_PEERS
    assert is_banned(standings, EVE, 1.0)
    assert score(standings, MAX, 1.0) < -FOUL


def test_many_bans_do_not_crowd_out_the_longest() -> None:
    standings, now = NOBODY, 0.0
    for _ in range(4):
        standings = on_fault(standings, EVE, FATAL, now)
        now = next_release(standings, now) or now
    standings = on_fault(standings, EVE, FATAL, now)
    for number in range(2 * MAX_PEERS):
        standings = on_fault(standings, stranger(number), FATAL, now)
    assert len(standings) == MAX_PEERS
    assert is_banned(standings, EVE, now)
