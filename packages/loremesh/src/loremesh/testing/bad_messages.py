"""One message for every rule of conversation that a peer can break: in gossip, as a call, and as an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from loremesh.errors import Fault
from loremesh.primitives import MIB, Hash, Height, Millis, PeerId, Signature
from loremesh.protocol.block import Block, SignedHeader, header_hash
from loremesh.protocol.codec import encode
from loremesh.protocol.identity import Identity
from loremesh.protocol.wire import (
    PEERS_PROTOCOL,
    SYNC_PROTOCOL,
    BlocksRequest,
    Envelope,
    Headers,
    MessageType,
    Nothing,
    PeerCard,
    PeerRecord,
    TrackerClaim,
    seal,
    seal_bytes,
    sign_card,
    sign_claim,
)
from loremesh.testing.bad_blocks import BAD_BLOCKS, Scene

GOSSIP_PROTOCOL: Final = "/meshsub/1.1.0"


@dataclass(frozen=True, slots=True)
class Liar:
    """Who lies, to whom, and about which story."""

    identity: Identity
    victim: PeerId
    scene: Scene
    now: Millis

    def card(self, peer_id: PeerId | None = None) -> PeerCard:
        """Give a card, of ourselves or of somebody else."""
        return PeerCard(peer_id or self.identity.peer_id, (), ("executor",), (), (), Height(0), self.now)

    def seal(self, kind: MessageType, payload: object, to: PeerId | None = None) -> bytes:
        """Put a payload into an envelope that is in order."""
        return seal(self.identity, kind, payload, self.now, to)

    def envelope(self, **lies: object) -> bytes:
        """Give the envelope of a heartbeat with other fields than it should have."""
        honest = Envelope(
            MessageType.HEARTBEAT, self.now, self.identity.peer_id, b"", encode(sign_card(self.identity, self.card()))
        )
        return encode(replace(honest, **lies))  # type: ignore[arg-type]  # any field


@dataclass(frozen=True, slots=True)
class BadMessage:
    """A message that must be refused, and why."""

    name: str
    way: str
    """The topic `blocks`, `txs` or `peers`, or the protocol of a call."""
    fault: Fault
    make: Callable[[Liar], bytes]


def _forged_card(liar: Liar) -> PeerRecord:
    record = sign_card(liar.identity, liar.card())
    return replace(record, signature=Signature(bytes(65)))


def _card_of_another(liar: Liar) -> PeerRecord:
    other = liar.scene.cast.ann
    return sign_card(other, liar.card(other.peer_id))


def _false_claim(liar: Liar) -> bytes:
    scene = liar.scene
    claim = TrackerClaim(scene.story, scene.store.head, 9, liar.identity.peer_id, liar.now)
    return liar.seal(MessageType.TRACKER_CLAIM, sign_claim(liar.identity, claim))


def _transaction_unsigned(liar: Liar) -> bytes:
    wish = liar.scene.before[0].transactions[0]
    return liar.seal(MessageType.TRANSACTION, replace(wish, signature=Signature(bytes(65))))


BAD_MESSAGES: Final = (
    BadMessage("junk among blocks", "blocks", Fault.WRONG_SHAPE, lambda _: b"\xc1junk"),
    BadMessage("junk among transactions", "txs", Fault.WRONG_SHAPE, lambda _: b"\xc1junk"),
    BadMessage("junk among heartbeats", "peers", Fault.WRONG_SHAPE, lambda _: b"\xc1junk"),
    BadMessage("an envelope cut off", "peers", Fault.TRUNCATED, lambda at: at.envelope()[:-1]),
    BadMessage("an envelope with more behind it", "peers", Fault.TRAILING_BYTES, lambda at: at.envelope() + b"\x00"),
    BadMessage("an envelope from somebody else", "peers", Fault.WRONG_SENDER, lambda at: at.envelope(sender=at.victim)),
    BadMessage("a message of no known type", "peers", Fault.UNKNOWN_TYPE, lambda at: at.envelope(type="hello")),
    BadMessage(
        "a request where only announcements belong",
        "blocks",
        Fault.NOT_AS_ASKED,
        lambda at: at.seal(MessageType.STATUS_REQUEST, Nothing()),
    ),
    BadMessage("a transaction without signature", "txs", Fault.BAD_SIGNATURE, _transaction_unsigned),
    BadMessage(
        "a forged card", "peers", Fault.BAD_SIGNATURE, lambda at: at.seal(MessageType.HEARTBEAT, _forged_card(at))
    ),
    BadMessage(
        "somebody else's card",
        "peers",
        Fault.WRONG_SENDER,
        lambda at: at.seal(MessageType.HEARTBEAT, _card_of_another(at)),
    ),
    BadMessage("a claim to be the tracker", "peers", Fault.NOT_THE_TRACKER, _false_claim),
    BadMessage("junk to sync", SYNC_PROTOCOL, Fault.WRONG_SHAPE, lambda _: b"\xc1junk"),
    BadMessage("junk to peers", PEERS_PROTOCOL, Fault.WRONG_SHAPE, lambda _: b"\xc1junk"),
    BadMessage("junk to gossip", GOSSIP_PROTOCOL, Fault.WRONG_SHAPE, lambda _: b"\xff" * 100),
    BadMessage("a frame of 2 MiB to sync", SYNC_PROTOCOL, Fault.FRAME_TOO_LONG, lambda _: bytes(2 * MIB)),
    BadMessage("a frame of 2 MiB to peers", PEERS_PROTOCOL, Fault.FRAME_TOO_LONG, lambda _: bytes(2 * MIB)),
    BadMessage(
        "a call for somebody else",
        SYNC_PROTOCOL,
        Fault.WRONG_SENDER,
        lambda at: at.seal(MessageType.STATUS_REQUEST, Nothing(), at.scene.cast.ann.peer_id),
    ),
    BadMessage(
        "an answer nobody asked for",
        SYNC_PROTOCOL,
        Fault.UNEXPECTED,
        lambda at: at.seal(MessageType.BLOCK, at.scene.good, at.victim),
    ),
    BadMessage(
        "a request for blocks, to peers",
        PEERS_PROTOCOL,
        Fault.UNEXPECTED,
        lambda at: at.seal(MessageType.BLOCKS_REQUEST, BlocksRequest(at.scene.story, ()), at.victim),
    ),
    BadMessage(
        "to join with a forged card",
        PEERS_PROTOCOL,
        Fault.BAD_SIGNATURE,
        lambda at: at.seal(MessageType.PEER_JOIN, _forged_card(at), at.victim),
    ),
    BadMessage(
        "to join with somebody else's card",
        PEERS_PROTOCOL,
        Fault.WRONG_SENDER,
        lambda at: at.seal(MessageType.PEER_JOIN, _card_of_another(at), at.victim),
    ),
)


@dataclass(frozen=True, slots=True)
class BadAnswer:
    """Frames that are no answer to a request of sync, and why."""

    name: str
    to: MessageType
    fault: Fault
    make: Callable[[Liar, Sequence[Block]], list[bytes]]
    """Given also the chain that is being told of, which ends in an invalid block."""


def _invalid(where: Scene) -> Block:
    """Give a block whose header is in order as far as headers go."""
    return next(bad for bad in BAD_BLOCKS if bad.fault is Fault.WRONG_STATE_ROOT).make(where)


def told_by(liar: Liar) -> list[Block]:
    """Give the chain that a liar tells of: from the genesis to an invalid block."""
    return [liar.scene.before[0], liar.scene.before[-1], _invalid(liar.scene)]


def _headers(liar: Liar, blocks: Sequence[Block]) -> list[bytes]:
    signed = tuple(SignedHeader(block.header, block.signature) for block in blocks)
    return [liar.seal(MessageType.HEADERS, Headers(signed), liar.victim)]


def _unsigned_header(liar: Liar, blocks: Sequence[Block]) -> list[bytes]:
    return _headers(liar, [*blocks[:-1], replace(blocks[-1], signature=blocks[0].signature)])


def _bodies(liar: Liar, blocks: Sequence[Block]) -> list[bytes]:
    return [seal_bytes(liar.identity, MessageType.BLOCK, encode(block), liar.now, liar.victim) for block in blocks]


BAD_ANSWERS: Final = (
    BadAnswer("junk about where it stands", MessageType.STATUS_REQUEST, Fault.WRONG_SHAPE, lambda _, __: [b"\xc1junk"]),
    BadAnswer("no answer at all", MessageType.STATUS_REQUEST, Fault.UNFINISHED, lambda _, __: []),
    BadAnswer(
        "where it stands, in somebody else's name",
        MessageType.STATUS_REQUEST,
        Fault.WRONG_SENDER,
        lambda at, _: [seal(at.scene.cast.ann, MessageType.STATUS, Nothing(), at.now, at.victim)],
    ),
    BadAnswer(
        "a block instead of where it stands",
        MessageType.STATUS_REQUEST,
        Fault.NOT_AS_ASKED,
        lambda at, blocks: _bodies(at, blocks[:1]),
    ),
    BadAnswer(
        "headers in the wrong order",
        MessageType.HEADERS_REQUEST,
        Fault.NOT_AS_ASKED,
        lambda at, blocks: _headers(at, (blocks[1], blocks[0], blocks[2])),
    ),
    BadAnswer(
        "a header under another signature",
        MessageType.HEADERS_REQUEST,
        Fault.BAD_SIGNATURE,
        _unsigned_header,
    ),
    BadAnswer(
        "another block than was asked for",
        MessageType.BLOCKS_REQUEST,
        Fault.NOT_AS_ASKED,
        lambda at, blocks: _bodies(at, blocks[:1]),
    ),
    BadAnswer(
        "a block whose state is wrong",
        MessageType.BLOCKS_REQUEST,
        Fault.WRONG_STATE_ROOT,
        lambda at, blocks: _bodies(at, blocks[-1:]),
    ),
)


def honest_answer(liar: Liar, kind: MessageType, blocks: Sequence[Block], wanted: Sequence[Hash]) -> list[bytes]:
    """Answer a request for headers or blocks as whoever keeps `blocks` would."""
    if kind is MessageType.HEADERS_REQUEST:
        return _headers(liar, blocks)
    return _bodies(liar, [block for block in blocks if header_hash(block.header) in wanted])
