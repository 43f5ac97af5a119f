"""One key is a peer id, an EVM address and every signature, and a bad key says why without showing itself."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.secp256k1 import Secp256k1PublicKey
from libp2p.peer.id import ID

from loremesh.errors import Fault, InvalidKey, InvalidMessage
from loremesh.primitives import Hash, PeerId, Signature
from loremesh.protocol.identity import (
    NO_STORY,
    Identity,
    check_peer_id,
    digest,
    evm_address_of,
    evm_address_text,
    peer_id_from_text,
    peer_id_of,
    peer_id_text,
    verify,
)
from loremesh.testing.builders import ANN, BOB

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
STORY = Hash(bytes(range(32)))
MESSAGE = digest("block", STORY, b"payload")
KEYS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))


def fault_of_signature(signature: bytes, message: Hash = MESSAGE, signer: PeerId = ANN.peer_id) -> Fault | None:
    try:
        verify(Signature(signature), message, signer)
    except InvalidMessage as error:
        return error.fault
    return None


@pytest.mark.parametrize(
    ("number", "peer", "address"),
    [
        (
            1,
            "16Uiu2HAm3cuhhRL2msUuLF62KRSfneFDx94RsuouyW25Ho42cFMq",
            "0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf",
        ),
        (2, None, "0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"),
        (3, None, "0x6813Eb9362372EEF6200f3b1dbC3f819671cBA69"),
    ],
)
def test_known_keys_have_their_known_names(number: int, peer: str | None, address: str) -> None:
    made = Identity.from_str(f"{number:064x}")
    assert peer is None or peer_id_text(made.peer_id) == peer
    assert evm_address_text(made.evm_address) == address


@settings(max_examples=40, deadline=None)
@given(KEYS)
def test_the_peer_id_is_the_one_that_libp2p_derives(secret: bytes) -> None:
    made = Identity.new(secret)
    public = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256K1()).public_key()
    compressed = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    assert made.public_key == compressed
    theirs = ID.from_pubkey(Secp256k1PublicKey.from_bytes(compressed))
    assert made.peer_id == theirs.to_bytes()
    assert peer_id_text(made.peer_id) == str(theirs)
    assert peer_id_text(made.peer_id).startswith("16Uiu2HA")


@settings(max_examples=40, deadline=None)
@given(KEYS)
def test_names_can_be_read_back_and_the_address_follows_from_the_peer_id_alone(secret: bytes) -> None:
    made = Identity.new(secret)
    assert peer_id_from_text(peer_id_text(made.peer_id)) == made.peer_id
    assert check_peer_id(made.peer_id) == made.peer_id
    assert evm_address_of(made.peer_id) == made.evm_address
    assert peer_id_of(made.public_key) == made.peer_id
    assert Identity.from_str(secret.hex()).peer_id == made.peer_id
    assert Identity.from_str("0x" + secret.hex().upper()).peer_id == made.peer_id
    assert Identity.from_str(f" {secret.hex()}\n").peer_id == made.peer_id


def test_a_new_identity_is_made_of_the_entropy_it_is_given() -> None:
    assert Identity.generate(b"\x01" * 32).secret == b"\x01" * 32


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (b"", "32 bytes, this has 0"),
        (b"\x01" * 31, "32 bytes, this has 31"),
        (b"\x01" * 33, "32 bytes, this has 33"),
        (bytes(32), "between 1 and the order"),
        (ORDER.to_bytes(32, "big"), "between 1 and the order"),
        (b"\xff" * 32, "between 1 and the order"),
    ],
)
def test_a_bad_key_is_refused_with_the_reason(secret: bytes, reason: str) -> None:
    with pytest.raises(InvalidKey, match=reason) as refusal:
        Identity.new(secret)
    assert secret == b"" or secret.hex() not in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["", "0x", "ab" * 31, "ab" * 33, "zz" * 32, "0x0x" + "ab" * 31, "ab cd" * 13, "\uff41" * 64]
)
def test_text_that_is_no_key_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(InvalidKey, match="64 hexadecimal digits") as refusal:
        Identity.from_str(text)
    assert len(text) < 3 or text not in str(refusal.value)
    assert len(text) < 8 or text[:8] not in str(refusal.value)


def test_the_largest_and_the_smallest_key_are_keys() -> None:
    assert Identity.from_str(f"{1:064x}").public_key != Identity.from_str(f"{ORDER - 1:064x}").public_key


def test_an_identity_never_shows_its_secret() -> None:
    for shown in (repr(ANN), str(ANN), f"{ANN}", f"{[ANN]}"):
        assert ANN.secret.hex() not in shown
        assert repr(ANN.secret) not in shown
        assert "16Uiu2" in shown


@settings(max_examples=60, deadline=None)
@given(secret=KEYS, payload=st.binary(max_size=64))
def test_a_signature_has_one_form_and_is_its_signers(secret: bytes, payload: bytes) -> None:
    made, message = Identity.new(secret), digest("block", STORY, payload)
    signature = made.sign(message)
    assert signature == made.sign(message)
    assert len(signature) == 65
    assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
    assert signature[64] in range(4)
    verify(signature, message, made.peer_id)
    assert fault_of_signature(signature, message, BOB.peer_id) is Fault.BAD_SIGNATURE


@settings(max_examples=200, deadline=None)
@given(place=st.integers(0, 64), change=st.integers(1, 255))
def test_a_changed_signature_is_bad(place: int, change: int) -> None:
    signature = bytearray(ANN.sign(MESSAGE))
    signature[place] ^= change
    assert fault_of_signature(bytes(signature)) is Fault.BAD_SIGNATURE


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=70) | st.binary(min_size=65, max_size=65))
def test_random_bytes_are_a_bad_signature_and_nothing_worse(signature: bytes) -> None:
    assert fault_of_signature(signature) is Fault.BAD_SIGNATURE


def test_a_high_s_is_the_same_signature_written_differently_and_refused() -> None:
    good = ANN.sign(MESSAGE)
    mirrored = (ORDER - int.from_bytes(good[32:64], "big")).to_bytes(32, "big")
    assert fault_of_signature(good[:32] + mirrored + bytes([good[64] ^ 1])) is Fault.BAD_SIGNATURE


def test_kind_story_and_payload_all_change_the_digest() -> None:
    assert (
        len({digest("block", STORY, b"a"), digest("peer", STORY, b"a"), digest("block", NO_STORY, b"a"), MESSAGE}) == 4
    )
    assert digest("block", STORY, b"a") == hashlib.sha256(b"loremesh/1/block/" + STORY + b"a").digest()


def test_a_signature_for_one_kind_or_story_is_none_for_another() -> None:
    signature = ANN.sign(MESSAGE)
    assert fault_of_signature(signature) is None
    assert fault_of_signature(signature, digest("transaction", STORY, b"payload")) is Fault.BAD_SIGNATURE
    assert fault_of_signature(signature, digest("block", NO_STORY, b"payload")) is Fault.BAD_SIGNATURE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ANN.peer_id[:-1],
        ANN.peer_id + b"\x00",
        b"\x12\x20" + bytes(32),  # an RSA key's hash
        bytes.fromhex("002408011220") + bytes(32),  # Ed25519
        ANN.peer_id[:6] + b"\x02" + b"\xff" * 32,  # beyond the field
        ANN.peer_id[:6] + b"\x02" + b"\x00" * 31 + b"\x05",  # off the curve
        ANN.peer_id[:6] + b"\x05" + ANN.peer_id[7:],  # no form of a point
    ],
)
def test_only_a_secp256k1_peer_id_on_the_curve_is_taken(data: bytes) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        check_peer_id(data)
    assert refusal.value.fault is Fault.BAD_KEY


@pytest.mark.parametrize(
    "text", ["", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "é", "1" * 10_000, "16Uiu2"]
)
def test_text_that_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidMessage) as refusal:
        peer_id_from_text(text)
    assert refusal.value.fault is Fault.BAD_KEY


@pytest.mark.parametrize(
    "address",
    [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ],
)
def test_addresses_carry_the_published_checksums(address: str) -> None:
    assert evm_address_text(bytes.fromhex(address[2:])) == address
