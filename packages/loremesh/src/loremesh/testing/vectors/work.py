"""Vectors of the work: the fixed-point exponential, retargeting, and what meets a target.

A case has a `rule`: `scale`, `next target`, `target of work`, `work of target` or `meets`.
"""

from loremesh.primitives import Hash, Millis, Target
from loremesh.protocol.work import meets, next_target, scale, search, search_prefix, target_of, work_of
from loremesh.testing.builders import ANN
from loremesh.testing.vectors.plain import Case, target_text

_MIB_WORK = target_of(2**20)
_EXPONENTS = (0, 1, 32768, 65535, 65536, 131072, -1, -32768, -65535, -65536, -65537, -655360, -65536 * 300)
_TOOK = (0, 1, 1000, 2999, 3000, 3001, 6000, 9000, 12_000, 12_001, 28_800_000)
_STORY = Hash(bytes(range(32)))
_PARENT = Hash(bytes(range(32, 64)))


def cases() -> list[Case]:
    """Compute every case from the rules as they stand."""
    scaled: list[Case] = [
        {
            "rule": "scale",
            "name": f"2^20 hashes times 2^({exponent}/65536)",
            "target": target_text(_MIB_WORK),
            "exponent": exponent,
            "scaled": target_text(scale(_MIB_WORK, exponent)),
        }
        for exponent in _EXPONENTS
    ]
    retargeted = [
        *(_next(f"parent took {took} ms", _MIB_WORK, Millis(took), 60_000, 2**14) for took in _TOOK),
        _next("never easier than the easiest", target_of(2**14), Millis(12_000), 60_000, 2**14),
        _next("never less than one", Target(1), Millis(0), 60_000, 2**14),
        _next("a short half-life", _MIB_WORK, Millis(0), 1000, 2**14),
        _next("a fraction of a step rounds down", _MIB_WORK, Millis(2999), 10**8, 2**14),
    ]
    works = (1, 2, 3, 1000, 2**14, 2**20, 2**64 - 1)
    named: list[Case] = [
        {"rule": "target of work", "name": f"{work} hashes", "work": work, "target": target_text(target_of(work))}
        for work in works
    ]
    targets = (Target(2**256 - 1), Target(2**255), target_of(3), _MIB_WORK, target_of(2**64 - 1))
    weighed: list[Case] = [
        {"rule": "work of target", "name": f"target of {work_of(target)} hashes", "target": target_text(target)}
        | {"work": work_of(target)}
        for target in targets
    ]
    return [*scaled, *retargeted, *named, *weighed, *_attempts()]


def _next(name: str, target: Target, took: Millis, half_life: int, easiest: int) -> Case:
    spacing = Millis(3000)
    result = next_target(target, took, spacing=spacing, half_life=Millis(half_life), easiest_work=easiest)
    return {
        "rule": "next target",
        "name": name,
        "target": target_text(target),
        "took": took,
        "spacing": spacing,
        "half_life": half_life,
        "easiest_work": easiest,
        "next": target_text(result),
    }


def _attempts() -> list[Case]:
    prefix, target = search_prefix(_STORY, _PARENT, ANN.peer_id), target_of(256)
    found = search(prefix, target, 0, 2**16)
    if found is None:
        raise AssertionError("no nonce among 65,536 for 256 hashes of work")
    exact = Target(_attempt(prefix, found, target))
    told = (
        ("the first nonce that meets it", found, target),
        ("the nonce before it", found - 1, target),
        ("a hash equal to the target", found, exact),
        ("a hash one above the target", found, Target(exact - 1)),
        ("everything meets the largest target", 2**64 - 1, Target(2**256 - 1)),
    )
    return [
        {
            "rule": "meets",
            "name": name,
            "story": _STORY.hex(),
            "parent": _PARENT.hex(),
            "producer": ANN.peer_id.hex(),
            "nonce": nonce,
            "target": target_text(limit),
            "meets": meets(prefix, nonce, limit),
        }
        for name, nonce, limit in told
    ]


def _attempt(prefix: bytes, nonce: int, above: Target) -> int:
    """Find the work hash of a nonce that meets `above`, by halving: `meets` is all that the rules show of it."""
    low, high = 0, int(above)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(prefix, nonce, Target(middle)) else (middle + 1, high)
    return low
