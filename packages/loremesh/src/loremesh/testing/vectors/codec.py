"""Vectors of the encoding: values and their one encoding, and bytes that must be refused.

A case is `{"name", "type", "value", "hex"}` (the value encodes to exactly these bytes, and they decode to it) or
`{"name", "type", "hex", "fault"}` (the bytes are refused).
"""

from loremesh.errors import ProtocolError
from loremesh.primitives import Hash, Height, Millis
from loremesh.protocol.block import Block, Header, SignedHeader
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.genesis import Genesis, Rules, Validator
from loremesh.protocol.llm import sign_request
from loremesh.protocol.transaction import Suggest, Transaction, TransactionBody
from loremesh.protocol.wire import (
    Account,
    BlockAnnouncement,
    Envelope,
    GenesisRequest,
    HeadersRequest,
    ListedPeer,
    MessageType,
    Nothing,
    PeerCard,
    PeerList,
    Refusal,
    SignedClaim,
    SignedPeerList,
    Status,
    TrackerAnnouncement,
    TrackerClaim,
    TrackerList,
    sign_card,
    sign_claim,
    sign_list,
)
from loremesh.testing.bad_blocks import scene, with_serving
from loremesh.testing.bad_bytes import BAD_BYTES
from loremesh.testing.builders import ANN, BOB, START, suggestion
from loremesh.testing.calls import CLIENT, chat_request
from loremesh.testing.vectors.plain import Case, plain

TYPES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Account,
        Block,
        BlockAnnouncement,
        Envelope,
        Genesis,
        GenesisRequest,
        Header,
        HeadersRequest,
        Nothing,
        PeerCard,
        PeerList,
        Refusal,
        Rules,
        SignedClaim,
        SignedHeader,
        SignedPeerList,
        Status,
        Suggest,
        TrackerAnnouncement,
        Transaction,
        TransactionBody,
        Validator,
    )
}
"""The types that the cases name."""

