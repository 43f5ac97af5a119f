"""Every way in which a block can be bad is refused with its fault, and leaves the store as it was."""

from dataclasses import replace

import pytest

from loremesh.errors import Fault, InvalidBlock, InvalidMessage
from loremesh.primitives import Hash, Millis
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.changes import Equivocated, HeadMoved, Refused, Waiting
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import MAX_ORPHANS, is_one_too_many, on_block, on_tick
from loremesh.protocol.production import Parent
from loremesh.protocol.state import State
from loremesh.protocol.validation import check_block_alone, link_of
from loremesh.testing.bad_blocks import (
    BAD_BLOCKS,
    PARAMETERS,
    RULES,
    THIRD_HEADER,
    BadBlock,
    Scene,
    scene,
    worked,
)
from loremesh.testing.bad_bytes import BAD_BYTES, BadBytes
from loremesh.testing.builders import ANN, BOB, CAT, DAN, block_on, suggestion
from loremesh.testing.forests import everything_in


@pytest.fixture(name="at", scope="module")
def _at() -> Scene:
    return scene()


def test_the_block_that_the_bad_ones_are_made_of_is_good(at: Scene) -> None:
    assert on_block(at.store, at.good).head == header_hash(at.good.header)


@pytest.mark.parametrize("bad", BAD_BLOCKS, ids=lambda bad: bad.name)
def test_a_bad_block_is_refused_and_changes_nothing(at: Scene, bad: BadBlock) -> None:
    before = everything_in(at.store)
    with pytest.raises(InvalidBlock) as refusal:
        on_block(at.store, bad.make(at))
    assert refusal.value.fault is bad.fault
    assert everything_in(at.store) == before


@pytest.mark.parametrize("bad", BAD_BLOCKS, ids=lambda bad: bad.name)
def test_a_bad_block_does_not_keep_the_good_one_out(at: Scene, bad: BadBlock) -> None:
    with pytest.raises(InvalidBlock):
        on_block(at.store, bad.make(at))
    assert on_block(at.store, at.good).head == header_hash(at.good.header)


@pytest.mark.parametrize("bad", BAD_BYTES, ids=lambda bad: bad.name)
def test_bad_bytes_are_refused_before_they_are_a_block(at: Scene, bad: BadBytes) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        decode(Block, bad.make(encode(at.good)))
    assert refusal.value.fault is bad.fault


def test_every_prefix_of_a_block_is_truncated(at: Scene) -> None:
    data = encode(at.good)
    for length in range(len(data)):
        with pytest.raises(InvalidMessage) as refusal:
            decode(Block, data[:length])
        assert refusal.value.fault is Fault.TRUNCATED, length


@pytest.mark.parametrize("text", ["cafe\u0301", "\u212b"])
def test_text_not_in_nfc_is_refused_in_bytes_too(at: Scene, text: str) -> None:
    plain, data = at.good.content.text[: len(text.encode())], encode(at.good)
    assert plain.encode() in data
    with pytest.raises(InvalidMessage) as refusal:
        decode(Block, data.replace(plain.encode(), text.encode(), 1))
    assert refusal.value.fault is Fault.NOT_NFC


def test_a_block_at_the_minimum_spacing_is_not_too_early(at: Scene) -> None:
    quick = block_on(at.genesis, at.parent, BOB, time=at.parent.link.time + PARAMETERS.min_spacing)
    assert on_block(at.store, quick).head == header_hash(quick.header)


def test_a_replayed_block_changes_nothing(at: Scene) -> None:
    before = everything_in(at.store)
    for block in at.before:
        after = on_block(at.store, block)
        assert everything_in(after) == before | {"changes": ()}


def test_a_block_ahead_of_the_clock_is_held_and_is_in_no_chain_until_its_time(at: Scene) -> None:
    late = block_on(at.genesis, at.parent, BOB, time=at.store.now + PARAMETERS.max_ahead + 1)
    store = on_block(at.store, late)
    name = header_hash(late.header)
    assert store.changes == (Waiting(name, held=True),)
    assert store.head == at.store.head
    assert name not in store.entries
    assert on_tick(store, at.store.now).head == at.store.head
    assert on_tick(store, Millis(at.store.now + 1)).head == name


def test_a_block_as_far_ahead_as_allowed_is_not_held(at: Scene) -> None:
    early = block_on(at.genesis, at.parent, BOB, time=at.store.now + PARAMETERS.max_ahead)
    assert on_block(at.store, early).head == header_hash(early.header)


