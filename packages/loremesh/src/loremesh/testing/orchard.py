"""Branches of valid blocks, grown where a test wants them, before any node has seen them."""

from loremesh.primitives import Hash
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.fork_choice import Store, new_store, on_block, on_replay
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.identity import Identity
from loremesh.testing.builders import block_on, parent_of
from loremesh.testing.forests import FAR_FUTURE


class Orchard:
    """Grows branches of one story; blocks come one spacing after another."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.blocks: dict[Hash, Block] = {}
        self._store = new_store(genesis, FAR_FUTURE)

    @property
    def store(self) -> Store:
        """All of it."""
        return self._store

    @property
    def root(self) -> Hash:
        """The genesis' name, which is the story's."""
        return self._store.story

    def grow(self, on: Hash, length: int, *producers: Identity, **parts: object) -> list[Block]:
        """Grow `length` blocks on block `on`, the producers taking turns; `parts` go to `block_on`."""
        grown = []
        for number in range(length):
            self._remember_state(on)
            block = block_on(self.genesis, parent_of(self._store, on), producers[number % len(producers)], **parts)  # type: ignore[arg-type]  # as block_on takes them
            on = self.add(block)
            grown.append(block)
        return grown

    def add(self, block: Block) -> Hash:
        """Take in a block made elsewhere, to grow more on it; give its name.

        Headers of one producer on one parent are taken in however many there are: of each two, some node may keep one.
        """
        self._remember_state(block.header.parent)
        self._store = on_block(self._store, block, is_kept=True)
        name = header_hash(block.header)
        self.blocks[name] = block
        return name

    def _remember_state(self, name: Hash) -> None:
        path = list[Block]()
        while name not in self._store.states:
            path.insert(0, self.blocks[name])
            name = self._store.entries[name].parent
        self._store = on_replay(self._store, tuple(path))


def name_of(block: Block) -> Hash:
    """Name a block."""
    return header_hash(block.header)
