"""Every message between nodes, by name. The first frame of a stream and every gossip message is an `Envelope`.

Source: docs/protocol/wire.md; type names of S0 and S1 exist as those documents spell them.
"""

from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Annotated, Final, TypeVar

from loremesh.errors import Fault, InvalidMessage, RequestRefused
from loremesh.primitives import KIB, MIB, PEER_ID_BYTES, Hash, Millis, PeerId
from loremesh.protocol.block import SignedHeader
from loremesh.protocol.codec import (
    U64,
    Bytes,
    HashField,
    HeightField,
    Int,
    Many,
    MillisField,
    PeerIdField,
    SignatureField,
    Text,
    decode,
    encode,
    schema,
)
from loremesh.protocol.identity import NO_STORY, Identity, check_peer_id, digest, verify

T = TypeVar("T")

SYNC_PROTOCOL: Final = "/loremesh/sync/1"
PEERS_PROTOCOL: Final = "/loremesh/peers/1"
MAX_FRAME: Final = MIB
INLINE_BODY: Final = 32 * KIB
"""Blocks up to this size travel inside their announcement."""


@unique
class MessageType(StrEnum):
    """What an envelope carries."""

    PEER_LIST_REQUEST = "peer-list-request"
    PEER_LIST = "peer-list"
    NOT_THE_TRACKER = "these-are-not-the-droids-you-are-looking-for"
    PEER_JOIN = "peer_join"
    PEER_LEAVE = "peer_leave"
    HEARTBEAT = "heartbeat"
    TRACKER_CLAIM = "tracker-claim"
    TRACKER_ANNOUNCEMENT = "tracker-announcement"
    BLOCK = "block"
    BLOCK_ANNOUNCEMENT = "block-announcement"
    TRANSACTION = "transaction"
    STATUS_REQUEST = "status-request"
    STATUS = "status"
    GENESIS_REQUEST = "genesis-request"
    GENESIS = "genesis"
    HEADERS_REQUEST = "headers-request"
    HEADERS = "headers"
    BLOCKS_REQUEST = "blocks-request"
    ACCOUNT_REQUEST = "account-request"
    ACCOUNT = "account"
    ACCEPTED = "accepted"
    REFUSAL = "refusal"
    LLM_REQUEST = "llm-request"
    LLM_REQUEST_WHOLE = "llm-request-whole"
    LLM_ACCEPTED = "llm-accepted"
    LLM_BUSY = "llm-busy"
    LLM_WAITING = "llm-waiting"
    LLM_ERROR = "llm-error"
    LLM_DELTA = "llm-delta"
    LLM_FINAL = "llm-final"
    VOUCHER = "voucher"
    HAND_IN = "hand-in"
    VOUCHER_ACCEPTED = "voucher-accepted"
    VOUCHER_REFUSED = "voucher-refused"
    CARD = "card"
    CARDS_REQUEST = "cards-request"
    CARDS = "cards"


@schema(version=1, limit=MAX_FRAME)
@dataclass(frozen=True, slots=True)
class Envelope:
    """Metadata and payload of one message."""

    type: Annotated[str, Text(64)]
    timestamp: MillisField
    """For logs only: no rule reads it."""
    sender: PeerIdField
    """S0's `from`: must equal the authenticated peer, or the signer of a gossip message."""
    recipient: Annotated[bytes, Bytes(0, PEER_ID_BYTES)]
    """S0's `to`: a peer id, or empty for everybody."""
    payload: Annotated[bytes, Bytes(0, MAX_FRAME - KIB)]


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Nothing:
    """The payload of what needs none."""


@schema(version=1, limit=4 * KIB)
@dataclass(frozen=True, slots=True)
class PeerCard:
    """What a node says of itself, before it signs it."""

    peer_id: PeerIdField
    addresses: Annotated[tuple[Annotated[str, Text(256)], ...], Many(8)]
    """Dialable multiaddrs."""
    roles: Annotated[tuple[Annotated[str, Text(32)], ...], Many(8)]
    models: Annotated[tuple[Annotated[str, Text(128)], ...], Many(16)]
    story: Annotated[tuple[HashField, ...], Many(1)]
    height: HeightField
    time: MillisField
    """The issuer's clock: of two cards of one peer the later one holds."""


@schema(version=1, limit=5 * KIB)
@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A signed card: it may be passed on."""

    card: PeerCard
    signature: SignatureField


@schema(version=1, limit=7 * KIB)
@dataclass(frozen=True, slots=True)
class ListedPeer:
    """A card, and where its peer has been met by whoever lists it."""

    record: PeerRecord
    reached: Annotated[tuple[Annotated[str, Text(256)], ...], Many(8)]
    """Those of the card's addresses at which the peer proved its key; of the issuer itself, all."""


