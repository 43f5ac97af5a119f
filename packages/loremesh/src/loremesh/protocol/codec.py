"""Canonical MessagePack: one value has one encoding, and nothing else decodes.

A type is a frozen dataclass marked with `schema`; it travels as a fixed-order array whose first element is the schema
version. There are no maps, floats, nils, booleans or extension types, so nothing is left to argue about. Each field
says its shape with one of the marks below; the marks are all there is: this module's table turns arrays into
dataclasses and back, and is the only door to `msgpack`.

Limits hold before anything is allocated: the input's length against the type's limit, and every array, string and
byte-string header against what the type could hold at most.

Source: docs/protocol/encoding.md; the MessagePack specification for the byte formats.
"""

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Annotated, Any, Final, TypeVar, cast, dataclass_transform, get_args, get_origin, get_type_hints

import msgpack

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import (
    HASH_BYTES,
    PEER_ID_BYTES,
    SIGNATURE_BYTES,
    Hash,
    Height,
    Millis,
    PeerId,
    Signature,
    Target,
)

T = TypeVar("T")
Check = Callable[[Any], Any]

U64_MAX: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Int:
    """An unsigned integer between `low` and `high`, both included."""

    low: int = 0
    high: int = U64_MAX


@dataclass(frozen=True, slots=True)
class Bytes:
    """A byte string of `low` to `high` bytes; exactly `low` without `high`."""

    low: int
    high: int | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A string in NFC of at most `limit` bytes of UTF-8."""

    limit: int


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A string of at most `limit` bytes of UTF-8, kept as somebody wrote it: what a model reads or answers."""

    limit: int


@dataclass(frozen=True, slots=True)
class Uint256:
    """An integer up to 2^256 - 1, as 32 bytes, big-endian."""


@dataclass(frozen=True, slots=True)
class Many:
    """A tuple of at most `limit` elements; `Many(1)` is how an optional value travels."""

    limit: int


HashField = Annotated[Hash, Bytes(HASH_BYTES)]
PeerIdField = Annotated[PeerId, Bytes(PEER_ID_BYTES)]
SignatureField = Annotated[Signature, Bytes(SIGNATURE_BYTES)]
HeightField = Annotated[Height, Int()]
MillisField = Annotated[Millis, Int()]
TargetField = Annotated[Target, Uint256()]
U64 = Annotated[int, Int()]


@dataclass(slots=True)
class _Schema:
    """What the table knows about one type."""

    version: int
    limit: int
    to_array: Callable[[Any], list[Any]]
    from_array: Callable[[Any], Any]
    longest_array: int


_schemas: dict[type, _Schema] = {}


@dataclass_transform(frozen_default=True)
def schema(*, version: int, limit: int) -> Callable[[type[T]], type[T]]:
    """Mark a frozen, slotted dataclass as encodable.

    Args:
        version: First element of the array; any other version is refused.
        limit: Most bytes an encoded value may have.
    """

    def register(cls: type[T]) -> type[T]:
        _schemas[cls] = _build(cls, version, limit)
        return cls

    return register


def encode(value: object) -> bytes:
    """Give the one encoding of `value`, whose type is marked with `schema`.

    Raises:
        InvalidMessage: TOO_LARGE, the value is beyond its type's limit.
    """
    known = _schemas[type(value)]
    data = _pack(known.to_array(value))
    if len(data) > known.limit:
        raise InvalidMessage(Fault.TOO_LARGE, f"{type(value).__name__} of {len(data)} bytes, limit {known.limit}")
    return data


def decode(cls: type[T], data: bytes) -> T:
    """Read one value of type `cls` out of exactly `data`.

    Raises:
        InvalidMessage: Whatever `encode` could not have produced, with the fault that says why.
    """
    known = _schemas[cls]
    if len(data) > known.limit:
        raise InvalidMessage(Fault.TOO_LARGE, f"{cls.__name__} of {len(data)} bytes, limit {known.limit}")
    array = _unpack(data, known)
    value: T = known.from_array(array)
    if _pack(array) != data:
        raise InvalidMessage(Fault.NOT_CANONICAL, f"{cls.__name__} has a shorter encoding")
    return value


