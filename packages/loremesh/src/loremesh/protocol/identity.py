"""One secp256k1 key is a libp2p peer id, an EVM address and every signature a node makes.

Signatures are recoverable (r ‖ s ‖ v) over a domain-separated SHA-256 digest, with s in the lower half of the order,
so that a signature has one form. The only door to coincurve, pycryptodome (Keccak) and base58.

Source: libp2p peer-ids specification (identity multihash of the protobuf public key); SEC 1 §4.1; EIP-2 (low s);
EIP-55 (address checksum); docs/protocol/identity.md.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import base58
from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak

from loremesh.errors import Fault, InvalidKey, InvalidMessage
from loremesh.primitives import PEER_ID_BYTES, SIGNATURE_BYTES, Hash, PeerId, Signature, StoryId

# Multihash code 0 (identity), length 37, then the protobuf: field 1 = key type 2 (Secp256k1), field 2 = 33 bytes.
_PEER_ID_PREFIX: Final = bytes.fromhex("002508021221")
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HALF_ORDER: Final = _ORDER // 2
NO_STORY: Final = StoryId(Hash(bytes(32)))
"""Stands in the digest where a signature belongs to no story."""


def digest(kind: str, story: StoryId, payload: bytes) -> Hash:
    """Hash `payload` so that it can be taken for no other kind of message and for no other story.

    Args:
        kind: A short ASCII word: `block`, `transaction`, `peer`, …
        story: 32 bytes; `NO_STORY` where none is involved.
        payload: The canonical encoding of what is signed.
    """
    return Hash(hashlib.sha256(b"loremesh/1/" + kind.encode("ascii") + b"/" + story + payload).digest())


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A node's key pair and the names that follow from it.

    `Identity.new(secret)`, `Identity.generate(entropy)` and `Identity.from_str(hex)` make one; the secret never shows
    in a repr, a log or an error.
    """

    secret: bytes
    public_key: bytes
    peer_id: PeerId
    evm_address: bytes
    _key: PrivateKey

    @classmethod
    def new(cls, secret: bytes) -> Self:
        """Take a private key of 32 bytes, big-endian, between 1 and the order of the curve.

        Raises:
            InvalidKey: Too short, too long, zero, or not below the order.
        """
        if len(secret) != 32:  # noqa: PLR2004 - the curve's
            raise InvalidKey(f"a private key has 32 bytes, this has {len(secret)}")
        if not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise InvalidKey("a private key is between 1 and the order of secp256k1")
        key = PrivateKey(secret)
        public_key = key.public_key.format(compressed=True)
        peer_id = peer_id_of(public_key)
        return cls(secret, public_key, peer_id, evm_address_of(peer_id), key)

    @classmethod
    def generate(cls, entropy: bytes) -> Self:
        """Make a new identity from 32 random bytes (`secrets.token_bytes(32)`)."""
        return cls.new(entropy)

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Read a private key from 64 hexadecimal digits, with or without 0x.

        Raises:
            InvalidKey: Anything else; the message never repeats the text.
        """
        digits = text.strip().removeprefix("0x")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
            raise InvalidKey(f"a private key is 64 hexadecimal digits (0x allowed), this has {len(digits)} characters")
        return cls.new(bytes.fromhex(digits))

    def sign(self, digest_: Hash) -> Signature:
        """Sign a digest made by `digest`; deterministic (RFC 6979)."""
        return Signature(self._key.sign_recoverable(digest_, hasher=None))

    def __repr__(self) -> str:
        return f"Identity({peer_id_text(self.peer_id)})"

    def __str__(self) -> str:
        return peer_id_text(self.peer_id)


def verify(signature: Signature, digest_: Hash, signer: PeerId) -> None:
    """Check that the key behind `signer` signed `digest_`.

    Raises:
        InvalidMessage: BAD_SIGNATURE, whatever is wrong with it.
    """
    # s above the half order is the same signature written differently: it must have one form (EIP-2).
    if len(signature) != SIGNATURE_BYTES or int.from_bytes(signature[32:64], "big") > _HALF_ORDER:
        raise InvalidMessage(Fault.BAD_SIGNATURE, "not 65 bytes with a low s")
    try:
        public_key = PublicKey.from_signature_and_message(signature, digest_, hasher=None)
    except ValueError as error:
        raise InvalidMessage(Fault.BAD_SIGNATURE, "recovers no key") from error
    except Exception as error:  # coincurve raises bare Exception on some malformed input
        raise InvalidMessage(Fault.BAD_SIGNATURE, "recovers no key") from error
    if public_key.format(compressed=True) != signer[len(_PEER_ID_PREFIX) :]:
        raise InvalidMessage(Fault.BAD_SIGNATURE, "made by another key")


def keccak256(data: bytes) -> Hash:
    """Hash as the EVM does: Keccak-256, which is not SHA3-256."""
    return Hash(keccak.new(digest_bits=256, data=data).digest())


def peer_id_of(public_key: bytes) -> PeerId:
    """Derive the peer id of a compressed public key (33 bytes)."""
    return PeerId(_PEER_ID_PREFIX + public_key)


@lru_cache(maxsize=4096)
def check_peer_id(data: bytes) -> PeerId:
    """Accept the 39 bytes of a secp256k1 peer id whose point is on the curve.

    Raises:
        InvalidMessage: BAD_KEY, for anything else (an Ed25519 id among them).
    """
    if len(data) != PEER_ID_BYTES or not data.startswith(_PEER_ID_PREFIX):
        raise InvalidMessage(Fault.BAD_KEY, "not a secp256k1 peer id")
    try:
        PublicKey(data[len(_PEER_ID_PREFIX) :])
    except ValueError as error:
        raise InvalidMessage(Fault.BAD_KEY, "not a point on the curve") from error
    return PeerId(data)


@lru_cache(maxsize=4096)
def peer_id_text(peer_id: PeerId) -> str:
    """Write a peer id as libp2p does: base58btc, `16Uiu2…`."""
    return base58.b58encode(peer_id).decode("ascii")


@lru_cache(maxsize=4096)
def peer_id_from_text(text: str) -> PeerId:
    """Read a peer id from base58btc.

    Raises:
        InvalidMessage: BAD_KEY, with what a peer id looks like here.
    """
    try:
        data = base58.b58decode(text, autofix=False) if len(text) <= 64 else b""  # noqa: PLR2004 - 39 bytes are 53 characters
    except ValueError as error:
        raise InvalidMessage(Fault.BAD_KEY, "not base58: peer ids here start with 16Uiu2") from error
    return check_peer_id(data)


@lru_cache(maxsize=4096)
def evm_address_of(peer_id: PeerId) -> bytes:
    """Compute the 20-byte EVM address of the key behind a peer id, from the peer id alone."""
    public_key = PublicKey(peer_id[len(_PEER_ID_PREFIX) :])
    uncompressed = public_key.format(compressed=False)[1:]
    return keccak256(uncompressed)[-20:]


def evm_address_text(address: bytes) -> str:
    """Write an EVM address with its EIP-55 checksum."""
    digits = address.hex()
    mask = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(
        digit.upper() if int(nibble, 16) >= 8 else digit  # noqa: PLR2004 - EIP-55
        for digit, nibble in zip(digits, mask, strict=False)
    )
