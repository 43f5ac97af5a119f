"""What a chain of blocks amounts to: nonces, open suggestions and authors, under one root.

Every entry lives twice: in a typed persistent map that rules read, and by its hash in a Merkle map whose root a block
commits to. Both cost only what a block touches.

Source: docs/protocol/state.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final, NamedTuple

from loremesh.primitives import KIB, Hash, Height, PeerId
from loremesh.protocol.codec import U64, HeightField, Many, PeerIdField, Text, encode, schema
from loremesh.protocol.merkle import MerkleMap
from loremesh.protocol.persistent import Map

MAX_OPEN_SUGGESTIONS: Final = 1000
MAX_SUPPORTERS: Final = 64


@schema(version=1, limit=8 * KIB)
@dataclass(frozen=True, slots=True)
class Suggestion:
    """A wish that no paragraph has taken up yet."""

    text: Annotated[str, Text(512)]
    opened_at: HeightField
    supporters: Annotated[tuple[PeerIdField, ...], Many(MAX_SUPPORTERS)]
    """Everybody who sent this text, the first sender first."""


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Author:
    """What one author has in the canon."""

    paragraphs: U64
    last_height: HeightField


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class _Nonce:
    next: U64


class State(NamedTuple):
    """The state after a block. Compare states by `root`."""

    nonces: Map[PeerId, int] = Map()
    suggestions: Map[Hash, Suggestion] = Map()
    authors: Map[PeerId, Author] = Map()
    tree: MerkleMap = MerkleMap()

    @property
    def root(self) -> Hash:
        """The Merkle root that a header's `state_root` names."""
        return self.tree.root

    def nonce(self, sender: PeerId) -> int:
        """Tell the nonce that `sender`'s next transaction must carry."""
        return self.nonces.get(sender) or 0


def with_nonce(state: State, sender: PeerId, value: int) -> State:
    """Give the state in which `sender`'s next nonce is `value`."""
    tree = state.tree.put(b"nonce/" + sender, encode(_Nonce(value)))
    return State(state.nonces.insert(sender, value), state.suggestions, state.authors, tree)


def with_suggestion(state: State, name: Hash, suggestion: Suggestion) -> State:
    """Give the state in which `suggestion` is open as it stands here."""
    tree = state.tree.put(b"suggestion/" + name, encode(suggestion))
    return State(state.nonces, state.suggestions.insert(name, suggestion), state.authors, tree)


def without_suggestion(state: State, name: Hash) -> State:
    """Give the state in which a suggestion is closed."""
    tree = state.tree.remove(b"suggestion/" + name)
    return State(state.nonces, state.suggestions.remove(name), state.authors, tree)


def with_paragraph_by(state: State, author: PeerId, height: Height) -> State:
    """Give the state in which `author` has one more paragraph."""
    before = state.authors.get(author)
    after = Author(before.paragraphs + 1 if before else 1, height)
    tree = state.tree.put(b"author/" + author, encode(after))
    return State(state.nonces, state.suggestions, state.authors.insert(author, after), tree)


def state_of(
    nonces: Mapping[PeerId, int], suggestions: Mapping[Hash, Suggestion], authors: Mapping[PeerId, Author]
) -> State:
    """Give the state with these entries."""
    tree = MerkleMap()
    for sender, value in nonces.items():
        tree = tree.put(b"nonce/" + sender, encode(_Nonce(value)))
    for name, suggestion in suggestions.items():
        tree = tree.put(b"suggestion/" + name, encode(suggestion))
    for author, what in authors.items():
        tree = tree.put(b"author/" + author, encode(what))
    return State(Map(nonces), Map(suggestions), Map(authors), tree)