def limit_of(cls: type) -> int:
    """Tell the most bytes an encoded value of type `cls` may have."""
    return _schemas[cls].limit


# One packer for all: it keeps its buffer, which `packb` would allocate anew each time.
_pack: Final[Callable[[list[Any]], bytes]] = msgpack.Packer().pack


def _unpack(data: bytes, known: _Schema) -> Any:  # noqa: ANN401 - checked by from_array
    try:
        return msgpack.unpackb(data, max_array_len=known.longest_array, max_map_len=0, max_ext_len=0)
    except msgpack.ExtraData as error:
        raise InvalidMessage(Fault.TRAILING_BYTES) from error
    except msgpack.StackError as error:
        raise InvalidMessage(Fault.TOO_DEEP) from error
    except UnicodeDecodeError as error:
        raise InvalidMessage(Fault.WRONG_SHAPE, "text is not UTF-8") from error
    except (ValueError, msgpack.UnpackException) as error:
        incomplete = "incomplete" in str(error)
        raise InvalidMessage(Fault.TRUNCATED if incomplete else Fault.WRONG_SHAPE, str(error)) from error


def _build(cls: type, version: int, limit: int) -> _Schema:
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cast("Any", cls))]
    shapes = [_shape(f"{cls.__name__}.{name}", hints[name]) for name in names]
    kinds = [int, *(shape.kind for shape in shapes)]
    # Checked all at once, which costs a third; whatever fails there is read field by field, to say what is wrong.
    places = list(enumerate(shapes, start=1))
    numbered = [place for place, shape in places if shape.any_number]
    numbers = _picker(itemgetter, numbered)
    fixed = _picker(itemgetter, [place for place, shape in places if shape.length is not None])
    lengths = [shape.length for shape in shapes if shape.length is not None]
    others = [(place - 1, shape.read) for place, shape in places if not shape.any_number and shape.length is None]
    writes = [(place, shape.write) for place, shape in places if shape.write is not None]
    values_of = _picker(attrgetter, names)
    twin = _twin(cls, names)

    def from_array(array: Any) -> Any:  # noqa: ANN401 - this is the check
        if (
            type(array) is list
            and [*map(type, array)] == kinds
            and array[0] == version
            and (not lengths or [*map(len, fixed(array))] == lengths)
            and (not numbered or min(numbers(array)) >= 0)
        ):
            items = array[1:]
            for index, read in others:
                items[index] = read(items[index])
        else:
            items = read_one_by_one(array)
        value = twin(*items)
        value.__class__ = cls  # see `_twin`
        return value

    def read_one_by_one(array: Any) -> list[Any]:  # noqa: ANN401 - this is the check
        if type(array) is not list or not array:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{cls.__name__} is not an array")
        if type(array[0]) is not int or array[0] != version:
            # Only an integer is shown: the repr of whatever else stands here may nest too deep for Python.
            shown = array[0] if type(array[0]) is int else "that is no integer"
            raise InvalidMessage(Fault.UNKNOWN_VERSION, f"{cls.__name__} version {shown}")
        if len(array) != len(kinds):
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{cls.__name__} of {len(array) - 1} fields, not {len(names)}")
        return [shape.read(item) for shape, item in zip(shapes, array[1:], strict=True)]

    def to_array(value: Any) -> list[Any]:  # noqa: ANN401 - any marked type
        array = [version, *values_of(value)]
        for place, write in writes:
            array[place] = write(array[place])
        return array

    longest = max([len(kinds), *(shape.longest_array for shape in shapes)])
    return _Schema(version, limit, to_array, from_array, longest)


