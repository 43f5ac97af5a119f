"""Fork choice against a second, naive one: a hundred thousand random events, and every order of arrival."""

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.errors import InvalidBlock
from loremesh.primitives import Hash, Height, Millis, Signature
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.changes import Accepted, HeadMoved
from loremesh.protocol.fork_choice import (
    MAX_HEADERS_PER_PARENT,
    MAX_HELD,
    Store,
    chain,
    children,
    is_canonical,
    new_store,
    on_block,
    on_tick,
)
from loremesh.protocol.genesis import Parameters
from loremesh.protocol.work import work_of
from loremesh.testing.builders import BOB, START, block_on, identity, parent_of, resigned
from loremesh.testing.forests import FAR_FUTURE, Forest, everything_in, grow

EVE = identity("eve")
WORKED = Parameters(initial_work=16, easiest_work=2, half_life=Millis(2000))
ALONE, LINK, STATE = "bad in itself", "bad on its parent", "bad in its state"


@lru_cache
def forest(seed: int) -> Forest:
    return grow(seed, 60, WORKED if seed % 2 else Parameters(initial_work=1, easiest_work=1))


@lru_cache
def corrupted(seed: int) -> dict[Block, str]:
    """Blocks by Eve, each with the flaw that must keep it out, and blocks that build on hers."""
    chance, flawed = random.Random(seed), dict[Block, str]()
    grown = forest(seed)
    for block in grown.blocks[::3]:
        good = block_on(grown.genesis, parent_of(grown.store, block.header.parent), EVE, salt=str(chance.random()))
        flaw = chance.choice([ALONE, LINK, STATE])
        if flaw == ALONE:
            made = Block(good.header, Signature(bytes(65)), good.content, good.transactions)
        elif flaw == LINK:
            made = resigned(good, EVE, height=good.header.height + 1)
        else:
            made = resigned(good, EVE, state_root=bytes(32))
        flawed[made] = flaw
        on_hers = {"parent": header_hash(made.header), "height": made.header.height + 1}
        for nonce in range(2**16):
            child = resigned(good, EVE, **on_hers, nonce=nonce)
            if _is_worked(grown, child):
                flawed[child] = "builds on a bad block"
                break
    return flawed


def _is_worked(grown: Forest, block: Block) -> bool:
    try:
        on_block(grown.store, block)
    except InvalidBlock:
        return False
    return True


@dataclass
class Naive:
    """What fork choice must answer, without a thought for speed."""

    story: Hash
    now: int
    ahead: int
    flaws: dict[Hash, str]
    accepted: dict[Hash, int] = field(default_factory=dict)  # name: work of its chain
    waiting: dict[Hash, Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.accepted[self.story] = 0

    def take(self, name: Hash, block: Block) -> bool:
        """Take in a block; False: it is refused."""
        if self.flaws.get(name) == ALONE:
            return False
        if name in self.accepted or name in self.waiting:
            return True
        if self.verdict(name, block) == "refuse":
            return False
        self.waiting[name] = block
        self.release()
        return True

    def verdict(self, name: Hash, block: Block) -> str:
        flaw, is_due = self.flaws.get(name), block.header.time <= self.now + self.ahead
        if block.header.parent not in self.accepted:
            return "wait"
        if flaw == LINK or (flaw == STATE and is_due):
            return "refuse"
        return "accept" if is_due else "wait"

    def release(self) -> None:
        for name, block in list(self.waiting.items()):
            verdict = self.verdict(name, block) if name in self.waiting else "gone"
            if verdict == "accept":
                del self.waiting[name]
                self.accepted[name] = self.accepted[block.header.parent] + work_of(block.header.target)
                return self.release()
            if verdict == "refuse":
                self.drop(name)
        return None

    def drop(self, name: Hash) -> None:
        self.waiting.pop(name, None)
        for child, block in list(self.waiting.items()):
            if block.header.parent == name:
                self.drop(child)

    def head(self) -> Hash:
        return max(self.accepted, key=lambda name: (self.accepted[name], -int.from_bytes(name, "big")))


def run_episode(seed: int, steps: int) -> int:
    """Feed one store and the oracle the same random events and compare them after each; count the refusals."""
    chance, grown, flaws = random.Random(seed), forest(seed % 4), corrupted(seed % 4)
    pool = [(header_hash(block.header), block) for block in [*grown.blocks, *flaws]]
    by_name = {header_hash(block.header): flaw for block, flaw in flaws.items()}
    now = START
    store = new_store(grown.genesis, now)
    naive = Naive(store.story, now, grown.genesis.parameters.max_ahead, by_name)
    head, refusals = store.story, 0
    for step in range(steps):
        if chance.random() < 0.1:
            now = Millis(now + chance.randrange(3000))
            store, naive.now = on_tick(store, now), now
            naive.release()
        else:
            name, block = chance.choice(pool)
            is_watched = step % 100 == 0
            before = everything_in(store) if is_watched else {}
            try:
                after = on_block(store, block)
            except InvalidBlock:
                after, refusals = None, refusals + 1
            assert naive.take(name, block) is (after is not None)
            if is_watched:
                assert everything_in(store) == before
            store = store if after is None else after
        if len(naive.accepted) != len(store.entries) or store.changes:
            head = naive.head()
        assert store.head == head
        assert len(store.entries) == len(naive.accepted)
        assert len(store.held) + len(store.orphans) == len(naive.waiting)
    assert set(store.entries) == set(naive.accepted)
    assert set(store.held) | set(store.orphans) == set(naive.waiting)
    assert len(store.held) <= MAX_HELD
    return refusals


def test_100_000_random_events_are_answered_as_the_naive_oracle_answers_them() -> None:
    refusals = sum(run_episode(seed, 1000) for seed in range(100))
    assert refusals > 10_000


def deliver(grown: Forest, blocks: list[Block], chance: random.Random) -> Store:
    """Deliver blocks in this order, with a clock that moves between them and ends after all."""
    now = START
    store = new_store(grown.genesis, now)
    for block in blocks:
        if chance.random() < 0.3:
            now = Millis(now + chance.randrange(20_000))
            store = on_tick(store, now)
        store = on_block(store, block)
    return on_tick(store, FAR_FUTURE)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 3), chance=st.randoms(use_true_random=False))
