"""One value has one encoding, and nothing else decodes."""

import dataclasses
import tracemalloc
import unicodedata
from typing import Annotated, Any, get_args, get_type_hints

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh.errors import Fault, InvalidMessage
from loremesh.protocol import codec
from loremesh.protocol.block import Block, Header
from loremesh.protocol.codec import (
    Bytes,
    Int,
    Many,
    Text,
    Uint256,
    Verbatim,
    decode,
    encode,
    limit_of,
    schema,
    shortened,
)
from loremesh.protocol.genesis import Rules
from loremesh.protocol.state import Author, Suggestion
from loremesh.protocol.transaction import Suggest
from loremesh.protocol.wire import Account, Status
from loremesh.testing.bad_blocks import scene

TYPES = [cls for cls in codec._schemas if cls.__module__.startswith("loremesh.")]
U64 = 2**64 - 1


def values_of(cls: type) -> st.SearchStrategy[Any]:
    """Every value that a type can have, the small ones more often."""
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: values_of_field(hints[field.name]) for field in dataclasses.fields(cls)})


def values_of_field(hint: Any) -> st.SearchStrategy[Any]:
    if hint in codec._schemas:
        return values_of(hint)
    base, mark = get_args(hint)
    match mark:
        case Int(low, high):
            borders = [low, high, *(edge for edge in (127, 128, 255, 256, 65535, 65536, 2**32) if low <= edge <= high)]
            return st.sampled_from(borders) | st.integers(low, high)
        case Bytes(low, high):
            return st.binary(min_size=low, max_size=low if high is None else min(high, 300))
        case Text(limit) | Verbatim(limit):
            return texts(min(limit, 40)) if type(mark) is Text else st.text(max_size=min(limit, 40) // 4)
        case Uint256():
            return st.sampled_from([0, 1, 2**64, 2**256 - 1]) | st.integers(0, 2**256 - 1)
        case Many(limit):
            return st.lists(values_of_field(get_args(base)[0]), max_size=min(limit, 3)).map(tuple)
    raise AssertionError(mark)


def texts(limit: int) -> st.SearchStrategy[str]:
    folded = st.text(max_size=limit // 4).map(lambda text: unicodedata.normalize("NFC", text))
    return folded.filter(lambda text: len(text.encode()) <= limit)


EVERY_VALUE = st.sampled_from(TYPES).flatmap(values_of)


def fault_of(cls: type, data: bytes) -> Fault | None:
    try:
        decode(cls, data)
    except InvalidMessage as error:
        return error.fault
    return None


@schema(version=1, limit=64)
@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    words: Annotated[str, Verbatim(6)]


@pytest.mark.parametrize("words", ["", "abcdef", "e\u0301\u212b", "\u0301", "🐉"])
def test_what_somebody_wrote_is_kept_as_it_is(words: str) -> None:
    assert decode(Said, encode(Said(words))).words == words


@pytest.mark.parametrize("words", ["abcdefg", "e\u0301e\u0301e\u0301", "🐉🐉"])
def test_what_somebody_wrote_has_a_limit_in_bytes(words: str) -> None:
    assert fault_of(Said, encode(Said(words))) is Fault.TOO_LARGE


def test_every_type_that_travels_is_tested_here() -> None:
    assert {Block, Status, Account, Rules, Suggest, Author, Suggestion} <= set(TYPES)
    assert len(TYPES) >= 30


@settings(max_examples=600, deadline=None)
@given(EVERY_VALUE)
def test_decoding_undoes_encoding(value: object) -> None:
    data = encode(value)
    assert decode(type(value), data) == value
    assert encode(decode(type(value), data)) == data


def holds_header(item: object) -> bool:
    if isinstance(item, Header):
        return True
    if isinstance(item, tuple):
        return any(map(holds_header, item))
    return dataclasses.is_dataclass(item) and any(
        holds_header(getattr(item, field.name)) for field in dataclasses.fields(item)
    )


@settings(max_examples=600, deadline=None)
@given(EVERY_VALUE)
def test_an_encoding_is_the_array_that_the_messagepack_specification_gives(value: object) -> None:
    def array_of(item: Any) -> Any:
        if dataclasses.is_dataclass(item):
            fields = [getattr(item, field.name) for field in dataclasses.fields(item)]
            return [1, *map(array_of, fields)]
        if isinstance(item, tuple):
            return list(map(array_of, item))
        return item

    if holds_header(value):
        return  # a target is wider than an integer of MessagePack
    array = array_of(value)
    assert encode(value) == msgpack.packb(array)


@settings(max_examples=1500, deadline=None)
@given(value=EVERY_VALUE, data=st.data())
def test_changed_bytes_are_refused_or_mean_another_value(value: object, data: st.DataObject) -> None:
    good = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(good) - 1))
        match data.draw(st.sampled_from(["change", "insert", "delete"])):
            case "change":
                good[place] = data.draw(st.integers(0, 255))
            case "insert":
                good.insert(place, data.draw(st.integers(0, 255)))
            case "delete" if len(good) > 1:
                del good[place]
    changed = bytes(good)
    try:
        other = decode(type(value), changed)
    except InvalidMessage:
        return
    assert encode(other) == changed


