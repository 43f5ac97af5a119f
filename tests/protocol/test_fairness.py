"""Equal miners write equal shares: 300 rounds under the real rules, in virtual time."""

import random
from collections import Counter
from itertools import pairwise

from loremesh.primitives import Millis, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.fork_choice import Store, chain, new_store, on_block, on_tick
from loremesh.protocol.genesis import Parameters
from loremesh.protocol.identity import Identity
from loremesh.protocol.validation import earliest_time
from loremesh.testing.builders import block_on, parent_of, small_genesis
from loremesh.testing.forests import PRODUCERS

ROUNDS = 300
CRITICAL = 11.345
"""Chi-square with three degrees of freedom exceeds this with a chance of 1 %."""


def race(seed: int, rounds: int, speeds: dict[Identity, float]) -> Store:
    """Let miners race: each draws how long it searches, and whoever is done first publishes.

    Args:
        seed: Of the draws.
        rounds: Blocks of the canon.
        speeds: How fast each miner is; 1.0 finds a block in 9 seconds on average.
    """
    chance = random.Random(seed)
    genesis = small_genesis(Parameters(initial_work=1, easiest_work=1))
    store = new_store(genesis, genesis.time)
    while store.tip.link.height < rounds:
        parent = parent_of(store)
        finished: list[tuple[Millis, Identity]] = []
        for miner, speed in speeds.items():
            found = parent.link.time + round(chance.expovariate(speed / 9000))
            allowed = earliest_time(genesis, parent.link, miner.peer_id)
            finished.append((Millis(max(found, allowed)), miner))
        first = min(time for time, _ in finished)
        # Whoever is done in the same millisecond publishes too: that is a fork, and fork choice decides.
        blocks: list[Block] = [block_on(genesis, parent, miner, time=time) for time, miner in finished if time == first]
        for block in blocks:
            store = on_block(on_tick(store, first), block)
    return store


def shares(store: Store) -> Counter[PeerId]:
    return Counter(entry.link.producer for entry in chain(store, store.head) if entry.link.producer is not None)


def chi_square(counts: Counter[PeerId], miners: int) -> float:
    expected = counts.total() / miners
    seen = [*counts.values(), *[0] * (miners - len(counts))]
    return sum((count - expected) ** 2 / expected for count in seen)


def test_over_300_rounds_no_equal_miners_share_is_beyond_chance() -> None:
    store = race(1, ROUNDS, dict.fromkeys(PRODUCERS, 1.0))
    counts = shares(store)
    assert counts.total() == ROUNDS
    assert chi_square(counts, len(PRODUCERS)) < CRITICAL


def test_a_faster_miner_would_have_been_noticed() -> None:
    speeds = dict.fromkeys(PRODUCERS, 1.0) | {PRODUCERS[0]: 4.0}
    assert chi_square(shares(race(1, ROUNDS, speeds)), len(PRODUCERS)) > CRITICAL


def test_nobody_writes_two_paragraphs_in_a_row_unless_alone_for_long() -> None:
    store = race(2, ROUNDS, dict.fromkeys(PRODUCERS, 1.0))
    canon = list(chain(store, store.head))[::-1]
    for before, entry in pairwise(canon):
        if before.link.producer == entry.link.producer:
            assert entry.link.time - before.link.time >= store.genesis.parameters.solo_after


def test_a_miner_alone_goes_on_at_the_slower_pace() -> None:
    store = race(3, 10, {PRODUCERS[0]: 1000.0})
    spans = [entry.link.took for entry in chain(store, store.head)][:-2]
    assert set(spans) == {store.genesis.parameters.solo_after}
