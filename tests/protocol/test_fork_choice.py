"""Fork choice, case by case: bounded pools, reorganisations, forgotten states, equivocation."""

import itertools
from collections.abc import Iterable

import pytest

from loremesh.errors import Fault, InvalidBlock
from loremesh.primitives import Hash, Millis
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.changes import Accepted, Equivocated, HeadMoved, Refused, ReorgWithheld, SetAside, Waiting
from loremesh.protocol.fork_choice import (
    KEEP_STATES,
    MAX_HELD,
    MAX_ORPHANS,
    MAX_SURPLUS,
    STATE_EVERY,
    StateMissing,
    Store,
    chain,
    is_known,
    is_one_too_many,
    missing_parents,
    new_store,
    on_block,
    on_replay,
    on_tick,
)
from loremesh.protocol.identity import Identity
from loremesh.protocol.production import Parent
from loremesh.protocol.validation import link_of
from loremesh.testing.builders import ANN, BOB, CAT, DAN, START, block_on, parent_of, resigned, small_genesis
from loremesh.testing.forests import FAR_FUTURE, everything_in

GENESIS = small_genesis()


def name(block: Block) -> Hash:
    return header_hash(block.header)


def names(blocks: Iterable[Block]) -> tuple[Hash, ...]:
    return tuple(map(name, blocks))


def fed(store: Store, blocks: Iterable[Block]) -> Store:
    for block in blocks:
        store = on_block(store, block)
    return store


def branch(store: Store, length: int, producers: tuple[Identity, Identity] = (ANN, BOB)) -> list[Block]:
    """Give the blocks of a branch on the head of `store`."""
    blocks = list[Block]()
    for number in range(length):
        blocks.append(block_on(GENESIS, parent_of(store), producers[number % 2]))
        store = on_block(store, blocks[-1])
    return blocks


@pytest.fixture(name="empty")
def _empty() -> Store:
    return new_store(GENESIS, FAR_FUTURE)


@pytest.fixture(name="long", scope="module")
def _long() -> tuple[Store, list[Block]]:
    blocks = branch(new_store(GENESIS, FAR_FUTURE), 2 * STATE_EVERY + KEEP_STATES + 10)
    return fed(new_store(GENESIS, FAR_FUTURE), blocks), blocks


def test_a_new_store_knows_only_the_genesis(empty: Store) -> None:
    assert empty.head == empty.story
    assert empty.tip.link.height == 0
    assert [entry.link.hash for entry in chain(empty, empty.head)] == [empty.story]
    assert set(empty.tips) == {empty.story}


def test_an_event_leaves_the_store_before_it_as_it_was(empty: Store) -> None:
    before = everything_in(empty)
    fed(empty, branch(empty, 3))
    assert everything_in(empty) == before


def test_the_pool_of_orphans_is_bounded_and_the_oldest_makes_room(empty: Store) -> None:
    seed = branch(empty, 1)[0]
    strays = [resigned(seed, ANN, parent=number.to_bytes(32, "big")) for number in range(MAX_ORPHANS + 3)]
    store = fed(empty, strays)
    assert len(store.orphans) == MAX_ORPHANS
    assert set(store.orphans) == set(names(strays[3:]))
    assert set(missing_parents(store)) == {stray.header.parent for stray in strays[3:]}
    assert store.changes == (Refused(name(strays[2]), None), Waiting(name(strays[-1]), held=False))
    assert sum(len(waiting) for waiting in store.orphans_of.values()) == MAX_ORPHANS


def test_a_full_pool_of_orphans_does_not_keep_good_blocks_out(empty: Store) -> None:
    good = branch(empty, 2)
    store = fed(empty, [resigned(good[0], ANN, parent=n.to_bytes(32, "big")) for n in range(MAX_ORPHANS + 3)])
    assert fed(store, good).head == name(good[1])


def test_the_pool_of_held_blocks_is_bounded_and_the_furthest_ahead_makes_room() -> None:
    store = new_store(GENESIS, START)
    people = [Identity.new(number.to_bytes(32, "big")) for number in range(1, MAX_HELD + 6)]
    late = [
        block_on(GENESIS, parent_of(store), person, time=START + 10_000 + number)
        for number, person in enumerate(people)
    ]
    held = fed(store, late[::-1])
    assert set(held.held) == set(names(late[:MAX_HELD]))
    assert held.head == store.head
    crowded = on_block(held, late[-1])
    assert Refused(name(late[-1]), None) in crowded.changes
    assert set(on_tick(crowded, FAR_FUTURE).entries) == {store.story, *names(late[:MAX_HELD])}


