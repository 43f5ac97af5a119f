"""Two Merkle structures: the root of a list, and a persistent map whose root costs only the keys touched.

Source: the list root is RFC 6962 §2.1; the map is a binary radix tree over SHA-256(key) in which a subtree with one
leaf *is* that leaf, as in the Jellyfish Merkle tree (Gao, Hu and Wu, 2021). docs/protocol/state.md has the formulas.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from loremesh.primitives import Hash

EMPTY_ROOT: Final = Hash(bytes(32))
"""The root of a map without keys."""


def list_root(leaves: Sequence[bytes]) -> Hash:
    """Give the RFC 6962 root of `leaves`; of none, SHA-256 of nothing."""
    if not leaves:
        return Hash(hashlib.sha256().digest())
    level = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in leaves]
    # Pairing level by level and carrying an odd node up gives RFC 6962's split at the largest power of two.
    while len(level) > 1:
        paired = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return Hash(level[0])


@dataclass(frozen=True, slots=True)
class _Leaf:
    root: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class _Branch:
    root: bytes
    left: "_Node"
    right: "_Node"


_Node = _Leaf | _Branch | None


@dataclass(frozen=True, slots=True)
class MerkleMap:
    """A map from keys to values of which only the hashes are kept: enough for its root."""

    _top: _Node = None

    @property
    def root(self) -> Hash:
        """The root over all keys and values, independent of the order in which they came."""
        return Hash(_root(self._top))

    def put(self, key: bytes, value: bytes) -> "MerkleMap":
        """Give the map in which `key` stands for `value`."""
        path = hashlib.sha256(key).digest()
        leaf = _Leaf(hashlib.sha256(b"\x00" + path + hashlib.sha256(value).digest()).digest(), path)
        return MerkleMap(_put(self._top, leaf, 0))

    def remove(self, key: bytes) -> "MerkleMap":
        """Give the map without `key`."""
        return MerkleMap(_remove(self._top, hashlib.sha256(key).digest(), 0))


def _root(node: _Node) -> bytes:
    return EMPTY_ROOT if node is None else node.root


def _branch(left: _Node, right: _Node) -> _Branch:
    return _Branch(hashlib.sha256(b"\x01" + _root(left) + _root(right)).digest(), left, right)


def _goes_right(path: bytes, depth: int) -> bool:
    return bool(path[depth >> 3] & (0x80 >> (depth & 7)))


def _put(node: _Node, leaf: _Leaf, depth: int) -> _Node:
    if node is None or (isinstance(node, _Leaf) and node.path == leaf.path):
        return leaf
    if isinstance(node, _Leaf):
        # Two leaves in one subtree: push the older one down a level, then go on as in any branch.
        node = _branch(None, node) if _goes_right(node.path, depth) else _branch(node, None)
    if _goes_right(leaf.path, depth):
        return _branch(node.left, _put(node.right, leaf, depth + 1))
    return _branch(_put(node.left, leaf, depth + 1), node.right)


def _remove(node: _Node, path: bytes, depth: int) -> _Node:
    if node is None or isinstance(node, _Leaf):
        return None if node is not None and node.path == path else node
    left, right = node.left, node.right
    if _goes_right(path, depth):
        right = _remove(right, path, depth + 1)
    else:
        left = _remove(left, path, depth + 1)
    # A lone leaf moves up, so that a removed key leaves no trace in the root.
    if left is None and not isinstance(right, _Branch):
        return right
    if right is None and not isinstance(left, _Branch):
        return left
    return _branch(left, right)
