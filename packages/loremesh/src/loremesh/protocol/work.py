"""Proof of work: a throttle that the chain itself adjusts.

The search is over `story ‖ parent ‖ producer ‖ nonce`: the content is not in it, so a miner searches *beside* its LLM
call and pays the longer of the two, not their sum. The signature binds the content. Work proves nothing about an LLM.

Source: docs/protocol/work.md; the fixed-point exponential is aserti3-2d's (Bitcoin Cash, 2020), the same idea as
Lerner's ASERT, used here in its relative form.
"""

import hashlib
from typing import Final

from loremesh.primitives import Hash, Millis, PeerId, StoryId, Target

_SPACE: Final = 2**256
NONCE_BYTES: Final = 8
_ENOUGH: Final = 256 * 65536
"""At this exponent every target is past the easiest; a genesis with a tiny half-life would shift by megabytes more."""


def target_of(work: int) -> Target:
    """Give the target that takes `work` hashes on average (at least 1)."""
    return Target(_SPACE // work - 1)


def work_of(target: Target) -> int:
    """Give the number of hashes that meeting `target` takes on average."""
    return _SPACE // (target + 1)


def scale(target: int, exponent: int) -> int:
    """Multiply `target` by 2^(exponent / 65536), in integers.

    The fraction is a cubic approximation, off by less than 0.013 %; every node gets the same bits.
    """
    shifts, fraction = exponent >> 16, exponent & 0xFFFF
    cubic = ((5_127 * fraction + 971_821_376) * fraction + 195_766_423_245_049) * fraction
    factor = 65536 + ((cubic + 2**47) >> 48)
    shifts -= 16
    scaled = target * factor
    return scaled << shifts if shifts >= 0 else scaled >> -shifts


def next_target(target: Target, took: Millis, *, spacing: Millis, half_life: Millis, easiest_work: int) -> Target:
    """Give the target of a block from its parent's.

    Args:
        target: The parent's target.
        took: How long after *its* parent the parent came. Counted at most as 4 · spacing, so that a pause makes the
            next blocks easier by a bounded factor instead of owing the whole pause.
        spacing: The time that should pass between blocks.
        half_life: A lag of this much halves the work.
        easiest_work: The least work a target may stand for.
    """
    lag = min(took, 4 * spacing) - spacing
    scaled = scale(target, min(lag * 65536 // half_life, _ENOUGH))
    return Target(max(1, min(scaled, target_of(easiest_work))))


def search_prefix(story: StoryId, parent: Hash, producer: PeerId) -> bytes:
    """Give the bytes that every attempt on this parent begins with; the nonce follows, 8 bytes big-endian."""
    return b"loremesh/1/work/" + story + parent + producer


def meets(prefix: bytes, nonce: int, target: Target) -> bool:
    """Tell whether `nonce` meets `target` behind the bytes of `search_prefix`."""
    attempt = hashlib.sha256(prefix + nonce.to_bytes(NONCE_BYTES, "big")).digest()
    return int.from_bytes(attempt, "big") <= target


def search(prefix: bytes, target: Target, start: int, count: int) -> int | None:
    """Try `count` nonces from `start`; give the first that meets `target`, or None."""
    midstate = hashlib.sha256(prefix)
    threshold = target.to_bytes(32, "big")
    for nonce in range(start, start + count):
        attempt = midstate.copy()
        attempt.update(nonce.to_bytes(NONCE_BYTES, "big"))
        if attempt.digest() <= threshold:
            return nonce
    return None
