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
from collections.abc import Callable
from dataclasses import dataclass
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


# What reads and writes a type is source made of the marks of its fields, as a dataclass makes its constructor: a loop
# over them takes three times as long. `_name` is the item of an array that stands for the field `value.name`.
_SOURCE: Final = """
def from_array(array):
    if type(array) is list and len(array) == {length}:
        {items}, = array
        if {conditions}:
            value = twin()
            {assignments}
            value.__class__ = cls
            return value
    return read_one_by_one(array)


def to_array(value):
    return [{version}, {fields}]
"""


def _build(cls: type, version: int, limit: int) -> _Schema:
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cast("Any", cls))]
    shapes = [_shape(f"{cls.__name__}.{name}", hints[name]) for name in names]
    # The constructor of a frozen dataclass takes five times as long as it takes to set the slots of an ordinary object.
    # So a value is made as its ordinary twin, and becomes frozen when it is complete.
    twin: Any = type(cls.__name__, (), {"__slots__": names})

    def read_one_by_one(array: Any) -> Any:  # noqa: ANN401 - this is the check
        """Read what is unusual, or say what is wrong with it."""
        if type(array) is not list or not array:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{cls.__name__} is not an array")
        if type(array[0]) is not int or array[0] != version:
            # Only an integer is shown: the repr of whatever else stands here may nest too deep for Python.
            shown = array[0] if type(array[0]) is int else "that is no integer"
            raise InvalidMessage(Fault.UNKNOWN_VERSION, f"{cls.__name__} version {shown}")
        if len(array) != len(names) + 1:
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{cls.__name__} of {len(array) - 1} fields, not {len(names)}")
        value = twin()
        for name, shape, item in zip(names, shapes, array[1:], strict=True):
            setattr(value, name, shape.read(item))
        value.__class__ = cls
        return value

    fields = list(zip(names, shapes, strict=True))
    known: dict[str, Any] = {"cls": cls, "twin": twin, "read_one_by_one": read_one_by_one}
    known |= {f"read_{name}": shape.read for name, shape in fields}
    known |= {f"write_{name}": shape.write for name, shape in fields}
    code = compile(_source(version, fields), f"<codec of {cls.__name__}>", "exec")
    exec(code, known)  # noqa: S102 - made of our own marks, never of what came
    longest = max([len(names) + 1, *(shape.longest_array for shape in shapes)])
    return _Schema(version, limit, known["to_array"], known["from_array"], longest)


def _source(version: int, fields: "list[tuple[str, _Shape]]") -> str:
    tests = ["type(version) is int", f"version == {version}", *(shape.test.format(name) for name, shape in fields)]
    return _SOURCE.format(
        version=version,
        length=len(fields) + 1,
        items=", ".join(["version", *(f"_{name}" for name, _ in fields)]),
        conditions=" and ".join(tests),
        assignments="; ".join(f"value.{name} = {shape.taken.format(name)}" for name, shape in fields),
        fields=", ".join(shape.given.format(name) for name, shape in fields),
    )


@dataclass(frozen=True, slots=True)
class _Shape:
    """How one field is read and written, and what `_SOURCE` says of it; `{0}` is the field's name."""

    read: Check
    """From what MessagePack gives, whatever that is."""
    test: str
    """Tells an item that can be `taken`; one that fails may still be right, and is given to `read`."""
    taken: str = "_{0}"
    given: str = "value.{0}"
    write: Check | None = None
    """What `given` calls."""
    longest_array: int = 0


def _shape(where: str, hint: Any) -> _Shape:  # noqa: ANN401 - annotations are of any type
    if hint in _schemas:
        nested = _schemas[hint]
        return _Shape(
            nested.from_array,
            "type(_{0}) is list",
            "read_{0}(_{0})",
            "write_{0}(value.{0})",
            nested.to_array,
            nested.longest_array,
        )
    base, mark = get_args(hint) or (hint, None)
    match mark:
        case Int(low, high):
            above = "" if high == U64_MAX else f" <= {high}"  # no integer of MessagePack is above
            return _Shape(_read_int(where, low, high), f"type(_{{0}}) is int and {low} <= _{{0}}{above}")
        case Bytes(low, high):
            high = low if high is None else high
            length = f"len(_{{0}}) == {low}" if low == high else f"{low} <= len(_{{0}}) <= {high}"
            return _Shape(_read_bytes(where, low, high), f"type(_{{0}}) is bytes and {length}")
        case Text(limit) | Verbatim(limit):
            read = _read_text(where, limit) if type(mark) is Text else _read_verbatim(where, limit)
            return _Shape(read, f"type(_{{0}}) is str and _{{0}}.isascii() and len(_{{0}}) <= {limit}")
        case Uint256():
            return _Shape(
                _read_uint256(where),
                "type(_{0}) is bytes and len(_{0}) == 32",
                'int.from_bytes(_{0}, "big")',
                'value.{0}.to_bytes(32, "big")',
            )
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

    return _Shape(
        read,
        "type(_{0}) is list",
        "read_{0}(_{0}) if _{0} else ()",
        "write_{0}(value.{0}) if value.{0} else []",
        write,
        max(limit, item.longest_array),
    )
