"""A burst over real connections: a thousand blocks published at once by one of five nodes end at all of them."""

from collections.abc import Callable

from loremesh.testing.builders import ANN, EASY, small_genesis
from loremesh.testing.burst import publish_burst
from loremesh.testing.memory_disk import MemoryDisk
from loremesh.testing.orchard import Orchard

GENESIS = small_genesis(EASY)
BLOCKS = 1000
NODES = 5


async def test_a_thousand_blocks_published_at_once_end_at_five_real_nodes(
    record_property: Callable[[str, object], None],
) -> None:
    orchard = Orchard(GENESIS)
    blocks = orchard.grow(orchard.root, BLOCKS, ANN)
    burst = await publish_burst(GENESIS, ANN, blocks, [MemoryDisk() for _ in range(NODES)])
    record_property("seconds", round(burst.seconds, 1))
    assert burst.kept == (BLOCKS,) * NODES
    assert not burst.rejected
