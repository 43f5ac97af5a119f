"""The mempool: what readers want to happen next, bounded, and picked by support.

Source: docs/protocol/transactions.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from loremesh.errors import Fault, InvalidTransaction, ProtocolError
from loremesh.primitives import Hash, Height, Millis, PeerId, StoryId
from loremesh.protocol.codec import encode
from loremesh.protocol.persistent import Map
from loremesh.protocol.state import State
from loremesh.protocol.state_transition import apply_transaction
from loremesh.protocol.transaction import Transaction, check_transaction, suggestion_id, transaction_hash


@dataclass(frozen=True, slots=True)
class Pooled:
    """A transaction that waits for a block."""

    transaction: Transaction
    suggestion: Hash
    arrived: Millis
    """By the local clock."""


@dataclass(frozen=True, slots=True)
class Mempool:
    """Waiting transactions of one story."""

    story: StoryId
    capacity: int = 5000
    quota: int = 16
    """Most waiting transactions of one sender."""
    lifetime: Millis = Millis(3_600_000)
    waiting: Map[Hash, Pooled] = field(default_factory=Map)
    of_sender: Map[PeerId, tuple[Hash, ...]] = field(default_factory=Map)


def add(pool: Mempool, transaction: Transaction, state: State, now: Millis) -> Mempool:
    """Take in a transaction.

    Args:
        pool: Stays as it is.
        transaction: From a reader or from gossip; checked here.
        state: At the head, for the sender's nonce.
        now: The local clock.

    Raises:
        InvalidTransaction: Bad in itself; DUPLICATE; WRONG_NONCE (used up, or further ahead than the quota);
            QUOTA (the sender's share, or the pool, is full: try again after the next block).
    """
    payload = check_transaction(pool.story, transaction)
    name, sender = transaction_hash(pool.story, transaction.body), transaction.body.sender
    mine = pool.of_sender.get(sender) or ()
    if name in pool.waiting:
        raise InvalidTransaction(Fault.DUPLICATE, "waiting already")
    expected = state.nonce(sender)
    if not expected <= transaction.body.nonce < expected + pool.quota:
        raise InvalidTransaction(Fault.WRONG_NONCE, f"{transaction.body.nonce}, the next is {expected}")
    if any(pool.waiting[other].transaction.body.nonce == transaction.body.nonce for other in mine):
        raise InvalidTransaction(Fault.DUPLICATE, f"another one with nonce {transaction.body.nonce} is waiting")
    if len(mine) >= pool.quota:
        raise InvalidTransaction(Fault.QUOTA, f"{pool.quota} of this sender are waiting")
    if len(pool.waiting) >= pool.capacity:
        raise InvalidTransaction(Fault.QUOTA, f"{pool.capacity} transactions are waiting")
    pooled = Pooled(transaction, suggestion_id(pool.story, payload.text), now)
    return replace(
        pool, waiting=pool.waiting.insert(name, pooled), of_sender=pool.of_sender.insert(sender, (*mine, name))
    )


def remove(pool: Mempool, names: Iterable[Hash]) -> Mempool:
    """Let transactions go; unknown ones are passed over."""
    waiting, of_sender = pool.waiting, pool.of_sender
    for name in names:
        pooled = waiting.get(name)
        if pooled is None:
            continue
        waiting = waiting.remove(name)
        sender = pooled.transaction.body.sender
        rest = tuple(other for other in of_sender[sender] if other != name)
        of_sender = of_sender.insert(sender, rest) if rest else of_sender.remove(sender)
    return replace(pool, waiting=waiting, of_sender=of_sender)


def settle(pool: Mempool, state: State, now: Millis) -> Mempool:
    """Let go of what expired and of what the head's state has overtaken."""
    gone = [
        name
        for name, pooled in pool.waiting.items()
        if now - pooled.arrived > pool.lifetime
        or pooled.transaction.body.nonce < state.nonce(pooled.transaction.body.sender)
    ]
    return remove(pool, gone)


def next_nonce(pool: Mempool, state: State, sender: PeerId) -> int:
    """Give the nonce for a sender's next transaction, counting those that wait."""
    nonce = state.nonce(sender)
    taken = {pool.waiting[name].transaction.body.nonce for name in pool.of_sender.get(sender) or ()}
    while nonce in taken:
        nonce += 1
    return nonce


def select(
    pool: Mempool, state: State, height: Height, *, most: int, most_bytes: int
) -> tuple[tuple[Transaction, ...], State]:
    """Choose transactions for a block: by support, then by age, each sender's in order of nonce.

    A transaction that the state refuses is passed over and stays in the pool.

    Args:
        pool: Where they wait.
        state: Of the block's parent.
        height: Of the block.
        most: Most transactions.
        most_bytes: Most bytes of all of them together.

    Returns:
        The chosen, in the order they go into the block, and the state after them.
    """
    support: dict[Hash, set[PeerId]] = {}
    for pooled in pool.waiting.values():
        support.setdefault(pooled.suggestion, set()).add(pooled.transaction.body.sender)
    for name, backers in support.items():
        known = state.suggestions.get(name)
        backers.update(known.supporters if known else ())
    chosen: list[Transaction] = []
    used = 0
    candidates = sorted(
        pool.waiting.items(), key=lambda item: (-len(support[item[1].suggestion]), item[1].arrived, item[0])
    )
    waiting = [pooled.transaction for _, pooled in candidates]
    # A pass takes what is next in its sender's order; taking one may make another the next.
    progress = True
    while progress and len(chosen) < most:
        progress = False
        later: list[Transaction] = []
        for transaction in waiting:
            body = transaction.body
            if body.nonce > state.nonce(body.sender):
                later.append(transaction)
                continue
            size = len(encode(transaction))
            if len(chosen) >= most or used + size > most_bytes:
                continue
            try:
                state = apply_transaction(state, pool.story, height, transaction)
            except ProtocolError:
                continue
            chosen.append(transaction)
            used += size
            progress = True
        waiting = later
    return tuple(chosen), state