@settings(max_examples=1500, deadline=None)
@given(cls=st.sampled_from(TYPES), data=st.binary(max_size=200))
def test_random_bytes_are_refused_or_are_the_one_encoding(cls: type, data: bytes) -> None:
    try:
        value: object = decode(cls, data)
    except InvalidMessage:
        return
    assert encode(value) == data


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), U64) | st.floats() | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@settings(max_examples=1000, deadline=None)
@given(cls=st.sampled_from(TYPES), fields=st.lists(JSON_LIKE, max_size=12))
def test_messagepack_of_another_shape_is_refused(cls: type, fields: list[Any]) -> None:
    data = msgpack.packb([1, *fields])
    try:
        value: object = decode(cls, data)
    except InvalidMessage:
        return
    assert encode(value) == data


@settings(max_examples=300, deadline=None)
@given(value=EVERY_VALUE, extra=st.binary(min_size=1, max_size=9))
def test_trailing_bytes_are_refused(value: object, extra: bytes) -> None:
    assert fault_of(type(value), encode(value) + extra) in {Fault.TRAILING_BYTES, Fault.TOO_LARGE}


@settings(max_examples=300, deadline=None)
@given(value=EVERY_VALUE, data=st.data())
def test_every_prefix_is_truncated(value: object, data: st.DataObject) -> None:
    whole = encode(value)
    assert fault_of(type(value), whole[: data.draw(st.integers(0, len(whole) - 1))]) is Fault.TRUNCATED


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("version", [0, 2, 127, 2**64 - 1, True, 1.0, None, b"\x01", "1", [1], {}])
def test_any_other_version_is_refused(cls: type, version: object) -> None:
    fields = len(dataclasses.fields(cls))
    assert fault_of(cls, msgpack.packb([version, *[0] * fields])) in {Fault.UNKNOWN_VERSION, Fault.TOO_LARGE}


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_a_field_too_many_or_too_few_is_refused(cls: type) -> None:
    fields = len(dataclasses.fields(cls))
    for count in {fields + 1, fields + 2, max(fields - 1, 0)} - {fields}:
        assert fault_of(cls, msgpack.packb([1, *[0] * count])) is Fault.WRONG_SHAPE


@pytest.mark.parametrize(
    ("cls", "array"),
    [
        (Account, [1, 1.0]),
        (Account, [1, None]),
        (Account, [1, True]),
        (Account, [1, {}]),
        (Account, [1, msgpack.ExtType(1, b"")]),
        (Account, [1, msgpack.Timestamp(1)]),
        (Account, [1, "1"]),
        (Account, [1, b"\x01"]),
        (Account, [1, [1]]),
        (Suggest, [1, b"rain"]),
        (Suggest, [1, 7]),
        (Status, [1, [], 0, [], 0]),
        (Status, [1, {}, 0, [], []]),
        (Status, [1, [], 0, [], [7]]),
        (Status, [1, [], 0, [], [[]]]),
    ],
)
def test_a_field_of_another_type_is_refused(cls: type, array: list[Any]) -> None:
    assert fault_of(cls, msgpack.packb(array)) is Fault.WRONG_SHAPE