@schema(version=1, limit=960 * KIB)
@dataclass(frozen=True, slots=True)
class PeerList:
    """Who is here, as the issuer knows it."""

    tracker: Annotated[tuple[PeerIdField, ...], Many(1)]
    authoritative: Annotated[int, Int(0, 1)]
    """1 from the tracker itself; 0: second-hand."""
    peers: Annotated[tuple[ListedPeer, ...], Many(128)]
    tracker_addresses: Annotated[tuple[Annotated[str, Text(256)], ...], Many(8)] = ()
    """Where the issuer has met the tracker."""


@schema(version=1, limit=960 * KIB)
@dataclass(frozen=True, slots=True)
class TrackerList:
    """The tracker's own list, before it signs it."""

    story: HashField
    head: HashField
    """The block whose tracker the issuer is."""
    view: U64
    """By which view: 0 for whoever produced that block."""
    time: MillisField
    """The issuer's clock."""
    tracker: PeerIdField
    """The issuer."""
    peers: Annotated[tuple[ListedPeer, ...], Many(128)]


@schema(version=1, limit=961 * KIB)
@dataclass(frozen=True, slots=True)
class SignedPeerList:
    """The tracker's list: whoever holds it can show who made it."""

    list: TrackerList
    signature: SignatureField


@schema(version=1, limit=256)
@dataclass(frozen=True, slots=True)
class TrackerClaim:
    """A candidate has taken the office of a tracker that is gone."""

    story: HashField
    head: HashField
    view: U64
    claimant: PeerIdField
    time: MillisField
    """The claimant's clock: of its claims only a later one is a sign of life."""


@schema(version=1, limit=384)
@dataclass(frozen=True, slots=True)
class SignedClaim:
    """A claim and its claimant's signature."""

    claim: TrackerClaim
    signature: SignatureField


@schema(version=1, limit=192)
@dataclass(frozen=True, slots=True)
class TrackerAnnouncement:
    """A tracker that has become a peer again says who follows it, and with which head."""

    story: HashField
    height: HeightField
    head: HashField
    tracker: PeerIdField


@schema(version=1, limit=INLINE_BODY + KIB)
@dataclass(frozen=True, slots=True)
class BlockAnnouncement:
    """A new block, as gossip floods it."""

    height: HeightField
    hash: HashField
    producer: PeerIdField
    timestamp: MillisField
    """The header's time."""
    body: Annotated[bytes, Bytes(0, INLINE_BODY)]
    """The encoded block when it is small; empty: fetch it."""
    header: Annotated[tuple[SignedHeader, ...], Many(1)] = ()
    """In place of a body: it shows that the work was done."""


@schema(version=1, limit=8 * KIB)
@dataclass(frozen=True, slots=True)
class Status:
    """Where a node stands."""

    story: Annotated[tuple[HashField, ...], Many(1)]
    """Empty: a pure anchor."""
    height: HeightField
    head: Annotated[tuple[HashField, ...], Many(1)]
    tips: Annotated[tuple[HashField, ...], Many(64)]
    """Tips of abandoned branches, newest first: forks are kept and served."""


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class GenesisRequest:
    """Ask for the genesis of a story."""

    story: HashField


@schema(version=1, limit=64 * KIB)
@dataclass(frozen=True, slots=True)
class GenesisAnswer:
    """The canonical bytes of a genesis."""

    data: Annotated[bytes, Bytes(1, 32 * KIB)]


@schema(version=1, limit=8 * KIB)
@dataclass(frozen=True, slots=True)
class HeadersRequest:
    """Ask for the headers from the newest block of `locator` that the other side knows up to `until`."""

    story: HashField
    locator: Annotated[tuple[HashField, ...], Many(64)]
    """Hashes from the asker's head backwards, ever further apart, the story id last."""
    until: Annotated[tuple[HashField, ...], Many(1)]
    """A block of any branch; empty: the head."""
    limit: Annotated[int, Int(1, 512)]


@schema(version=1, limit=768 * KIB)
@dataclass(frozen=True, slots=True)
class Headers:
    """Consecutive headers, oldest first; fewer than asked for: there are no more."""

    headers: Annotated[tuple[SignedHeader, ...], Many(512)]


@schema(version=1, limit=8 * KIB)
@dataclass(frozen=True, slots=True)
class BlocksRequest:
    """Ask for blocks by hash: one `block` frame each, in this order; unknown ones are left out."""

    story: HashField
    hashes: Annotated[tuple[HashField, ...], Many(128)]


@schema(version=1, limit=128)
@dataclass(frozen=True, slots=True)
class AccountRequest:
    """Ask which nonce a sender's next transaction carries."""

    story: HashField
    sender: PeerIdField


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Account:
    """The nonce, counting what waits in the answering node's mempool."""

    nonce: U64


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class TransactionAccepted:
    """The transaction waits in the answering node's mempool now."""

    hash: HashField


