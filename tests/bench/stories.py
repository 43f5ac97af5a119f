"""Chains of valid blocks to measure with: the same in every run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from loremesh.primitives import Hash, Millis, PeerId, Signature
from loremesh.protocol.block import Block, header_hash
from loremesh.protocol.codec import encode
from loremesh.protocol.fork_choice import Store, new_store, on_block
from loremesh.protocol.genesis import Genesis
from loremesh.protocol.identity import Identity
from loremesh.protocol.production import Parent
from loremesh.protocol.state import State
from loremesh.protocol.transaction import Transaction, transaction_hash
from loremesh.protocol.validation import genesis_link, link_of, state_after
from loremesh.testing.builders import ANN, BOB, CAT, DAN, block_on, parent_of, small_genesis, suggestion

BLOCKS: Final = 200
LATER: Final = Millis(2**62)
"""A clock so late that no block is held."""

_PROSE: Final = (
    "the lamp burned low while gulls argued over the harbour wall and nobody dared to answer when a bell under "
    "the water began to count its patient hours against rain that came slowly over the reef"
)
_WORDS: Final = _PROSE.split()
_PEOPLE: Final = (ANN, BOB, CAT, DAN)


@dataclass(frozen=True, slots=True)
class Sample:
    """A block on the wire, the store just before it, and the signatures whoever takes it in must check."""

    wire: bytes
    block: Block
    before: Store
    signatures: tuple[tuple[Signature, Hash, PeerId], ...]


def paragraph_of(words: int, number: int) -> str:
    """Give a paragraph of so many words, different for every number."""
    rest = (_WORDS[(number * 7 + place * 5 + place * place) % len(_WORDS)] for place in range(words - 1))
    return " ".join([f"Chapter{number:06}", *rest]) + "."


def chain(words: int, transactions: int, blocks: int = BLOCKS) -> list[Sample]:
    """Give a chain whose every block has a paragraph of so many words and so many new suggestions."""
    genesis = small_genesis()
    store = new_store(genesis, LATER)
    nonces = dict.fromkeys((person.peer_id for person in _PEOPLE), 0)
    samples = []
    for number in range(blocks):
        wishes = []
        for place in range(transactions):
            sender = _PEOPLE[place % len(_PEOPLE)]
            wish = f"Let keeper {number} of door {place} walk out over the {_WORDS[number % len(_WORDS)]} at dawn."
            wishes.append(suggestion(sender, genesis, wish, nonces[sender.peer_id]))
            nonces[sender.peer_id] += 1
        producer = _PEOPLE[number % len(_PEOPLE)]
        text = paragraph_of(words, number)
        block = block_on(genesis, parent_of(store), producer, text=text, transactions=tuple(wishes))
        samples.append(Sample(encode(block), block, store, _signatures(block)))
        store = on_block(store, block)
    return samples


def long_chain(genesis: Genesis, blocks: int) -> Iterator[Block]:
    """Give one after the other the blocks of a chain with short paragraphs; only its tip is kept."""
    link, state = genesis_link(genesis), State()
    for number in range(blocks):
        text = paragraph_of(17, number)
        block = block_on(genesis, Parent(link, state), _PEOPLE[number % len(_PEOPLE)], text=text)
        header = block.header
        link, state = link_of(header, link), state_after(header.story, block, state, header_hash(header))
        yield block


def signer_of(block: Block) -> Identity:
    """Give the identity that produced a block of `chain`."""
    return next(person for person in _PEOPLE if person.peer_id == block.header.producer)


def _signatures(block: Block) -> tuple[tuple[Signature, Hash, PeerId], ...]:
    def of_transaction(transaction: Transaction) -> tuple[Signature, Hash, PeerId]:
        name = transaction_hash(block.header.story, transaction.body)
        return transaction.signature, name, transaction.body.sender

    own = (block.signature, header_hash(block.header), block.header.producer)
    return (own, *map(of_transaction, block.transactions))
