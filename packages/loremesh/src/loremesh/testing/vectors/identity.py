"""Vectors of keys, names, digests and signatures.

A case has a `rule`: `key` (a private key and the names that follow from it), `bad key`, `peer id` (text that names a
peer, or does not), `digest`, `sign` (deterministic, RFC 6979) or `verify`.
"""

from loremesh.primitives import Hash, PeerId, Signature
from loremesh.protocol.identity import (
    NO_STORY,
    Identity,
    digest,
    evm_address_text,
    peer_id_from_text,
    peer_id_text,
    verify,
)
from loremesh.testing.builders import ANN, BOB
from loremesh.testing.vectors.plain import Case, outcome

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_ONE = f"{1:064x}"

_KEYS = (
    ("the smallest key", _ONE),
    ("the second smallest", f"{2:064x}"),
    ("the largest key", f"{_ORDER - 1:064x}"),
    ("an ordinary key", ANN.secret.hex()),
    ("with 0x", "0x" + BOB.secret.hex()),
    ("in capitals", BOB.secret.hex().upper()),
)
_BAD_KEYS = (
    ("zero", "0" * 64),
    ("the order of the curve", f"{_ORDER:064x}"),
    ("above the order", "f" * 64),
    ("63 digits", _ONE[1:]),
    ("65 digits", _ONE + "0"),
    ("empty", ""),
    ("no hexadecimal", "g" * 64),
    ("0x alone", "0x"),
    ("a space inside", _ONE[:32] + " " + _ONE[33:]),
)
_PEER_IDS = (
    ("an ordinary peer id", peer_id_text(ANN.peer_id)),
    ("one character missing", peer_id_text(ANN.peer_id)[:-1]),
    ("an Ed25519 peer id", "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"),
    ("an RSA peer id", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
    ("a point off the curve", peer_id_text(PeerId(bytes.fromhex("00250802122102" + "ff" * 32)))),
    ("not base58", "16Uiu2HAm0OIl"),
    ("empty", ""),
)
_STORY = Hash(bytes(range(32)))


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    return [
        *(_key(name, text) for name, text in _KEYS),
        *(_bad_key(name, text) for name, text in _BAD_KEYS),
        *(_peer_id(name, text) for name, text in _PEER_IDS),
        *_digests(),
        *_signatures(),
    ]


def _bad_key(name: str, text: str) -> Case:
    return {"rule": "bad key", "name": name, "text": text, **outcome(lambda: Identity.from_str(text))}


def _peer_id(name: str, text: str) -> Case:
    return {"rule": "peer id", "name": name, "text": text, **outcome(lambda: peer_id_from_text(text))}


def _key(name: str, text: str) -> Case:
    made = Identity.from_str(text)
    return {
        "rule": "key",
        "name": name,
        "text": text,
        "public_key": made.public_key.hex(),
        "peer_id": made.peer_id.hex(),
        "peer_id_text": peer_id_text(made.peer_id),
        "evm_address": evm_address_text(made.evm_address),
    }


def _digests() -> list[Case]:
    told = (
        ("a block", "block", _STORY, b"payload"),
        ("another kind", "transaction", _STORY, b"payload"),
        ("no story", "block", NO_STORY, b"payload"),
        ("an empty payload", "block", _STORY, b""),
    )
    return [
        {
            "rule": "digest",
            "name": name,
            "kind": kind,
            "story": story.hex(),
            "payload": payload.hex(),
            "digest": digest(kind, story, payload).hex(),
        }
        for name, kind, story, payload in told
    ]


def _signatures() -> list[Case]:
    message = digest("block", _STORY, b"payload")
    signed: list[Case] = [
        {
            "rule": "sign",
            "name": f"signature of {name}",
            "key": signer.secret.hex(),
            "digest": message.hex(),
            "signature": signer.sign(message).hex(),
        }
        for name, signer in (("Ann", ANN), ("Bob", BOB))
    ]
    good = ANN.sign(message)
    high = good[:32] + (_ORDER - int.from_bytes(good[32:64], "big")).to_bytes(32, "big") + bytes([good[64] ^ 1])
    told = (
        ("as signed", good, message, ANN.peer_id),
        ("another signer", good, message, BOB.peer_id),
        ("another digest", good, digest("block", _STORY, b"other"), ANN.peer_id),
        ("zeros", bytes(65), message, ANN.peer_id),
        ("a high s", high, message, ANN.peer_id),
        ("64 bytes", good[:64], message, ANN.peer_id),
        ("66 bytes", good + b"\x00", message, ANN.peer_id),
        ("another recovery byte", good[:64] + bytes([good[64] ^ 1]), message, ANN.peer_id),
        ("a recovery byte of 4", good[:64] + b"\x04", message, ANN.peer_id),
        ("an Ethereum recovery byte", good[:64] + bytes([good[64] + 27]), message, ANN.peer_id),
        ("r of zero", bytes(32) + good[32:], message, ANN.peer_id),
        ("r of the order", _ORDER.to_bytes(32, "big") + good[32:], message, ANN.peer_id),
        ("s of zero", good[:32] + bytes(32) + good[64:], message, ANN.peer_id),
    )
    checked: list[Case] = []
    for name, signature, of, signer in told:
        result = _verified(signature, of, signer)
        checked.append(
            {
                "rule": "verify",
                "name": name,
                "signature": signature.hex(),
                "digest": of.hex(),
                "signer": signer.hex(),
                **result,
            }
        )
    return signed + checked


def _verified(signature: bytes, message: Hash, signer: PeerId) -> Case:
    return outcome(lambda: verify(Signature(signature), message, signer))