@schema(version=1, limit=KIB)
@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not answered, and what would be."""

    reason: Annotated[str, Text(512)]


def seal(identity: Identity, kind: MessageType, payload: object, now: int, recipient: PeerId | None = None) -> bytes:
    """Put a payload into an envelope from `identity`; gives the frame.

    Args:
        identity: The sender.
        kind: Says which type `payload` has.
        payload: A value of that type.
        now: Unix milliseconds, for the reader's logs.
        recipient: None: everybody.
    """
    return seal_bytes(identity, kind, encode(payload), now, recipient)


def seal_bytes(
    identity: Identity, kind: MessageType, payload: bytes, now: int, recipient: PeerId | None = None
) -> bytes:
    """Put a payload that is encoded already into an envelope."""
    return encode(Envelope(kind, Millis(now), identity.peer_id, recipient or b"", payload))


def unseal(frame: bytes, authenticated: PeerId, recipient: PeerId | None = None) -> tuple[MessageType, bytes]:
    """Open an envelope; give its type and the payload's bytes.

    Args:
        frame: As it came.
        authenticated: Who sent it, as the connection or the gossip signature proves.
        recipient: Us, where the message came on a stream.

    Raises:
        InvalidMessage: Not an envelope, UNKNOWN_TYPE, or WRONG_SENDER (`from` is not the sender, `to` is not us).
    """
    envelope = decode(Envelope, frame)
    try:
        kind = MessageType(envelope.type)
    except ValueError:
        raise InvalidMessage(Fault.UNKNOWN_TYPE, repr(envelope.type)) from None
    if envelope.sender != authenticated:
        raise InvalidMessage(Fault.WRONG_SENDER, "`from` is not the authenticated peer")
    if recipient is not None and envelope.recipient not in {b"", recipient}:
        raise InvalidMessage(Fault.WRONG_SENDER, "`to` is somebody else")
    return kind, envelope.payload


def expect(frame: bytes, authenticated: PeerId, kind: MessageType, cls: type[T]) -> T:
    """Open an envelope that must hold one kind of message.

    Raises:
        RequestRefused: It is a refusal; with the reason.
        InvalidMessage: As `unseal`; NOT_AS_ASKED for another kind.
    """
    found, payload = unseal(frame, authenticated)
    if found is MessageType.REFUSAL:
        raise RequestRefused(Fault.NOT_AS_ASKED, f"refused: {decode(Refusal, payload).reason}")
    if found is not kind:
        raise InvalidMessage(Fault.NOT_AS_ASKED, f"{found} instead of {kind}")
    return decode(cls, payload)


def sign_card(identity: Identity, card: PeerCard) -> PeerRecord:
    """Sign what a node says of itself."""
    return PeerRecord(card, identity.sign(_card_digest(card)))


def check_record(record: PeerRecord) -> PeerCard:
    """Check a record's signature; give the card.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    check_peer_id(record.card.peer_id)
    verify(record.signature, _card_digest(record.card), record.card.peer_id)
    return record.card


def _card_digest(card: PeerCard) -> Hash:
    return digest("peer", NO_STORY, encode(card))


def sign_list(identity: Identity, listed: TrackerList) -> SignedPeerList:
    """Sign the tracker's list."""
    return SignedPeerList(listed, identity.sign(_list_digest(listed)))


def check_list(signed: SignedPeerList) -> TrackerList:
    """Check the signature of a tracker's list, and not those of the cards in it; give the list.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    check_peer_id(signed.list.tracker)
    verify(signed.signature, _list_digest(signed.list), signed.list.tracker)
    return signed.list


def sign_claim(identity: Identity, claim: TrackerClaim) -> SignedClaim:
    """Sign a claim."""
    return SignedClaim(claim, identity.sign(_claim_digest(claim)))


def check_claim_signature(signed: SignedClaim) -> TrackerClaim:
    """Check a claim's signature; give the claim.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    check_peer_id(signed.claim.claimant)
    verify(signed.signature, _claim_digest(signed.claim), signed.claim.claimant)
    return signed.claim


def read_peer_list(kind: MessageType, payload: bytes, sender: PeerId) -> PeerList:
    """Read the answer to a request for the peer list, whoever gave it; the cards in it are unchecked.

    Args:
        kind: Of the answer.
        payload: Of the answer.
        sender: Who gave it.

    Raises:
        InvalidMessage: NOT_AS_ASKED, it is no list; WRONG_SENDER, the tracker's list from somebody else; BAD_SIGNATURE.
    """
    if kind is MessageType.NOT_THE_TRACKER:
        return decode(PeerList, payload)
    if kind is not MessageType.PEER_LIST:
        raise InvalidMessage(Fault.NOT_AS_ASKED, f"{kind} in answer to a request for the peer list")
    listed = check_list(decode(SignedPeerList, payload))
    if listed.tracker != sender:
        raise InvalidMessage(Fault.WRONG_SENDER, "the list is somebody else's")
    return PeerList((listed.tracker,), 1, listed.peers)


def _list_digest(listed: TrackerList) -> Hash:
    return digest("peer-list", listed.story, encode(listed))


def _claim_digest(claim: TrackerClaim) -> Hash:
    return digest("tracker", claim.story, encode(claim))


def topic(story: Hash, name: str) -> str:
    """Give the gossip topic of a story: `blocks`, `txs` or `peers`."""
    return f"/loremesh/{story.hex()}/{name}"