def test_held_blocks_join_when_their_time_has_come_and_not_before() -> None:
    store = new_store(GENESIS, START)
    late = block_on(GENESIS, parent_of(store), ANN, time=START + 5000)
    store = on_block(store, late)
    assert is_known(store, name(late))
    assert on_tick(store, Millis(START + 4499)).head == store.story
    assert on_tick(store, Millis(START + 4500)).head == name(late)


def test_a_held_block_that_turns_out_bad_is_refused_in_its_time_with_what_waits_for_it() -> None:
    store = new_store(GENESIS, START)
    good = block_on(GENESIS, parent_of(store), ANN, time=START + 5000)
    bad = resigned(good, ANN, state_root=bytes(32))
    child = block_on(GENESIS, Parent(link_of(bad.header, parent_of(store).link), store.states[store.head]), BOB)
    store = fed(store, [child, bad])
    store = on_tick(store, FAR_FUTURE)
    refusals = {change.hash: change.error for change in store.changes if isinstance(change, Refused)}
    assert {refused: error.fault for refused, error in refusals.items() if error} == {
        name(bad): Fault.WRONG_STATE_ROOT,
        name(child): Fault.PARENT_REFUSED,
    }
    assert store.head == store.story
    assert not store.orphans
    assert not store.held


def test_orphans_join_with_their_parent_however_long_the_row(empty: Store) -> None:
    blocks = branch(empty, 50)
    store = fed(empty, blocks[:0:-1])
    assert store.head == store.story
    assert missing_parents(store) == (name(blocks[0]),)
    store = on_block(store, blocks[0])
    assert store.head == name(blocks[-1])
    assert [change.hash for change in store.changes if isinstance(change, Accepted)] == list(names(blocks))
    assert missing_parents(store) == ()


def test_a_branch_that_loses_is_kept_and_may_win_later(empty: Store) -> None:
    left, right = branch(empty, 3, (ANN, BOB)), branch(empty, 4, (CAT, DAN))
    store = fed(empty, [*left, *right[:2]])
    assert store.head == name(left[-1])
    assert set(store.tips) == {name(left[-1]), name(right[1])}
    store = fed(store, right[2:])
    assert store.head == name(right[-1])
    assert set(names(left)) <= set(store.entries)


def test_a_reorganisation_names_what_left_newest_first_and_what_joined_oldest_first(empty: Store) -> None:
    shared = branch(empty, 1)
    fork = fed(empty, shared)
    left, right = branch(fork, 2, (BOB, CAT)), branch(fork, 3, (DAN, CAT))
    store = fed(fork, [*left, *right])
    moves = [change for change in fed(fork, left).changes if isinstance(change, HeadMoved)]
    assert moves == [HeadMoved(name(left[1]), (), (name(left[1]),))]
    # At equal length the lowest hash decides, so the branch changes at its second block or at its third.
    second = fed(fork, [*left, *right[:2]])
    moved = second if second.head == name(right[1]) else store
    (move,) = [change for change in moved.changes if isinstance(change, HeadMoved)]
    assert move.abandoned == names(reversed(left))
    assert move.adopted == names(right[: len(move.adopted)])
    assert move.head == move.adopted[-1]
    assert store.head == name(right[-1])


@pytest.mark.parametrize(("max_reorg", "is_allowed"), [(None, True), (3, True), (2, False), (0, False)])
def test_a_reorganisation_deeper_than_allowed_is_withheld_and_told(*, max_reorg: int | None, is_allowed: bool) -> None:
    empty = new_store(GENESIS, FAR_FUTURE, max_reorg)
    left, right = branch(empty, 3, (ANN, BOB)), branch(empty, 4, (CAT, DAN))
    store = fed(empty, [*left, *right])
    assert (store.head == name(right[-1])) is is_allowed
    assert (ReorgWithheld(name(right[-1]), 3) in store.changes) is not is_allowed
    assert set(names(right)) <= set(store.entries)