def test_the_order_of_arrival_never_changes_the_head(seed: int, chance: random.Random) -> None:
    grown = forest(seed)
    blocks = list(grown.blocks)
    chance.shuffle(blocks)
    store = deliver(grown, blocks, chance)
    assert store.head == grown.store.head
    assert set(store.entries) == set(grown.store.entries)
    assert not store.held
    assert not store.orphans
    assert {name: state.root for name, state in store.states.items()} == {
        name: state.root for name, state in grown.store.states.items()
    }


@lru_cache
def thicket(seed: int) -> Forest:
    """A tree with many headers of one producer on one parent; an honest block is its head."""
    parameters = WORKED if seed % 2 else Parameters(initial_work=1, easiest_work=1)
    grown = grow(seed, 50, parameters, most_headers=6, producers=[BOB])
    crown = block_on(grown.genesis, parent_of(grown.store), EVE)
    return Forest(grown.genesis, (*grown.blocks, crown), on_block(grown.store, crown))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 7), chance=st.randoms(use_true_random=False))
def test_nor_does_it_with_any_number_of_headers_on_one_parent(seed: int, chance: random.Random) -> None:
    grown = thicket(seed)
    blocks = list(grown.blocks)
    chance.shuffle(blocks)
    store = deliver(grown, blocks, chance)
    assert store.head == grown.store.head
    assert set(store.entries) | set(store.surplus) == set(grown.store.entries)
    assert not store.orphans
    for name in store.surplus:  # of these nobody has built on one, and two others are kept
        entry = grown.store.entries[name]
        assert not children(grown.store, name)
        rivals = [store.entries[one].link.producer for one in children(store, entry.parent)]
        assert rivals.count(entry.link.producer) >= MAX_HEADERS_PER_PARENT


def test_such_trees_have_surplus_headers_on_which_somebody_builds() -> None:
    for seed in range(8):
        store = thicket(seed).store
        built = Counter(
            (entry.parent, entry.link.producer) for name, entry in store.entries.items() if children(store, name)
        )
        assert max(built.values()) > MAX_HEADERS_PER_PARENT


@pytest.mark.parametrize("seed", range(4))
def test_the_height_is_what_traversal_counts(seed: int) -> None:
    store = forest(seed).store
    for name, entry in store.entries.items():
        walk = list(chain(store, name))
        assert len(walk) == entry.link.height + 1
        assert walk[-1].link.hash == store.story
        assert [step.link.height for step in walk] == list(range(entry.link.height, -1, -1))
        assert entry.work == sum(work_of(step.link.target) for step in walk if not step.is_genesis)


@pytest.mark.parametrize("seed", [0, 2])
def test_at_equal_difficulty_the_greatest_length_wins(seed: int) -> None:
    store = forest(seed).store
    assert store.tip.link.height == max(entry.link.height for entry in store.entries.values())


@pytest.mark.parametrize("seed", [1, 3])
def test_the_head_has_the_most_work_and_of_equals_the_lowest_hash(seed: int) -> None:
    store = forest(seed).store
    most = max(entry.work for entry in store.entries.values())
    assert store.head == min(name for name, entry in store.entries.items() if entry.work == most)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 3), chance=st.randoms(use_true_random=False))
def test_the_changes_of_the_head_tell_the_whole_canon(seed: int, chance: random.Random) -> None:
    grown = forest(seed)
    blocks = list(grown.blocks)
    chance.shuffle(blocks)
    store = new_store(grown.genesis, FAR_FUTURE)
    canon, accepted = [store.story], [store.story]
    for block in blocks:
        store = on_block(store, block)
        for change in store.changes:
            if isinstance(change, Accepted):
                accepted.append(change.hash)
            if isinstance(change, HeadMoved):
                for name in change.abandoned:
                    assert canon.pop() == name
                canon.extend(change.adopted)
                assert canon[-1] == change.head
        assert canon == [entry.link.hash for entry in chain(store, store.head)][::-1]
        assert canon == [store.canon[height] for height in range(len(canon))]
        assert len(store.canon) == len(canon)
    assert sorted(accepted) == sorted(store.entries)


@pytest.mark.parametrize("seed", range(4))
def test_children_tips_and_what_is_beside_the_canon_say_the_same_as_the_entries(seed: int) -> None:
    store = forest(seed).store
    for name, entry in store.entries.items():
        assert is_canonical(store, name) or name in store.beside[entry.link.height]
        assert is_canonical(store, name) is (store.canon.get(Height(entry.link.height)) == name)
        if not entry.is_genesis:
            assert name in children(store, entry.parent)
    assert set(store.tips) == {name for name in store.entries if not children(store, name)}
