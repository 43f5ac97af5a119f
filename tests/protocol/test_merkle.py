"""Roots: of a list as RFC 6962 has it, of a map independent of the order of its changes."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.protocol.merkle import EMPTY_ROOT, MerkleMap, list_root

LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
PUBLISHED = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
KEYS = st.binary(max_size=3)
MAPS = st.dictionaries(KEYS, st.binary(max_size=3), max_size=40)


def map_of(items: dict[bytes, bytes]) -> MerkleMap:
    tree = MerkleMap()
    for key, value in items.items():
        tree = tree.put(key, value)
    return tree


def naive_root(items: dict[bytes, bytes]) -> bytes:
    """Say the definition again: a subtree of one leaf is that leaf, of none the empty root."""

    def subtree(leaves: list[tuple[str, bytes]], depth: int) -> bytes:
        if len(leaves) <= 1:
            return leaves[0][1] if leaves else bytes(32)
        left = [leaf for leaf in leaves if leaf[0][depth] == "0"]
        right = [leaf for leaf in leaves if leaf[0][depth] == "1"]
        return hashlib.sha256(b"\x01" + subtree(left, depth + 1) + subtree(right, depth + 1)).digest()

    leaves = []
    for key, value in items.items():
        path = hashlib.sha256(key).digest()
        leaf = hashlib.sha256(b"\x00" + path + hashlib.sha256(value).digest()).digest()
        leaves.append((f"{int.from_bytes(path, 'big'):0256b}", leaf))
    return subtree(leaves, 0)


@pytest.mark.parametrize("size", range(len(PUBLISHED)))
def test_a_list_has_the_root_published_for_rfc_6962(size: int) -> None:
    assert list_root(LEAVES[:size]).hex() == PUBLISHED[size]


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=40))
def test_a_list_splits_at_the_largest_power_of_two_below_its_length(leaves: list[bytes]) -> None:
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    parts = list_root(leaves[:split]) + list_root(leaves[split:])
    assert list_root(leaves) == hashlib.sha256(b"\x01" + parts).digest()


@settings(max_examples=200, deadline=None)
@given(MAPS)
def test_a_map_has_the_root_that_its_definition_gives(items: dict[bytes, bytes]) -> None:
    assert map_of(items).root == naive_root(items)


@settings(max_examples=200, deadline=None)
@given(items=MAPS, data=st.data())
def test_the_order_of_puts_does_not_matter(items: dict[bytes, bytes], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(list(items.items())))
    assert map_of(dict(shuffled)).root == map_of(items).root


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=3)), max_size=60))
def test_any_sequence_of_puts_and_removals_ends_at_the_root_of_what_is_left(
    steps: list[tuple[bytes, bytes | None]],
) -> None:
    tree, left = MerkleMap(), dict[bytes, bytes]()
    for key, value in steps:
        if value is None:
            tree = tree.remove(key)
            left.pop(key, None)
        else:
            tree = tree.put(key, value)
            left[key] = value
    assert tree.root == naive_root(left)


@settings(max_examples=200, deadline=None)
@given(items=MAPS, key=KEYS, value=st.binary(max_size=3))
def test_removing_undoes_putting_and_leaves_the_older_maps_alone(
    items: dict[bytes, bytes], key: bytes, value: bytes
) -> None:
    items.pop(key, None)
    before = map_of(items)
    root = before.root
    after = before.put(key, value)
    assert after.root != root
    assert after.remove(key).root == root
    assert before.root == root
    assert before.remove(key).root == root


def test_an_empty_map_has_a_root_of_its_own() -> None:
    assert MerkleMap().root == EMPTY_ROOT == bytes(32)
    assert MerkleMap().remove(b"nothing").root == EMPTY_ROOT


def test_a_root_tells_keys_from_values() -> None:
    assert MerkleMap().put(b"a", b"b").root != MerkleMap().put(b"b", b"a").root
    assert MerkleMap().put(b"a", b"bc").root != MerkleMap().put(b"ab", b"c").root
