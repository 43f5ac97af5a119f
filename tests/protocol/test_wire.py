"""Messages: an envelope says who sent it, and nobody else can."""

from dataclasses import replace

import pytest

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import Hash, Height, Millis, PeerId
from loremesh.protocol.block import Block, SignedHeader, header_hash
from loremesh.protocol.codec import encode, limit_of
from loremesh.protocol.wire import (
    MAX_FRAME,
    Account,
    BlocksRequest,
    Envelope,
    GenesisRequest,
    Headers,
    HeadersRequest,
    ListedPeer,
    MessageType,
    Nothing,
    PeerCard,
    PeerList,
    PeerRecord,
    Refusal,
    Status,
    check_record,
    expect,
    seal,
    sign_card,
    topic,
    unseal,
)
from loremesh.testing.bad_blocks import scene
from loremesh.testing.builders import ANN, BOB, CAT, START

CARD = PeerCard(ANN.peer_id, ("/ip4/127.0.0.1/tcp/4001",), ("executor",), ("builtin",), (), Height(0), START)


def fault_of_frame(frame: bytes, authenticated: PeerId = ANN.peer_id, recipient: PeerId | None = None) -> Fault | None:
    try:
        unseal(frame, authenticated, recipient)
    except InvalidMessage as error:
        return error.fault
    return None


@pytest.mark.parametrize("kind", list(MessageType))
def test_what_is_sealed_can_be_opened(kind: MessageType) -> None:
    frame = seal(ANN, kind, Account(7), START, BOB.peer_id)
    assert unseal(frame, ANN.peer_id, BOB.peer_id) == (kind, encode(Account(7)))


@pytest.mark.parametrize("name", ["peer-list-request", "block", "these-are-not-the-droids-you-are-looking-for"])
def test_the_seeds_message_types_exist_by_their_names(name: str) -> None:
    assert MessageType(name).value == name


def test_from_must_be_the_authenticated_peer() -> None:
    frame = seal(ANN, MessageType.HEARTBEAT, Nothing(), START)
    assert fault_of_frame(frame) is None
    assert fault_of_frame(frame, BOB.peer_id) is Fault.WRONG_SENDER


def test_to_must_be_us_or_everybody() -> None:
    to_bob = seal(ANN, MessageType.HEARTBEAT, Nothing(), START, BOB.peer_id)
    assert fault_of_frame(to_bob, recipient=BOB.peer_id) is None
    assert fault_of_frame(to_bob, recipient=CAT.peer_id) is Fault.WRONG_SENDER
    assert fault_of_frame(seal(ANN, MessageType.HEARTBEAT, Nothing(), START), recipient=CAT.peer_id) is None


def test_an_unknown_type_is_named_as_such() -> None:
    frame = encode(Envelope("gossip-of-the-day", START, ANN.peer_id, b"", b""))
    assert fault_of_frame(frame) is Fault.UNKNOWN_TYPE


@pytest.mark.parametrize("time", [0, START + 10**12, 2**64 - 1])
def test_no_rule_reads_the_timestamp(time: int) -> None:
    assert fault_of_frame(seal(ANN, MessageType.HEARTBEAT, Nothing(), Millis(time))) is None


def test_a_frame_that_is_no_envelope_is_refused() -> None:
    frame = seal(ANN, MessageType.HEARTBEAT, Nothing(), START)
    assert fault_of_frame(frame[:-1]) is Fault.TRUNCATED
    assert fault_of_frame(frame + b"\x00") is Fault.TRAILING_BYTES
    assert fault_of_frame(b"\x90") is Fault.WRONG_SHAPE
    assert fault_of_frame(bytes(MAX_FRAME + 1)) is Fault.TOO_LARGE


def test_an_answer_is_what_was_asked_for_or_a_fault() -> None:
    def answer(kind: MessageType, payload: object) -> bytes:
        return seal(ANN, kind, payload, START)

    good = answer(MessageType.ACCOUNT, Account(7))
    assert expect(good, ANN.peer_id, MessageType.ACCOUNT, Account) == Account(7)
    wrong = {
        answer(MessageType.STATUS, Account(7)): "status instead of account",
        answer(MessageType.REFUSAL, Refusal("no such story")): "refused: no such story",
    }
    for frame, said in wrong.items():
        with pytest.raises(InvalidMessage, match=said) as refusal:
            expect(frame, ANN.peer_id, MessageType.ACCOUNT, Account)
        assert refusal.value.fault is Fault.NOT_AS_ASKED
    with pytest.raises(InvalidMessage):
        expect(answer(MessageType.ACCOUNT, GenesisRequest(Hash(bytes(32)))), ANN.peer_id, MessageType.ACCOUNT, Account)
    with pytest.raises(InvalidMessage):
        expect(good, BOB.peer_id, MessageType.ACCOUNT, Account)


def test_a_card_is_signed_by_the_peer_it_describes() -> None:
    record = sign_card(ANN, CARD)
    assert check_record(record) == CARD
    for lie in (sign_card(BOB, CARD), PeerRecord(replace(CARD, height=Height(9)), record.signature)):
        with pytest.raises(InvalidMessage) as refusal:
            check_record(lie)
        assert refusal.value.fault is Fault.BAD_SIGNATURE


def test_a_card_of_no_key_is_refused() -> None:
    card = replace(CARD, peer_id=PeerId(bytes(39)))
    with pytest.raises(InvalidMessage) as refusal:
        check_record(sign_card(ANN, card))
    assert refusal.value.fault is Fault.BAD_KEY


def test_every_payload_fits_into_a_frame() -> None:
    at = scene()
    room = MAX_FRAME - 1024
    assert limit_of(Block) <= room
    assert limit_of(PeerList) <= room
    assert limit_of(Headers) <= room
    seal(ANN, MessageType.BLOCK, at.good, START)


def test_the_longest_lists_fit_their_own_limits() -> None:
    at = scene()
    assert limit_of(PeerList) >= 128 * limit_of(ListedPeer) + 1024
    longest = replace(at.good.header, height=Height(2**64 - 1), time=Millis(2**64 - 1), nonce=2**64 - 1)
    encode(Headers((SignedHeader(longest, at.good.signature),) * 512))
    encode(Status((at.story,), Height(2**64 - 1), (at.story,), (at.story,) * 64))
    encode(HeadersRequest(at.story, (at.story,) * 64, (at.story,), 512))
    encode(BlocksRequest(at.story, (at.story,) * 128))


def test_a_card_of_everything_at_once_is_too_large_for_its_author_too() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        sign_card(ANN, replace(CARD, addresses=("a" * 256,) * 8, models=("m" * 128,) * 16))
    assert refusal.value.fault is Fault.TOO_LARGE


def test_a_topic_belongs_to_one_story() -> None:
    assert topic(Hash(bytes(32)), "blocks") == "/loremesh/" + "00" * 32 + "/blocks"
    assert header_hash(scene().good.header).hex() not in topic(scene().story, "txs")