def test_a_chain_that_withholds_a_reorganisation_goes_on_growing() -> None:
    empty = new_store(GENESIS, FAR_FUTURE, max_reorg=1)
    left, right = branch(empty, 3, (ANN, BOB)), branch(empty, 5, (CAT, DAN))
    store = fed(empty, [*left, *right])
    more = block_on(GENESIS, parent_of(store), CAT)
    assert store.head == name(left[-1])
    # The branch that was withheld is heavier than the new block, but nothing brings it back by itself.
    longer = on_block(store, more)
    assert longer.head == name(more)


def test_of_one_producers_headers_on_one_parent_two_are_kept_and_told(empty: Store) -> None:
    first, second, third = (block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "abc")
    store = fed(empty, [first, second])
    assert Equivocated(ANN.peer_id, name(first), name(second)) in store.changes
    before = everything_in(store)
    store = on_block(store, third)
    assert everything_in(store) == before | {"surplus": {name(third): third}, "changes": (SetAside(name(third)),)}
    assert is_known(store, name(third))
    assert on_block(store, third).changes == ()
    other = block_on(GENESIS, parent_of(empty), BOB)
    assert name(other) in on_block(store, other).entries


def test_a_third_header_that_waited_is_set_aside_when_its_parent_comes(empty: Store) -> None:
    (parent,) = branch(empty, 1)
    above = parent_of(fed(empty, [parent]))
    twins = [block_on(GENESIS, above, BOB, salt=salt) for salt in "abc"]
    store = fed(empty, [*twins, parent])
    assert SetAside(name(twins[2])) in store.changes
    assert set(names(twins[:2])) <= set(store.entries)
    assert set(store.surplus) == {name(twins[2])}


def built_on(block: Block, producer: Identity = BOB) -> Block:
    return block_on(GENESIS, parent_of(on_block(new_store(GENESIS, FAR_FUTURE), block)), producer)


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_a_third_header_joins_when_somebody_builds_on_it_whatever_comes_first(
    empty: Store, order: tuple[int, ...]
) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "abc"]
    children = [built_on(twins[0]), built_on(twins[2])]
    blocks = [*twins, *children]
    store = fed(empty, [blocks[number] for number in order])
    assert store.head == min(names(children))
    assert set(store.entries) | set(store.surplus) == {store.story, *names(blocks)}
    assert set(store.surplus) <= {name(twins[1])}
    assert not store.orphans
    assert missing_parents(store) == ()


def test_a_block_that_does_not_fit_a_third_header_is_not_built_on_it(empty: Store) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "abc"]
    child = built_on(twins[2])
    misfit = resigned(child, BOB, height=child.header.height + 1)
    for blocks in ([*twins, misfit], [misfit, *twins]):
        store = fed(empty, blocks)
        assert set(store.surplus) == {name(twins[2])}
        assert missing_parents(store) == ()  # it is here, and nobody need be asked for it
        store = on_block(store, child)
        assert store.head == name(child)
        assert Refused(name(misfit), None) not in store.changes
        assert not is_known(store, name(misfit))


def test_a_third_header_that_is_bad_takes_what_is_built_on_it_with_it(empty: Store) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "ab"]
    bad = resigned(twins[0], ANN, state_root=bytes(32))
    child = resigned(built_on(twins[0]), BOB, parent=name(bad))
    store = fed(empty, [*twins, bad, child])
    refusals = {change.hash: change.error for change in store.changes if isinstance(change, Refused)}
    assert {refused: error.fault for refused, error in refusals.items() if error} == {
        name(bad): Fault.WRONG_STATE_ROOT,
        name(child): Fault.PARENT_REFUSED,
    }
    assert not store.orphans
    assert not store.surplus


def test_a_third_header_from_the_future_is_held_once_somebody_builds_on_it() -> None:
    store = new_store(GENESIS, Millis(START + 5000))
    twins = [block_on(GENESIS, parent_of(store), ANN, salt=salt) for salt in "ab"]
    late = block_on(GENESIS, parent_of(store), ANN, time=START + 20_000)
    store = fed(store, [*twins, late, built_on(late)])
    assert set(store.held) == {name(late)}
    assert on_tick(store, FAR_FUTURE).head == name(built_on(late))


