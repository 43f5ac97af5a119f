"""The mempool: bounded, fair to its senders, and picked by what most readers want."""

from dataclasses import replace

import pytest

from loremesh.errors import Fault, InvalidTransaction
from loremesh.primitives import Hash, Height, Millis, Signature
from loremesh.protocol.codec import encode
from loremesh.protocol.genesis import story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.mempool import Mempool, add, next_nonce, remove, select, settle
from loremesh.protocol.state import State, with_nonce
from loremesh.protocol.state_transition import apply_transaction
from loremesh.protocol.transaction import Transaction, TransactionBody, transaction_hash
from loremesh.testing.builders import ANN, BOB, CAT, DAN, START, identity, small_genesis, suggestion

GENESIS = small_genesis()
STORY = story_id(GENESIS)
EMPTY = State()
HEIGHT = Height(1)


def wish(sender: Identity, text: str, nonce: int = 0) -> Transaction:
    return suggestion(sender, GENESIS, text, nonce)


def name(transaction: Transaction) -> Hash:
    return transaction_hash(STORY, transaction.body)


def pool_of(*transactions: Transaction, pool: Mempool | None = None) -> Mempool:
    """Give the pool that took these in, one second apart."""
    pool = Mempool(STORY) if pool is None else pool
    for second, transaction in enumerate(transactions):
        pool = add(pool, transaction, EMPTY, Millis(START + 1000 * second))
    return pool


def refused(pool: Mempool, transaction: Transaction, state: State = EMPTY) -> Fault:
    before = dict(pool.waiting.items())
    with pytest.raises(InvalidTransaction) as refusal:
        add(pool, transaction, state, START)
    assert dict(pool.waiting.items()) == before
    return refusal.value.fault


def chosen(pool: Mempool, state: State = EMPTY, most: int = 64, most_bytes: int = 10**6) -> list[Transaction]:
    return list(select(pool, state, HEIGHT, most=most, most_bytes=most_bytes)[0])


def test_a_transaction_is_checked_before_it_waits() -> None:
    good = wish(ANN, "Rain.")
    pool = Mempool(STORY)
    assert refused(pool, replace(good, signature=Signature(bytes(65)))) is Fault.BAD_SIGNATURE
    assert refused(pool, wish(ANN, "")) is Fault.EMPTY_TEXT
    assert refused(pool, wish(ANN, "two\nlines")) is Fault.NOT_ONE_PARAGRAPH
    assert refused(pool, wish(ANN, " ".join(["word"] * 61))) is Fault.TOO_MANY_WORDS
    body = TransactionBody(ANN.peer_id, 0, "wish", good.body.payload)
    assert refused(pool, Transaction(body, ANN.sign(transaction_hash(STORY, body)))) is Fault.UNKNOWN_TYPE
    other = suggestion(ANN, small_genesis(title="Another"), "Rain.")
    assert refused(pool, other) is Fault.BAD_SIGNATURE
    assert name(good) in pool_of(good).waiting


def test_the_same_transaction_or_another_with_its_nonce_does_not_wait_twice() -> None:
    pool = pool_of(wish(ANN, "Rain."))
    for transaction, said in (
        (wish(ANN, "Rain."), "waiting already"),
        (wish(ANN, "Snow."), "another one with nonce 0"),
    ):
        with pytest.raises(InvalidTransaction, match=said) as refusal:
            add(pool, transaction, EMPTY, START)
        assert refusal.value.fault is Fault.DUPLICATE


def test_a_nonce_used_up_or_further_ahead_than_the_quota_is_refused() -> None:
    pool, state = Mempool(STORY, quota=4), with_nonce(EMPTY, ANN.peer_id, 3)
    assert refused(pool, wish(ANN, "Rain.", 2), state) is Fault.WRONG_NONCE
    assert refused(pool, wish(ANN, "Rain.", 7), state) is Fault.WRONG_NONCE
    for nonce in (3, 6):
        assert add(pool, wish(ANN, "Rain.", nonce), state, START).waiting


def test_a_sender_has_a_quota_and_the_pool_a_capacity() -> None:
    pool = pool_of(*(wish(ANN, f"Wish {nonce}.", nonce) for nonce in range(3)), pool=Mempool(STORY, quota=3))
    ahead = with_nonce(EMPTY, ANN.peer_id, 1)  # a block took one of hers that still waits here
    assert refused(pool, wish(ANN, "More.", 3), ahead) is Fault.QUOTA
    assert add(pool, wish(BOB, "Rain."), EMPTY, START).waiting
    full = pool_of(wish(ANN, "Rain."), wish(BOB, "Rain."), pool=Mempool(STORY, capacity=2))
    assert refused(full, wish(CAT, "Rain.")) is Fault.QUOTA


