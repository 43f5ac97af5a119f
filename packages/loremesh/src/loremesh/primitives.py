"""Words and units as types: what a bare `int` or `bytes` means here."""

from typing import NewType

Hash = NewType("Hash", bytes)
"""A SHA-256 digest: 32 bytes."""

StoryId = Hash
"""The hash of a genesis names its story."""

PeerId = NewType("PeerId", bytes)
"""A libp2p peer id in binary: the 39-byte identity multihash of a secp256k1 public key. Text form: `peer_id_text`."""

Signature = NewType("Signature", bytes)
"""A recoverable secp256k1 signature: r ‖ s ‖ v, 65 bytes, s in the lower half, v in 0..3."""

Height = NewType("Height", int)
"""Number of ancestors of a block; the genesis has height 0."""

Millis = NewType("Millis", int)
"""Unix time, or a span of time, in milliseconds."""

Target = NewType("Target", int)
"""A 256-bit threshold: a work hash at or below it meets the work."""

HASH_BYTES = 32
PEER_ID_BYTES = 39
SIGNATURE_BYTES = 65
KIB = 1024
MIB = 1024 * KIB