def smallest(hint: Any) -> Any:
    """The item of an array that stands for the least value of a field or a type."""
    if hint in codec._schemas:
        return [1, *map(smallest, marks_of(hint).values())]
    match get_args(hint)[1]:
        case Int(low, _):
            return low
        case Bytes(low, _):
            return bytes(low)
        case Text() | Verbatim():
            return ""
        case Uint256():
            return bytes(32)
        case Many():
            return []
    raise AssertionError(hint)


def marks_of(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def just_outside(hint: Any) -> list[Any]:
    """Items of the right kind that are a little too small, too large, too short or too long."""
    if hint in codec._schemas:
        return [smallest(hint)[:-1], [*smallest(hint), 0]]
    base, mark = get_args(hint)
    match mark:
        case Int(low, high):
            return [low - 1, *([high + 1] if high < U64 else [])]
        case Bytes(low, high):
            return [bytes((low if high is None else high) + 1), *([bytes(low - 1)] if low else [])]
        case Text(limit) | Verbatim(limit):
            return ["a" * (limit + 1), "é" * (limit // 2 + 1)]
        case Uint256():
            return [bytes(31), bytes(33)]
        case Many(limit):
            return [[smallest(get_args(base)[0])] * (limit + 1)]
    raise AssertionError(mark)


FIELDS = [(cls, name) for cls in TYPES for name in marks_of(cls)]


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda part: part if isinstance(part, str) else part.__name__)
def test_each_field_keeps_to_its_kind_and_its_bounds(cls: type, name: str) -> None:
    marks, good = marks_of(cls), smallest(cls)
    place = list(marks).index(name) + 1
    assert fault_of(cls, msgpack.packb(good)) is None
    for item in just_outside(marks[name]):
        bad = msgpack.packb([*good[:place], item, *good[place + 1 :]])
        assert fault_of(cls, bad) in {Fault.OUT_OF_RANGE, Fault.TOO_LARGE, Fault.WRONG_SHAPE}
    for item in (7, b"", "", [], True, None, 1.5, {}, msgpack.ExtType(1, b"")):
        if type(item) is not type(good[place]):
            bad = msgpack.packb([*good[:place], item, *good[place + 1 :]])
            assert fault_of(cls, bad) is Fault.WRONG_SHAPE


@pytest.mark.parametrize("number", [-1, -(2**63)])
def test_negative_numbers_are_out_of_range(number: int) -> None:
    assert fault_of(Account, msgpack.packb([1, number])) is Fault.OUT_OF_RANGE


@pytest.mark.parametrize(
    "wide", ["cc01", "cd0001", "ce00000001", "cf0000000000000001", "d001", "d10001", "d200000001", "d30000000000000001"]
)
def test_one_has_one_encoding(wide: str) -> None:
    assert fault_of(Account, bytes.fromhex("9201" + wide)) is Fault.NOT_CANONICAL
    assert fault_of(Account, bytes.fromhex("92" + wide + "01")) is Fault.NOT_CANONICAL


@pytest.mark.parametrize("wide", ["d901", "da0001", "db00000001"])
def test_a_text_has_one_header(wide: str) -> None:
    assert fault_of(Suggest, bytes.fromhex("9201" + wide + "61")) is Fault.NOT_CANONICAL


@pytest.mark.parametrize("text", ["e\u0301", "\u212b", "\u1100\u1161", "a\u0323\u0307b\u0307\u0323"])
def test_text_not_in_nfc_is_refused(text: str) -> None:
    assert unicodedata.normalize("NFC", text) != text
    assert fault_of(Suggest, msgpack.packb([1, text])) is Fault.NOT_NFC


@pytest.mark.parametrize("raw", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf5\x80\x80\x80"])
def test_text_that_is_not_utf8_is_refused(raw: bytes) -> None:
    assert fault_of(Suggest, b"\x92\x01" + bytes([0xA0 | len(raw)]) + raw) is Fault.WRONG_SHAPE


def test_the_limit_of_a_text_counts_bytes_not_characters() -> None:
    assert fault_of(Suggest, msgpack.packb([1, "é" * 256])) is None
    assert fault_of(Suggest, msgpack.packb([1, "é" * 257])) is Fault.TOO_LARGE
    assert fault_of(Suggest, msgpack.packb([1, "a" * 513])) is Fault.TOO_LARGE


@pytest.mark.parametrize(
    ("words", "fault"), [(0, Fault.OUT_OF_RANGE), (1, None), (140, None), (141, Fault.OUT_OF_RANGE)]
)
def test_numbers_keep_to_their_range(words: int, fault: Fault | None) -> None:
    assert fault_of(Rules, msgpack.packb([1, words, 30, 2**13, 64])) is fault


@pytest.mark.parametrize("depth", [900, 990, 1000, 1010, 1022, 1023, 1024, 10_000])
@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_nesting_never_ends_in_anything_but_a_refusal(cls: type, depth: int) -> None:
    for data in (
        b"\x91" * depth + b"\x01",
        b"\x92\x01" + b"\x91" * depth + b"\x01",
        b"\x92" + b"\x91" * depth + b"\x01",
    ):
        assert fault_of(cls, data) is not None


def test_nesting_10_000_deep_is_too_deep() -> None:
    assert fault_of(Block, b"\x91" * 10_000 + b"\x01") is Fault.TOO_DEEP


BOMBS = {
    "array 2^32-1": b"\xdd\xff\xff\xff\xff",
    "array 2^32-1 in a field": b"\x95\x01\xdd\xff\xff\xff\xff",
    "map 2^32-1": b"\xdf\xff\xff\xff\xff",
    "text 2^32-1": b"\x92\x01\xdb\xff\xff\xff\xff",
    "bytes 2^32-1": b"\x92\x01\xc6\xff\xff\xff\xff",
    "extension 2^32-1": b"\xc9\xff\xff\xff\xff\x01",
    "arrays of 65,535 in each other": b"\xdc\xff\xff" * 1000,
    "maps of 65,535 in each other": b"\xde\xff\xff" * 1000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_header_that_promises_more_than_there_is_allocates_nothing(bomb: bytes) -> None:
    for cls in TYPES:
        fault_of(cls, bomb)  # what is made once is made before we count
    tracemalloc.start()
    try:
        for cls in TYPES:
            assert fault_of(cls, bomb) is not None
            assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_the_deepest_nesting_that_a_type_allows_stays_below_8_mib() -> None:
    data = b"\xdc\x01\x00" * 1023
    tracemalloc.start()
    try:
        assert fault_of(Block, data) is not None
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_more_bytes_than_the_type_may_have_are_refused_unread(cls: type) -> None:
    assert fault_of(cls, bytes(limit_of(cls))) is not Fault.TOO_LARGE
    assert fault_of(cls, bytes(limit_of(cls) + 1)) is Fault.TOO_LARGE


def test_a_value_beyond_its_types_limit_is_not_encoded() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        encode(Suggest("a" * 2000))
    assert refusal.value.fault is Fault.TOO_LARGE


@pytest.mark.parametrize("value", [Account(2**64), Account(-(2**63) - 1), Suggest("\ud800")])
def test_an_encoding_that_fails_leaves_nothing_behind_for_the_next(value: object) -> None:
    before = encode(Account(7))
    with pytest.raises((OverflowError, UnicodeEncodeError)):
        encode(value)
    assert encode(Account(7)) == before


def test_decoded_values_are_as_frozen_as_made_ones() -> None:
    block = scene().good
    again = decode(Block, encode(block))
    assert again == block
    assert hash(again) == hash(block)
    assert repr(again) == repr(block)
    assert type(again) is Block
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.header.height = 7  # type: ignore[misc, assignment]  # that is the point


def test_a_field_without_a_mark_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="no mark the codec knows"):

        @schema(version=1, limit=64)
        @dataclasses.dataclass(frozen=True, slots=True)
        class Unmarked:
            """A type whose field nobody can check."""

            anything: Annotated[int, "whatever"]


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=40), st.integers(0, 40))
def test_any_text_can_be_made_one_that_a_field_takes(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short.encode()) <= limit
    assert unicodedata.is_normalized("NFC", short)
    assert shortened(short, limit) == short


def test_what_fits_a_field_is_not_shortened() -> None:
    assert shortened("A\u030angstr\u00f6m", 10) == "\u00c5ngstr\u00f6m"
    assert shortened("A\u030angstr\u00f6m", 9) == "\u00c5ngstr\u00f6"
