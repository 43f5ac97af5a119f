"""Blocks: a signed header, one piece of content with its birth certificate, and the transactions it takes in.

Source: docs/protocol/block.md.
"""

from dataclasses import dataclass
from typing import Annotated, Final

from loremesh.primitives import KIB, Hash
from loremesh.protocol.codec import (
    U64,
    HashField,
    HeightField,
    Many,
    MillisField,
    PeerIdField,
    SignatureField,
    TargetField,
    Text,
    encode,
    schema,
)
from loremesh.protocol.identity import digest
from loremesh.protocol.llm import SignedServing
from loremesh.protocol.merkle import list_root
from loremesh.protocol.transaction import Transaction, transaction_hash

PARAGRAPH: Final = "paragraph"
MAX_BLOCK_BYTES: Final = 256 * KIB


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Header:
    """What is signed, linked and worked for."""

    story: HashField
    height: HeightField
    parent: HashField
    producer: PeerIdField
    """Also the tracker of the next round: S0's `tracker_id`."""
    time: MillisField
    target: TargetField
    nonce: U64
    content_root: HashField
    transaction_root: HashField
    state_root: HashField
    """Root of the state *after* this block."""


@schema(version=1, limit=8 * KIB)
@dataclass(frozen=True, slots=True)
class BirthCertificate:
    """Who wrote the text, with what, and out of what. Attributed, never proved."""

    author: PeerIdField
    model: Annotated[str, Text(128)]
    prompt_digest: HashField
    output_digest: HashField
    """SHA-256 of the text in UTF-8."""
    suggestions: Annotated[tuple[HashField, ...], Many(8)]
    """Ids of the open suggestions that the prompt contained."""
    serving: Annotated[tuple[SignedServing, ...], Many(1)]
    """The word of an executor that it served this text; empty: the author's own backend wrote it, as it says."""


@schema(version=1, limit=16 * KIB)
@dataclass(frozen=True, slots=True)
class Content:
    """One piece of the story."""

    kind: Annotated[str, Text(32)]
    text: Annotated[str, Text(4 * KIB)]
    certificate: BirthCertificate


@schema(version=1, limit=MAX_BLOCK_BYTES)
@dataclass(frozen=True, slots=True)
class Block:
    """A header with its signature, and the body the header's roots commit to."""

    header: Header
    signature: SignatureField
    content: Content
    transactions: Annotated[tuple[Transaction, ...], Many(256)]


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class SignedHeader:
    """A header on its own, as sync sends it ahead of the bodies."""

    header: Header
    signature: SignatureField


def header_hash(header: Header) -> Hash:
    """Name a block; also what its producer signs."""
    return digest("block", header.story, encode(header))


def content_root(story: Hash, content: Content) -> Hash:
    """Commit to a content."""
    return digest("content", story, encode(content))


def transaction_root(story: Hash, transactions: tuple[Transaction, ...]) -> Hash:
    """Commit to transactions in their order, signatures included."""
    return list_root(
        [transaction_hash(story, transaction.body) + transaction.signature for transaction in transactions]
    )
