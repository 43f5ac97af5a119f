"""A path answers as a list of hashes does, and what is added or cut leaves the path that it was made from alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.primitives import Hash
from loremesh.protocol.path import Path, path_of

lengths = st.integers(0, 40)


def names(count: int, branch: bytes = b"") -> list[Hash]:
    return [Hash(hashlib.sha256(branch + bytes([number])).digest()) for number in range(count)]


def told(path: Path) -> list[Hash]:
    return [path[height] for height in range(len(path))]


@given(lengths)
def test_a_path_gives_back_the_block_of_each_height_and_none_above(count: int) -> None:
    path = path_of(names(count))
    assert told(path) == names(count)
    assert [path.get(height) for height in range(count, count + 20)] == [None] * 20
    with pytest.raises(IndexError):
        path[count]


@given(lengths)
def test_a_path_that_grew_block_by_block_is_the_one_that_was_made_at_once(count: int) -> None:
    path = path_of(())
    for name in names(count):
        path = path.append(name)
    assert told(path) == told(path_of(names(count)))


@given(lengths, lengths, lengths)
def test_another_end_leaves_the_old_path_as_it_was(count: int, kept: int, grown: int) -> None:
    kept = min(kept, count)
    path = path_of(names(count))
    other = path.cut(kept)
    for name in names(grown, b"other"):
        other = other.append(name)
    assert told(path) == names(count)
    assert told(other) == names(count)[:kept] + names(grown, b"other")
