"""Two Merkle structures: the root of a list, and a persistent map whose root costs only the keys touched.

Source: the list root is RFC 6962 §2.1; the map is a binary radix tree over SHA-256(key) in which a subtree with one
leaf *is* that leaf, as in the Jellyfish Merkle tree (Gao, Hu and Wu, 2021). docs/protocol/state.md has the formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from loremesh.primitives import Hash

EMPTY_ROOT: Final = Hash(bytes(32))
"""The root of a map without keys."""
_ROOT_OF_NONE: Final = Hash(sha256().digest())


def list_root(leaves: Sequence[bytes]) -> Hash:
    """Give the RFC 6962 root of `leaves`; of none, SHA-256 of nothing."""
    if not leaves:
        return _ROOT_OF_NONE
    level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    # Pairing level by level and carrying an odd node up gives RFC 6962's split at the largest power of two.
    while len(level) > 1:
        paired = [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return Hash(level[0])


# Nodes are bare tuples: a block makes about ten of them for every key it touches, and a class would double the cost.
_Leaf = tuple[bytes, bytes]
"""Root, path; the path is SHA-256(key), and empty where there is nothing."""
_Branch = tuple[bytes, "_Node", "_Node"]
"""Root, left, right."""
_Node = _Leaf | _Branch

_NOTHING: Final[_Leaf] = (EMPTY_ROOT, b"")


@dataclass(frozen=True, slots=True)
class MerkleMap:
    """A map from keys to values of which only the hashes are kept: enough for its root."""

    _top: _Node = _NOTHING

    @property
    def root(self) -> Hash:
        """The root over all keys and values, independent of the order in which they came."""
        return Hash(self._top[0])

    def put(self, key: bytes, value: bytes) -> "MerkleMap":
        """Give the map in which `key` stands for `value`."""
        path = sha256(key).digest()
        return MerkleMap(_put(self._top, (sha256(b"\x00" + path + sha256(value).digest()).digest(), path), 0))

    def remove(self, key: bytes) -> "MerkleMap":
        """Give the map without `key`."""
        return MerkleMap(_remove(self._top, sha256(key).digest(), 0))


def _branch(left: _Node, right: _Node) -> _Branch:
    return sha256(b"\x01" + left[0] + right[0]).digest(), left, right


def _goes_right(path: bytes, depth: int) -> int:
    return path[depth >> 3] & (0x80 >> (depth & 7))


def _put(node: _Node, leaf: _Leaf, depth: int) -> _Node:
    left: _Node
    right: _Node
    if len(node) == 3:  # noqa: PLR2004 - a branch
        _, left, right = node
    elif not node[1] or node[1] == leaf[1]:
        return leaf
    else:
        # Two leaves in one subtree: push the older one down a level, then go on as in any branch.
        left, right = (_NOTHING, node) if _goes_right(node[1], depth) else (node, _NOTHING)
    # `_goes_right` and `_branch` by hand: a block comes by here a hundred times.
    if leaf[1][depth >> 3] & (0x80 >> (depth & 7)):
        right = _put(right, leaf, depth + 1)
    else:
        left = _put(left, leaf, depth + 1)
    return sha256(b"\x01" + left[0] + right[0]).digest(), left, right


def _remove(node: _Node, path: bytes, depth: int) -> _Node:
    if len(node) == 2:  # noqa: PLR2004 - a leaf
        return _NOTHING if node[1] == path else node
    _, left, right = node
    if _goes_right(path, depth):
        right = _remove(right, path, depth + 1)
    else:
        left = _remove(left, path, depth + 1)
    # A lone leaf moves up, so that a removed key leaves no trace in the root.
    if left is _NOTHING and len(right) == 2:  # noqa: PLR2004 - a leaf
        return right
    if right is _NOTHING and len(left) == 2:  # noqa: PLR2004 - a leaf
        return left
    return _branch(left, right)
