"""Random trees of valid blocks, grown from a seed, and a way to see whether anything in a store has changed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loremesh.primitives import Hash, Millis
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.fork_choice import MAX_HEADERS_PER_PARENT, Store, children, new_store, on_block
from loremesh.protocol.genesis import Genesis, Parameters
from loremesh.protocol.identity import Identity
from loremesh.protocol.validation import earliest_time
from loremesh.testing.builders import ANN, BOB, CAT, DAN, EASY, START, block_on, parent_of, small_genesis

PRODUCERS: Final = (ANN, BOB, CAT, DAN)
FAR_FUTURE: Final = Millis(START + 10**9)
"""Later than every block of a forest."""
_DELAYS: Final = (0, 1, 500, 2000, 4000, 20_000)


@dataclass(frozen=True, slots=True)
class Forest:
    """Every block of a tree, parents before children, and a store that has taken in all of them."""

    genesis: Genesis
    blocks: tuple[Block, ...]
    store: Store


def grow(
    seed: int,
    size: int,
    parameters: Parameters = EASY,
    *,
    most_headers: int = MAX_HEADERS_PER_PARENT,
    producers: Sequence[Identity] = PRODUCERS,
) -> Forest:
    """Grow a tree of `size` valid blocks with forks and equivocations.

    Args:
        seed: Another seed, another tree.
        size: Below 100, so that no state is forgotten.
        parameters: With more work than the default, branches of one length differ in difficulty.
        most_headers: Of one producer on one parent; the store takes in all.
        producers: Who signs the blocks.
    """
    chance = random.Random(seed)  # noqa: S311 - a test wants the same tree again
    genesis = small_genesis(parameters, title=f"Forest {seed}")
    store = new_store(genesis, FAR_FUTURE)
    names, blocks = [store.head], list[Block]()
    while len(blocks) < size:
        # Mostly near the newest block, so that branches grow long enough to compete.
        name = chance.choice(names[-6:]) if chance.random() < 0.8 else chance.choice(names)  # noqa: PLR2004 - a share
        block = _grown(chance, store, name, chance.choice(producers), most_headers)
        if block is not None:
            store = on_block(store, block, is_kept=True)
            blocks.append(block)
            names.append(header_hash(block.header))
    return Forest(genesis, tuple(blocks), store)


def _grown(chance: random.Random, store: Store, name: Hash, producer: Identity, most_headers: int) -> Block | None:
    parent = parent_of(store, name)
    rivals = [child for child in children(store, name) if store.entries[child].link.producer == producer.peer_id]
    if len(rivals) >= most_headers:
        return None
    time = earliest_time(store.genesis, parent.link, producer.peer_id) + chance.choice(_DELAYS)
    return block_on(store.genesis, parent, producer, time=time, salt=str(chance.random()))


def everything_in(store: Store) -> dict[str, object]:
    """Copy all that a store knows into plain values: equal before and after, and nothing has changed."""
    return {name: dict(value.items()) if hasattr(value, "items") else value for name, value in store._asdict().items()}