def test_a_block_with_an_unknown_parent_waits_in_a_bounded_pool(at: Scene) -> None:
    store, first = at.store, worked(at.good, BOB, parent=bytes(32))
    for number in range(MAX_ORPHANS + 5):
        stray = worked(at.good, BOB, parent=number.to_bytes(32, "big"))
        store = on_block(store, stray)
        assert store.head == at.store.head
    assert len(store.orphans) == len(store.orphan_order) == MAX_ORPHANS
    assert header_hash(first.header) not in store.orphans
    assert any(isinstance(change, Refused) and change.error is None for change in store.changes)


def test_an_orphan_too_must_be_signed_and_worked_for(at: Scene) -> None:
    stray = worked(at.good, BOB, parent=bytes(32))
    with pytest.raises(InvalidBlock) as refusal:
        on_block(at.store, replace(stray, signature=at.good.signature))
    assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_a_height_gap_shows_when_the_parent_is_known(at: Scene) -> None:
    skipped = worked(at.good, BOB, height=at.good.header.height + 7)
    with pytest.raises(InvalidBlock) as refusal:
        on_block(at.store, skipped)
    assert refusal.value.fault is Fault.WRONG_HEIGHT


def test_a_block_as_large_as_allowed_joins_and_one_byte_more_is_refused(at: Scene) -> None:
    def sized(padding: int) -> Block:
        texts = ["lantern" * 70, "lantern" * 70, "l" * padding]
        wishes = tuple(suggestion(DAN, at.genesis, f"{text} {n}", n) for n, text in enumerate(texts, start=1))
        return block_on(at.genesis, at.parent, BOB, text="lantern" * 580, transactions=wishes)

    limit = len(encode(sized(100)))
    roomy = replace(at.genesis, rules=replace(RULES, block_bytes=limit))
    # The limit is in the genesis, so each limit is another story: only the rule is asked here.
    story, tight = at.story, sized(100)
    assert check_block_alone(roomy, story, tight) == header_hash(tight.header)
    with pytest.raises(InvalidBlock) as refusal:
        check_block_alone(roomy, story, sized(101))
    assert refusal.value.fault is Fault.TOO_LARGE


def test_the_tracker_may_produce_again_after_solo_after(at: Scene) -> None:
    alone = block_on(at.genesis, at.parent, CAT, time=at.parent.link.time + PARAMETERS.solo_after)
    assert on_block(at.store, alone).head == header_hash(alone.header)
    first = block_on(at.genesis, at.root, ANN, time=at.genesis.time + PARAMETERS.solo_after)
    assert header_hash(first.header) in on_block(at.store, first).entries


def test_after_somebody_elses_block_the_former_tracker_may_mine(at: Scene) -> None:
    store = on_block(at.store, at.good)
    state = store.states[store.head]
    cats = block_on(at.genesis, Parent(link_of(at.good.header, at.parent.link), state), CAT)
    assert cats.header.time == at.good.header.time + PARAMETERS.spacing
    assert on_block(store, cats).head == header_hash(cats.header)


def test_of_two_headers_on_one_parent_both_are_kept_and_reported(at: Scene) -> None:
    one = block_on(at.genesis, at.parent, DAN)
    two = block_on(at.genesis, at.parent, DAN, salt="again")
    store = on_block(on_block(at.store, one), two)
    assert {header_hash(one.header), header_hash(two.header)} <= set(store.entries)
    evidence = Equivocated(DAN.peer_id, header_hash(one.header), header_hash(two.header))
    assert evidence in store.changes


def test_the_first_two_headers_never_depend_on_a_third(at: Scene) -> None:
    assert is_one_too_many(at.store, THIRD_HEADER.make(at).header)
    store = on_block(at.store, THIRD_HEADER.make(at))
    assert sum(entry.link.producer == DAN.peer_id for entry in store.entries.values()) == 2


def test_a_good_block_moves_the_head_by_one(at: Scene) -> None:
    moved = [change for change in on_block(at.store, at.good).changes if isinstance(change, HeadMoved)]
    name = header_hash(at.good.header)
    assert moved == [HeadMoved(name, (), (name,))]


def test_an_error_names_the_block_and_the_fault() -> None:
    error = InvalidBlock(Fault.WORK_NOT_MET, Hash(bytes.fromhex("ab" * 32)))
    assert str(error) == "work not met: block abababab"


def test_the_empty_state_has_the_empty_root() -> None:
    assert State().root == bytes(32)