def test_what_waited_too_long_or_was_overtaken_goes() -> None:
    old, new = wish(ANN, "Rain."), wish(BOB, "Snow.")
    pool = add(add(Mempool(STORY), old, EMPTY, START), new, EMPTY, Millis(START + 1000))
    assert set(settle(pool, EMPTY, Millis(START + 3_600_000)).waiting) == {name(old), name(new)}
    assert set(settle(pool, EMPTY, Millis(START + 3_600_001)).waiting) == {name(new)}
    overtaken = settle(pool, with_nonce(EMPTY, BOB.peer_id, 1), START)
    assert set(overtaken.waiting) == {name(old)}
    assert set(overtaken.of_sender) == {ANN.peer_id}


def test_most_wanted_first_then_oldest_first() -> None:
    first, second = wish(ANN, "Snow."), wish(BOB, "Rain.")
    third, fourth = wish(CAT, "Rain."), wish(DAN, "A storm.")
    assert chosen(pool_of(first, second, third, fourth)) == [second, third, first, fourth]


def test_support_in_the_state_counts_and_one_sender_counts_once() -> None:
    state = apply_transaction(EMPTY, STORY, HEIGHT, wish(DAN, "Rain."))
    state = apply_transaction(state, STORY, HEIGHT, wish(identity("eva"), "Rain."))
    snow, also_snow, rain = wish(ANN, "Snow."), wish(BOB, "Snow."), wish(CAT, "Rain.")
    assert chosen(pool_of(snow, also_snow, rain), state) == [rain, snow, also_snow]


def test_a_senders_transactions_go_in_the_order_of_their_nonces() -> None:
    later, sooner = wish(ANN, "Rain.", 1), wish(ANN, "Snow.", 0)
    popular = wish(BOB, "Rain.")
    assert chosen(pool_of(later, popular, sooner)) == [popular, sooner, later]
    assert chosen(pool_of(later)) == []


@pytest.mark.parametrize("most", [0, 1, 2, 5, 64])
def test_no_more_are_chosen_than_a_block_may_carry(most: int) -> None:
    pool = pool_of(*(wish(ANN, f"Wish {nonce}.", nonce) for nonce in range(10)))
    assert len(chosen(pool, most=most)) == min(most, 10)


@pytest.mark.parametrize("most_bytes", [0, 150, 200, 700, 1500])
def test_no_more_bytes_are_chosen_than_a_block_has_room_for(most_bytes: int) -> None:
    pool = pool_of(*(wish(person, f"Wish of {person}.") for person in (ANN, BOB, CAT, DAN)))
    taken = [len(encode(transaction)) for transaction in chosen(pool, most_bytes=most_bytes)]
    assert sum(taken) <= most_bytes
    assert len(taken) == min(4, most_bytes // max([*taken, 190]))


def test_what_the_state_refuses_is_passed_over_and_stays() -> None:
    state = apply_transaction(EMPTY, STORY, HEIGHT, wish(ANN, "Rain."))
    again, fine = wish(ANN, "Rain.", 1), wish(BOB, "Snow.")
    pool = add(add(Mempool(STORY), again, state, START), fine, state, START)
    assert chosen(pool, state) == [fine]
    assert name(again) in pool.waiting


def test_the_state_after_the_chosen_is_the_one_that_applying_them_gives() -> None:
    pool = pool_of(wish(ANN, "Rain."), wish(BOB, "Rain."), wish(ANN, "Snow.", 1))
    transactions, after = select(pool, EMPTY, HEIGHT, most=64, most_bytes=10**6)
    state = EMPTY
    for transaction in transactions:
        state = apply_transaction(state, STORY, HEIGHT, transaction)
    assert after.root == state.root
    assert len(transactions) == 3


def test_a_lost_blocks_transactions_can_return() -> None:
    rain, snow = wish(ANN, "Rain."), wish(ANN, "Snow.", 1)
    pool = pool_of(rain, snow)
    won = apply_transaction(EMPTY, STORY, HEIGHT, rain)
    settled = settle(pool, won, START)
    assert set(settled.waiting) == {name(snow)}
    # The block that carried it is abandoned: the state is the old one again.
    again = add(settled, rain, EMPTY, START)
    assert set(again.waiting) == {name(rain), name(snow)}
    assert chosen(again) == [rain, snow]


def test_the_next_nonce_counts_what_waits_and_fills_gaps() -> None:
    pool, state = pool_of(wish(ANN, "Rain."), wish(ANN, "Snow.", 2)), EMPTY
    assert next_nonce(pool, state, ANN.peer_id) == 1
    assert next_nonce(pool, state, BOB.peer_id) == 0
    assert next_nonce(pool, with_nonce(state, ANN.peer_id, 2), ANN.peer_id) == 3


def test_removing_unknown_transactions_does_nothing() -> None:
    pool = pool_of(wish(ANN, "Rain."))
    assert set(remove(pool, [Hash(bytes(32))]).waiting) == set(pool.waiting)
    assert not remove(pool, list(pool.waiting)).of_sender