def _picker(getter: Any, keys: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:  # noqa: ANN401 - of two kinds
    """Give the function that takes the values of `keys` out of an object: `getter(*keys)`, for any number of keys."""
    match keys:
        case []:
            return lambda _: ()
        case [key]:
            get = getter(key)
            return lambda value: (get(value),)
    return cast("Callable[[Any], tuple[Any, ...]]", getter(*keys))


def _twin(cls: type, names: list[str]) -> Any:  # noqa: ANN401 - a class made at run time
    """Give an ordinary dataclass with the slots of `cls`.

    The constructor of a frozen dataclass costs four times as much as an ordinary one's. So a value is made as its
    ordinary twin, and becomes frozen when it is complete.
    """
    plain = type(cls.__name__, (), {"__slots__": names, "__annotations__": dict.fromkeys(names, Any)})
    return dataclass(eq=False, repr=False, match_args=False)(plain)


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one field is read (checked) and written; `write` None: as it is."""

    kind: type
    """What MessagePack gives for it."""
    read: Check
    write: Check | None = None
    longest_array: int = 0
    any_number: bool = False
    """Every unsigned integer that MessagePack knows will do."""
    length: int | None = None
    """The length of a byte string that has only one."""


def _shape(where: str, hint: Any) -> _Shape:  # noqa: ANN401 - annotations are of any type
    if hint in _schemas:
        nested = _schemas[hint]
        return _Shape(list, nested.from_array, nested.to_array, nested.longest_array)
    base, mark = get_args(hint) or (hint, None)
    match mark:
        case Int(low, high):
            return _Shape(int, _read_int(where, low, high), any_number=(low, high) == (0, U64_MAX))
        case Bytes(low, high):
            high = low if high is None else high
            return _Shape(bytes, _read_bytes(where, low, high), length=low if low == high else None)
        case Text(limit) | Verbatim(limit):
            return _Shape(str, (_read_text if type(mark) is Text else _read_verbatim)(where, limit))
        case Uint256():
            return _Shape(bytes, _read_uint256(where), lambda value: value.to_bytes(32, "big"))
        case Many(limit) if get_origin(base) is tuple:
            return _many(where, limit, _shape(where, get_args(base)[0]))
    raise TypeError(f"{where} has no mark the codec knows")


def _read_int(where: str, low: int, high: int) -> Check:
    def read(value: object) -> int:
        if type(value) is not int:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is not an integer")
        if not low <= value <= high:
            raise InvalidMessage(Fault.OUT_OF_RANGE, f"{where} is not in {low}..{high}")
        return value

    return read


def _read_bytes(where: str, low: int, high: int) -> Check:
    def read(value: object) -> bytes:
        if type(value) is not bytes:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is not bytes")
        if not low <= len(value) <= high:
            raise InvalidMessage(Fault.OUT_OF_RANGE, f"{where} has {len(value)} bytes, not {low}..{high}")
        return value

    return read


def _read_verbatim(where: str, limit: int) -> Check:
    def read(value: object) -> str:
        if type(value) is not str:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is not text")
        if len(value) > limit or (not value.isascii() and len(value.encode()) > limit):
            raise InvalidMessage(Fault.TOO_LARGE, f"{where} has more than {limit} bytes")
        return value

    return read


def _read_text(where: str, limit: int) -> Check:
    read_verbatim = _read_verbatim(where, limit)

    def read(value: object) -> str:
        if type(value) is str and value.isascii() and len(value) <= limit:
            return value
        text: str = read_verbatim(value)
        if not unicodedata.is_normalized("NFC", text):
            raise InvalidMessage(Fault.NOT_NFC, where)
        return text

    return read


def shortened(text: str, limit: int) -> str:
    """Make any text one that a `Text` field of `limit` bytes takes: in NFC, and cut where it is too long."""
    kept = unicodedata.normalize("NFC", text).encode("utf-8", "replace")
    while True:  # cutting may part a letter from its accent, which leaves another letter: then it is cut again
        shorter = unicodedata.normalize("NFC", kept[:limit].decode("utf-8", "ignore"))
        kept = shorter.encode()
        if len(kept) <= limit:
            return shorter


def _read_uint256(where: str) -> Check:
    read_bytes = _read_bytes(where, 32, 32)
    return lambda value: int.from_bytes(read_bytes(value), "big")


def _many(where: str, limit: int, item: _Shape) -> _Shape:
    def read(value: object) -> tuple[Any, ...]:
        if type(value) is not list:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is not an array")
        if len(value) > limit:
            raise InvalidMessage(Fault.OUT_OF_RANGE, f"{where} has {len(value)} elements, at most {limit}")
        return tuple(map(item.read, value))

    def write(values: tuple[Any, ...]) -> list[Any]:
        return list(values) if item.write is None else list(map(item.write, values))

    return _Shape(list, read, write, max(limit, item.longest_array))
