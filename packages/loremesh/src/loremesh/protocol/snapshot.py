"""What is written down of a tree of blocks, so that a node that starts again need not judge every block anew.

Two things: of each block what its children need to know, in records of one size; and the state after one of them, as
its entries. Both are derived from the blocks, so whoever doubts them can replay.

Source: docs/protocol/fork-choice.md, "Starting again".
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import Hash, Height, Millis, PeerId, Target
from loremesh.protocol.codec import U64, HashField, PeerIdField, decode, encode, schema
from loremesh.protocol.fork_choice import Entry, Store
from loremesh.protocol.path import path_of
from loremesh.protocol.persistent import Map
from loremesh.protocol.state import Author, State, Suggestion, state_of
from loremesh.protocol.validation import Link
from loremesh.protocol.work import work_of

_RECORD: Final = struct.Struct(">32s32s39sQ32s")
"""Hash, parent, producer, time, target; height, work and the time it took follow from the parent."""


@schema(version=1, limit=128)
@dataclass(frozen=True, slots=True)
class _NonceOf:
    sender: PeerIdField
    next: U64


@schema(version=1, limit=8192)
@dataclass(frozen=True, slots=True)
class _SuggestionOf:
    name: HashField
    suggestion: Suggestion


@schema(version=1, limit=128)
@dataclass(frozen=True, slots=True)
class _AuthorOf:
    author: PeerIdField
    what: Author


_Item = _NonceOf | _SuggestionOf | _AuthorOf
_KINDS: Final[tuple[type[_Item], ...]] = (_NonceOf, _SuggestionOf, _AuthorOf)
_ITEM: Final = struct.Struct(">BI")
"""Kind, and length of what follows."""


def pack_entry(entry: Entry) -> bytes:
    """Write down a block of the tree, which is not the genesis."""
    link = entry.link
    assert link.producer is not None  # noqa: S101 - for the type checker: only a genesis may lack one
    return _RECORD.pack(link.hash, entry.parent, link.producer, link.time, link.target.to_bytes(32, "big"))


def unpack_entries(records: bytes, known: dict[Hash, Entry]) -> None:
    """Add the blocks of some records to those that are `known`, in their order.

    Raises:
        InvalidMessage: TRUNCATED, or WRONG_SHAPE: one of them does not follow a known block.
    """
    if len(records) % _RECORD.size:
        raise InvalidMessage(Fault.TRUNCATED, f"{len(records)} bytes are no records of {_RECORD.size}")
    producers: dict[PeerId, PeerId] = {}
    told, target, work = b"", Target(0), 0
    for name, before, signer, time, target_bytes in _RECORD.iter_unpack(records):
        parent = known.get(before)
        if parent is None:
            raise InvalidMessage(Fault.WRONG_SHAPE, "a block that follows none")
        if target_bytes != told:  # neighbours often share one
            told, target = target_bytes, Target(int.from_bytes(target_bytes, "big"))
            work = work_of(target)
        above = parent.link
        producer = producers.setdefault(signer, signer)  # one object for all blocks of one producer
        link = Link(name, Height(above.height + 1), producer, time, target, Millis(time - above.time))
        known[name] = Entry(link, above.hash, parent.work + work)


def encode_state(state: State) -> bytes:
    """Write down a state, entry by entry."""
    items: list[_Item] = [_NonceOf(*item) for item in state.nonces.items()]
    items += (_SuggestionOf(*item) for item in state.suggestions.items())
    items += (_AuthorOf(*item) for item in state.authors.items())
    written = bytearray()
    for item in items:
        data = encode(item)
        written += _ITEM.pack(_KINDS.index(type(item)), len(data)) + data
    return bytes(written)


def decode_state(data: bytes) -> State:
    """Read what `encode_state` has written; whether it is the state of a block, its root says.

    Raises:
        InvalidMessage: It is malformed.
    """
    nonces: dict[PeerId, int] = {}
    suggestions: dict[Hash, Suggestion] = {}
    authors: dict[PeerId, Author] = {}
    at = 0
    while at < len(data):
        if len(data) - at < _ITEM.size:
            raise InvalidMessage(Fault.TRUNCATED, "a state that ends inside an entry")
        kind, length = _ITEM.unpack_from(data, at)
        if kind >= len(_KINDS):
            raise InvalidMessage(Fault.UNKNOWN_TYPE, f"entry {kind} of a state")
        at += _ITEM.size + length
        match decode(_KINDS[kind], data[at - length : at]):
            case _NonceOf(sender, value):
                nonces[sender] = value
            case _SuggestionOf(name, suggestion):
                suggestions[name] = suggestion
            case _AuthorOf(author, what):
                authors[author] = what
    return state_of(nonces, suggestions, authors)


def on_restore(store: Store, entries: Iterable[Entry], head: Hash, state: State) -> Store:
    """Take in blocks that were all accepted once, in place of `on_block` for each of them.

    Args:
        store: As `new_store` gives it.
        entries: Parents before children; the genesis may be among them.
        head: One of them, the head at that time.
        state: After `head`; other states are replayed when they are needed.
    """
    known = {store.story: store.entries[store.story]}
    known.update((entry.link.hash, entry) for entry in entries)
    names = [head]
    while names[-1] != store.story:
        names.append(known[names[-1]].parent)
    canon = path_of(reversed(names))
    beside: dict[int, tuple[Hash, ...]] = {}
    for name, entry in known.items():
        height = entry.link.height
        if canon.get(height) != name:
            beside[height] = (*beside.get(height, ()), name)
    return store._replace(
        head=head,
        entries=Map(known),
        states=store.states.insert(head, state),
        canon=canon,
        beside=Map(beside),
    )