# By hand, so that the writer of a vector and the encoder under test are not the same hand.
_REFUSED = (
    ("one in two bytes", "Account", "9201cc01"),
    ("one in three bytes", "Account", "9201cd0001"),
    ("one in five bytes", "Account", "9201ce00000001"),
    ("one in nine bytes", "Account", "9201cf0000000000000001"),
    ("one as a signed integer", "Account", "9201d001"),
    ("minus one", "Account", "9201ff"),
    ("the least signed integer", "Account", "9201d38000000000000000"),
    ("a float", "Account", "9201cb3ff0000000000000"),
    ("a float of four bytes", "Account", "9201ca3f800000"),
    ("nil", "Account", "9201c0"),
    ("true", "Account", "9201c3"),
    ("text for an integer", "Account", "9201a131"),
    ("a map for an integer", "Account", "920180"),
    ("an extension for an integer", "Account", "9201d40100"),
    ("a timestamp for an integer", "Account", "9201d6ff00000000"),
    ("an array for an integer", "Account", "920190"),
    ("no field", "Account", "9101"),
    ("two fields", "Account", "93010102"),
    ("version 0", "Account", "920001"),
    ("version 2", "Account", "920201"),
    ("version as a float", "Account", "92cb3ff000000000000001"),
    ("version as a boolean", "Account", "92c301"),
    ("an empty array", "Account", "90"),
    ("a bare integer", "Account", "01"),
    ("nothing", "Account", ""),
    ("cut off", "Account", "9201"),
    ("a byte too many", "Account", "92010100"),
    ("an array header in three bytes", "Account", "dc00020101"),
    ("an array header in five bytes", "Account", "dd000000020101"),
    ("array header 2^32-1", "Account", "ddffffffff"),
    ("map header 2^32-1", "Account", "dfffffffff"),
    ("bytes header 2^32-1", "Account", "9201c6ffffffff"),
    ("text with a byte-string's header", "Suggest", "9201c40141"),
    ("text in a longer header", "Suggest", "9201d90141"),
    ("text that is not UTF-8", "Suggest", "9201a1ff"),
    ("text with a surrogate", "Suggest", "9201a3eda080"),
    ("text not in NFC", "Suggest", "9201a365cc81"),
    ("text over its limit", "Suggest", "9201da0201" + "61" * 513),
    ("bytes with a text's header", "GenesisRequest", "9201d920" + "61" * 32),
    ("31 bytes for a hash", "GenesisRequest", "9201c41f" + "00" * 31),
    ("33 bytes for a hash", "GenesisRequest", "9201c421" + "00" * 33),
    ("a hash in a longer header", "GenesisRequest", "9201c50020" + "00" * 32),
    ("a number below its range", "Rules", "9501001ecd200040"),
    ("a number above its range", "Rules", "9501cc8d1ecd200040"),
    ("more elements than the list may have", "Status", "9501920000" + "00" * 3),
)


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    at = scene()
    card = PeerCard(
        ANN.peer_id, ("/ip4/127.0.0.1/tcp/4001",), ("executor",), ("builtin",), (at.story,), Height(2), START
    )
    listed = ListedPeer(sign_card(ANN, card), card.addresses)
    accepted: list[tuple[str, object]] = [
        ("zero", Account(0)),
        ("the largest number of one byte", Account(127)),
        ("the smallest number of two bytes", Account(128)),
        ("the smallest number of three bytes", Account(256)),
        ("the smallest number of five bytes", Account(2**16)),
        ("the smallest number of nine bytes", Account(2**32)),
        ("the largest number", Account(2**64 - 1)),
        ("a type without fields", Nothing()),
        ("empty text", Suggest("")),
        ("31 bytes of text", Suggest("a" * 31)),
        ("32 bytes of text", Suggest("a" * 32)),
        ("256 bytes of text", Suggest("a" * 256)),
        ("text in NFC", Suggest("é 灯 🐉")),
        ("a validator", Validator(BOB.peer_id, "a sceptic")),
        ("a genesis", at.genesis),
        ("a header", at.good.header),
        ("a signed header", SignedHeader(at.good.header, at.good.signature)),
        ("a transaction", suggestion(ANN, at.genesis, "The tide should turn.")),
        ("a block without transactions", at.good),
        ("a block with a transaction", at.before[0]),
        ("a block whose text was served", with_serving(at)),
        ("a small announcement", BlockAnnouncement(Height(3), at.story, BOB.peer_id, START, b"")),
        ("an optional value that is there", Status((at.story,), Height(2), (at.store.head,), ())),
        ("an optional value that is not", Status((), Height(0), (), ())),
        ("a request for headers", HeadersRequest(at.story, (at.store.head, at.story), (), 512)),
        ("a second-hand peer list", PeerList((BOB.peer_id,), 0, (listed,), ("/ip4/127.0.0.1/tcp/4002",))),
        (
            "the tracker's list",
            sign_list(ANN, TrackerList(at.story, at.store.head, 0, START, ANN.peer_id, (listed,))),
        ),
        ("a claim", sign_claim(BOB, TrackerClaim(at.story, at.store.head, 1, BOB.peer_id, START))),
        ("the word of a tracker that was", TrackerAnnouncement(at.story, Height(2), at.store.head, BOB.peer_id)),
        ("a refusal", Refusal("no such story here")),
        (
            "an envelope",
            Envelope(MessageType.STATUS_REQUEST.value, Millis(START + 1), ANN.peer_id, BOB.peer_id, encode(Nothing())),
        ),
        *(
            (f"an envelope of {kind}", Envelope(kind.value, START, ANN.peer_id, BOB.peer_id, encode(payload)))
            for kind, payload in (
                (MessageType.LLM_REQUEST_WHOLE, sign_request(CLIENT, chat_request())),
                (MessageType.LLM_WAITING, Nothing()),
            )
        ),
        ("an envelope for everybody", Envelope(MessageType.PEER_JOIN.value, START, ANN.peer_id, b"", b"")),
        ("a request with a hash of zeros", GenesisRequest(Hash(bytes(32)))),
    ]
    good: list[Case] = [
        {"name": name, "type": type(value).__name__, "value": plain(value), "hex": encode(value).hex()}
        for name, value in accepted
    ]
    block = encode(at.good)
    broken = [(bad.name, "Block", bad.make(block).hex()) for bad in BAD_BYTES if len(bad.make(block)) < 2**14]
    refused: list[Case] = [
        {"name": name, "type": kind, "hex": data, "fault": _fault(TYPES[kind], bytes.fromhex(data))}
        for name, kind, data in [*_REFUSED, *broken]
    ]
    return good + refused


def _fault(cls: type, data: bytes) -> str:
    try:
        decode(cls, data)
    except ProtocolError as error:
        return str(error.fault)
    raise AssertionError(f"{data.hex()} decodes as {cls.__name__}")