def test_the_pool_of_surplus_headers_is_bounded_and_the_oldest_makes_room(empty: Store) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=str(number)) for number in range(MAX_SURPLUS + 3)]
    store = fed(empty, twins)
    assert tuple(store.surplus) == names(twins[3:])
    assert store.changes == (SetAside(name(twins[-1])), Refused(name(twins[2]), None))
    child = built_on(twins[2])
    store = on_block(store, child)  # so it is asked for again
    assert missing_parents(store) == (name(twins[2]),)
    assert on_block(store, twins[2]).head == name(child)


def test_of_headers_that_were_kept_once_all_join(empty: Store) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "abcd"]
    store = empty
    for block in twins:
        store = on_block(store, block, is_kept=True)
    assert set(store.entries) == {store.story, *names(twins)}


def test_a_third_header_is_passed_on_once_somebody_builds_on_it(empty: Store) -> None:
    twins = [block_on(GENESIS, parent_of(empty), ANN, salt=salt) for salt in "abc"]
    store = fed(empty, twins[:2])
    assert is_one_too_many(store, twins[2].header)
    assert not is_one_too_many(on_block(store, built_on(twins[2])), twins[2].header)


def test_states_are_kept_for_the_last_heights_and_every_64th_below(long: tuple[Store, list[Block]]) -> None:
    store, _ = long
    top = store.tip.link.height
    kept = {store.entries[block_hash].link.height for block_hash in store.states}
    assert kept == {0, STATE_EVERY, 2 * STATE_EVERY, *range(top - KEEP_STATES + 1, top + 1)}


def test_a_fork_below_the_kept_states_asks_for_a_replay_and_then_joins(long: tuple[Store, list[Block]]) -> None:
    store, blocks = long
    # A block on height 70 by somebody who was not there: its parent's state must be recomputed from height 64.
    at_70 = fed(new_store(GENESIS, FAR_FUTURE), blocks[:70])
    fork = block_on(GENESIS, parent_of(at_70), CAT)
    before = everything_in(store)
    with pytest.raises(StateMissing) as missing:
        on_block(store, fork)
    assert everything_in(store) == before
    assert missing.value.path == names(blocks[64:70])
    replayed = on_replay(store, tuple(blocks[64:70]))
    assert replayed.states[name(blocks[69])].root == blocks[69].header.state_root
    joined = on_block(replayed, fork)
    assert name(fork) in joined.entries
    assert joined.head == store.head


def test_what_a_replay_brought_back_is_forgotten_again_as_the_story_goes_on(long: tuple[Store, list[Block]]) -> None:
    store, blocks = long
    replayed = on_replay(store, tuple(blocks[64:70]))
    assert len(replayed.states) == len(store.states) + 6
    later = fed(replayed, branch(replayed, STATE_EVERY))
    kept = {later.entries[block_hash].link.height for block_hash in later.states}
    assert kept.isdisjoint(range(65, 71))


def test_a_replay_is_never_longer_than_the_distance_between_kept_states(long: tuple[Store, list[Block]]) -> None:
    store, blocks = long
    longest = 0
    for block in blocks[: len(blocks) - KEEP_STATES]:
        if name(block) in store.states:
            continue
        # The state it is made from is another one, but the rule that asks for it comes later.
        child = block_on(GENESIS, Parent(store.entries[name(block)].link, store.states[store.head]), CAT)
        with pytest.raises(StateMissing) as missing:
            on_block(store, child)
        longest = max(longest, len(missing.value.path))
    assert longest == STATE_EVERY - 1


def test_a_replay_of_the_wrong_blocks_is_refused(long: tuple[Store, list[Block]]) -> None:
    store, blocks = long
    lie = resigned(blocks[64], ANN, state_root=bytes(32))
    with pytest.raises(InvalidBlock):
        on_replay(store, (lie,))


def test_orphans_that_join_together_need_no_replay_however_many_they_are() -> None:
    trunk = branch(new_store(GENESIS, FAR_FUTURE), KEEP_STATES + 50)
    low = fed(new_store(GENESIS, FAR_FUTURE), trunk[:2])
    fork = branch(low, 2, (DAN, CAT))
    waiting = fed(new_store(GENESIS, FAR_FUTURE), [*fork, *trunk[1:]])
    joined = on_block(waiting, trunk[0])
    assert not joined.orphans
    assert joined.head == name(trunk[-1])
    assert set(joined.tips) == {name(trunk[-1]), name(fork[-1])}
