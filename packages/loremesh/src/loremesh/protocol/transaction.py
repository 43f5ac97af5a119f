"""What readers ask of a story: signed, numbered per sender, each kind with a payload of its own.

Source: docs/protocol/transactions.md.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

from loremesh.errors import Fault, InvalidTransaction, ProtocolError
from loremesh.primitives import KIB, Hash, Signature, StoryId
from loremesh.protocol.codec import U64, Bytes, PeerIdField, SignatureField, Text, decode, encode, schema
from loremesh.protocol.content.paragraph import check_paragraph
from loremesh.protocol.identity import Identity, check_peer_id, digest, verify

SUGGEST: Final = "suggest"
SUGGESTION_WORDS: Final = 60


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Suggest:
    """A reader's wish for what happens next; the same text from another sender supports it."""

    text: Annotated[str, Text(512)]


@schema(version=1, limit=4 * KIB)
@dataclass(frozen=True, slots=True)
class TransactionBody:
    """What a sender signs."""

    sender: PeerIdField
    nonce: U64
    """How many transactions of this sender the story had before."""
    kind: Annotated[str, Text(32)]
    payload: Annotated[bytes, Bytes(0, 2 * KIB)]


@schema(version=1, limit=5 * KIB)
@dataclass(frozen=True, slots=True)
class Transaction:
    """A signed wish."""

    body: TransactionBody
    signature: SignatureField


def transaction_hash(story: StoryId, body: TransactionBody) -> Hash:
    """Name a transaction; also what its sender signs."""
    return digest("transaction", story, encode(body))


def suggestion_id(story: StoryId, text: str) -> Hash:
    """Name a suggestion by its text, so that repeating it means supporting it."""
    return digest("suggestion", story, text.encode())


def sign_transaction(identity: Identity, story: StoryId, nonce: int, kind: str, payload: object) -> Transaction:
    """Make a transaction of `identity`; `payload` is the kind's own type."""
    body = TransactionBody(identity.peer_id, nonce, kind, encode(payload))
    return Transaction(body, identity.sign(transaction_hash(story, body)))


def check_transaction(story: StoryId, transaction: Transaction) -> Suggest:
    """Check all that can be said of a transaction without a state; give its payload.

    Raises:
        InvalidTransaction: With the fault; UNKNOWN_TYPE for a kind this version does not know.
    """
    return _checked(story, transaction.body, transaction.signature)


# A transaction is seen in gossip, in the mempool and in every block that competes for it; its checks are pure.
@lru_cache(maxsize=4096)
def _checked(story: StoryId, body: TransactionBody, signature: Signature) -> Suggest:
    if body.kind != SUGGEST:
        raise InvalidTransaction(Fault.UNKNOWN_TYPE, f"kind {body.kind!r}; this version knows {SUGGEST!r}")
    try:
        check_peer_id(body.sender)
        suggest = decode(Suggest, body.payload)
        check_paragraph(suggest.text, SUGGESTION_WORDS)
        verify(signature, transaction_hash(story, body), body.sender)
    except ProtocolError as error:
        raise InvalidTransaction(error.fault, error.detail) from error
    return suggest
