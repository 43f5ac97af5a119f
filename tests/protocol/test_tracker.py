"""Who is the tracker: candidates are a function of the chain, and nobody takes an office that is not his."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.fork_choice import children, new_store, on_block
from loremesh.protocol.genesis import Validator
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.tracker import (
    RECENT,
    SILENCE,
    TURN,
    Claimed,
    HandedOver,
    Office,
    TrackerState,
    candidates,
    check_claim,
    on_claim,
    on_gone,
    on_head,
    on_life,
    on_stall,
    on_tick,
    open_office,
)
from loremesh.protocol.views import block_view
from loremesh.protocol.wire import TrackerClaim
from loremesh.testing.builders import ANN, BOB, CAT, DAN, identity, small_genesis
from loremesh.testing.forests import FAR_FUTURE
from loremesh.testing.orchard import Orchard

STORY, HEAD, NEXT = (Hash(bytes([number]) * 32) for number in range(3))
ORDER = tuple(identity(name).peer_id for name in ("ann", "bob", "cat", "dan", "eve", "fay"))
STRANGER = identity("zoe").peer_id


def office_of(me: PeerId, now: float = 0) -> Office:
    return open_office(me, HEAD, Height(7), ORDER, now)


def claim(view: int, *, time: int = 1, claimant: PeerId | None = None, head: Hash = HEAD) -> TrackerClaim:
    return TrackerClaim(STORY, head, view, claimant or ORDER[view], Millis(time))


def test_there_are_exactly_two_states() -> None:
    assert list(TrackerState) == ["tracker", "peer"]


# the order of candidates


def test_the_candidates_are_recent_producers_then_the_validators_of_the_genesis() -> None:
    genesis = replace(small_genesis(tracker=DAN), validators=(Validator(CAT.peer_id), Validator(STRANGER)))
    orchard, store = Orchard(genesis), new_store(genesis, FAR_FUTURE)
    assert candidates(store, store.head) == (DAN.peer_id, CAT.peer_id, STRANGER)
    for block in orchard.grow(orchard.root, 4, BOB, ANN):
        store = on_block(store, block)
    assert candidates(store, store.head) == (ANN.peer_id, BOB.peer_id, DAN.peer_id, CAT.peer_id, STRANGER)


def test_whoever_has_not_produced_for_long_is_no_candidate() -> None:
    orchard, store = Orchard(small_genesis()), new_store(small_genesis(), FAR_FUTURE)
    first = orchard.grow(orchard.root, 1, CAT)
    rest = orchard.grow(orchard.add(first[0]), RECENT, ANN, BOB)
    for block in [*first, *rest[:-1]]:
        store = on_block(store, block)
    assert CAT.peer_id in candidates(store, store.head)
    store = on_block(store, rest[-1])
    assert set(candidates(store, store.head)) == {ANN.peer_id, BOB.peer_id}


def test_a_block_is_shown_with_the_tracker_of_the_round_that_it_begins() -> None:
    orchard, store = Orchard(small_genesis()), new_store(small_genesis(), FAR_FUTURE)
    for block in orchard.grow(orchard.root, 3, CAT, BOB):
        store = on_block(store, block)
        view = block_view(block)
        assert view["tracker_id"] == view["producer"] == peer_id_text(candidates(store, store.head)[0])


def test_another_branch_has_other_candidates() -> None:
    orchard, store = Orchard(small_genesis()), new_store(small_genesis(), FAR_FUTURE)
    left, right = orchard.grow(orchard.root, 1, ANN), orchard.grow(orchard.root, 1, BOB)
    for block in (*left, *right):
        store = on_block(store, block)
    tips = {candidates(store, tip) for tip in children(store, store.story)}
    assert tips == {(ANN.peer_id,), (BOB.peer_id,)}


@pytest.mark.parametrize(("view", "claimant"), [(0, ORDER[1]), (1, ORDER[0]), (6, ORDER[0]), (2**64 - 1, ORDER[0])])
def test_nobody_may_claim_a_view_that_is_not_his(view: int, claimant: PeerId) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        check_claim(ORDER, view, claimant)
    assert refusal.value.fault is Fault.NOT_THE_TRACKER
    with pytest.raises(InvalidMessage):
        on_claim(office_of(STRANGER), claim(view, claimant=claimant), 5)


# views


def test_ten_seconds_for_each_view_of_a_head_whose_candidates_are_all_unknown() -> None:
    for view, me in enumerate(ORDER):
        office = office_of(me)
        assert on_tick(office, TURN * view - 0.1).state is (TrackerState.PEER if view else TrackerState.TRACKER)
        assert on_tick(office, TURN * view).view == view


def test_a_claim_is_accepted_in_its_turn_and_not_before() -> None:
    office = on_claim(office_of(STRANGER), claim(2), 2 * TURN - 1)
    assert office.view == 0
    assert on_tick(office, 2 * TURN).view == 2


def test_a_frozen_tracker_is_waited_for_longer_by_whoever_would_follow_than_by_whoever_listens() -> None:
    listener, follower = (on_life(office_of(who), ORDER[0], 5) for who in (STRANGER, ORDER[1]))
    assert on_claim(listener, claim(1), 5 + TURN - 1).view == 0
    assert on_claim(listener, claim(1), 5 + TURN).view == 1
    assert on_tick(follower, 5 + SILENCE - 1).state is TrackerState.PEER
    assert on_tick(follower, 5 + SILENCE).sends == (Claimed(HEAD, 1),)


def test_a_sign_of_life_in_the_office_keeps_the_next_one_out() -> None:
    office = on_gone(office_of(ORDER[2]), ORDER[0], 1)
    office = on_claim(office, claim(1), 2)
    for second in range(2, 200, 5):
        office = on_life(office, ORDER[1], second)
        assert (office.view, office.sends) == (1, ())
    assert on_gone(office, ORDER[1], 200).state is TrackerState.TRACKER


def test_a_higher_view_that_is_alive_is_left_in_office() -> None:
    office = on_life(office_of(ORDER[1]), ORDER[0], 5)
    office = on_claim(office, claim(2), 26)  # its sender knew more of the others than we do
    for second in range(26, 100, 5):
        office = on_tick(on_life(office, ORDER[2], second), second + 4)
        assert (office.view, office.sends) == (2, ())


def test_a_heartbeat_of_a_candidate_that_claims_nothing_is_no_claim() -> None:
    office = on_gone(office_of(STRANGER), ORDER[0], 1)
    for second in range(1, 60):
        office = on_life(office, ORDER[1], second)
    assert office.view == 0


def test_the_old_tracker_hands_over_when_a_block_comes_and_nobody_else_does() -> None:
    order = (ORDER[3], *ORDER[:3])
    for me in (*ORDER, STRANGER):
        office = on_head(office_of(me), NEXT, Height(8), order, 3)
        assert office.sends == ((HandedOver(NEXT, Height(8), ORDER[3]),) if me == ORDER[0] else ())
        assert office.state is (TrackerState.TRACKER if me == ORDER[3] else TrackerState.PEER)
        assert (office.view, office.since) == (0, 3)


def test_the_same_head_again_changes_nothing() -> None:
    office = on_gone(office_of(ORDER[1]), ORDER[0], 1)
    assert office.view == 1
    assert on_head(office, HEAD, Height(7), ORDER, 9) == replace(office, sends=())


def test_whoever_is_gone_is_still_gone_under_a_new_head() -> None:
    office = on_gone(office_of(ORDER[2]), ORDER[1], 1)
    office = on_head(office, NEXT, Height(8), (ORDER[1], ORDER[2], ORDER[0]), 50)
    assert (office.view, office.state) == (1, TrackerState.TRACKER)


def test_the_time_that_we_stood_still_is_nobodys_silence() -> None:
    office = on_life(office_of(ORDER[1]), ORDER[0], 3)
    assert on_tick(office, 103).state is TrackerState.TRACKER
    assert on_tick(on_stall(office, 95), 103).state is TrackerState.PEER


def test_nobody_can_declare_a_node_gone_to_itself() -> None:
    assert on_gone(office_of(ORDER[0]), ORDER[0], 1).state is TrackerState.TRACKER


def test_what_is_remembered_of_those_gone_is_bounded() -> None:
    office = office_of(STRANGER)
    for number in range(600):
        office = on_gone(office, PeerId(number.to_bytes(39, "big")), number)
    assert len(office.gone) == 512


# any order, any moment


def delivered(office: Office, claims: Sequence[TrackerClaim], now: float) -> Office:
    for one in claims:
        office = on_claim(office, one, now)
    return office


@given(st.sets(st.integers(1, 5), min_size=1), st.sets(st.integers(0, 5)), st.integers(0, 80))
def test_the_order_in_which_claims_come_never_matters(views: set[int], gone: set[int], now: int) -> None:
    office = office_of(STRANGER)
    for view in gone:
        office = on_gone(office, ORDER[view], 1)
    ends = {delivered(office, [claim(view) for view in order], now).view for order in permutations(views)}
    assert len(ends) == 1
    late = on_tick(delivered(office, [claim(view) for view in views], 60), 60)
    assert late.view == min(views)  # once every turn has come, the lowest of those that live


EVENTS = st.one_of(
    st.tuples(st.just("claim"), st.integers(0, 5)),
    st.tuples(st.just("life"), st.integers(0, 5)),
    st.tuples(st.just("gone"), st.integers(0, 5)),
    st.tuples(st.just("tick"), st.just(0)),
)


def happen(office: Office, what: str, view: int, now: float, number: int) -> Office:
    match what:
        case "claim":
            return on_claim(office, claim(view, time=number + 1), now)
        case "life":
            return on_life(office, ORDER[view], now)
        case "gone":
            return on_gone(office, ORDER[view], now)
    return on_tick(office, now)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 15)), max_size=60), st.integers(0, 6))
def test_whatever_happens_there_is_one_tracker_with_its_own_view_and_no_claim_without_the_office(
    events: list[tuple[tuple[str, int], float]], mine: int
) -> None:
    me = (*ORDER, STRANGER)[mine]
    office, now = office_of(me), 0.0
    for number, ((what, view), pause) in enumerate(events):
        now += pause
        before, office = office, happen(office, what, view, now, number)
        assert office.tracker == ORDER[office.view]
        assert (office.state is TrackerState.TRACKER) == (office.tracker == me)
        for send in office.sends:
            assert send == Claimed(HEAD, mine)
            assert (office.view, before.view == mine) == (mine, False)
            assert 0 < mine < len(ORDER)
        if office.view != before.view:
            gone = {peer for peer, _ in office.gone}
            heard = office.turns[office.view].heard
            assert ORDER[office.view] not in gone
            assert office.view == 0 or (heard is not None and now - heard < TURN)


@given(st.sets(st.integers(0, 5), max_size=5), st.integers(0, 30))
def test_whoever_is_left_has_the_office_after_ten_seconds_for_each_that_is_silent(dead: set[int], at: int) -> None:
    """The living hear each other at once; the dead are silent, and nobody knows that they are dead."""
    living = [peer for view, peer in enumerate(ORDER) if view not in dead]
    offices = {peer: on_life(office_of(peer), ORDER[0], at) for peer in living}  # if it is dead, it died in the office
    claimed: list[PeerId] = []
    for second in range(at, at + 120):
        for peer in living:
            offices[peer] = on_tick(offices[peer], second)
            if offices[peer].sends:
                claimed.append(peer)
                for other in living:
                    offices[other] = on_claim(offices[other], claim(ORDER.index(peer), time=second + 1), second)
        for peer in living:
            for other in living:
                offices[peer] = on_life(offices[peer], other, second)
    assert {office.tracker for office in offices.values()} == {living[0]}
    assert claimed == ([living[0]] if 0 in dead else [])
