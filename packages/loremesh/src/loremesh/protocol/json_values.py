"""Values of the protocol as JSON objects that can be read back: for what leaves the mesh and is checked elsewhere.

An object has exactly the fields of its type. Bytes are lower-case hexadecimal, peer ids their usual text; a value has
one form, so whatever is changed in it is another value or none.

Source: docs/receipts.md.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from loremesh.errors import Fault, InvalidMessage
from loremesh.primitives import PeerId
from loremesh.protocol.codec import U64_MAX, decode, encode
from loremesh.protocol.identity import peer_id_from_text, peer_id_text

T = TypeVar("T")
Reader = Callable[[object, str], Any]
"""Takes a JSON value and the name of its place."""

_SHOWN: Final = 40


def parse_json(data: bytes) -> object:
    """Read JSON in UTF-8 that says nothing twice.

    Raises:
        InvalidMessage: WRONG_SHAPE, it is not JSON; DUPLICATE, a name stands twice in one object; TOO_DEEP.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InvalidMessage(Fault.DUPLICATE, "a name stands twice in one object")
        return found

    try:
        value: object = json.loads(data.decode(), object_pairs_hook=once)
    except RecursionError as error:
        raise InvalidMessage(Fault.TOO_DEEP) from error
    except ValueError as error:
        raise InvalidMessage(Fault.WRONG_SHAPE, f"not JSON: {error}") from error
    return value


def to_json(value: object) -> Any:  # noqa: ANN401 - JSON
    """Write a value of a type that the codec knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {
            name: peer_id_text(getattr(value, name)) if hint is PeerId else to_json(getattr(value, name))
            for name, hint in hints.items()
        }
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value


def from_json(cls: type[T], value: object, where: str) -> T:
    """Read a value of type `cls`, as `decode` would accept it.

    Args:
        cls: A type that the codec knows.
        value: What `parse_json` gave.
        where: What to call it when something in it is wrong.

    Raises:
        InvalidMessage: WRONG_SHAPE and others, with the place.
    """
    made: T = _reader(cast("Any", cls))(value, where)
    try:
        return decode(cls, encode(made))
    except InvalidMessage as error:
        raise InvalidMessage(error.fault, f"{where}: {error.detail}") from error


def members(value: object, where: str, names: frozenset[str]) -> dict[str, Any]:
    """See that `value` is an object with exactly these names.

    Raises:
        InvalidMessage: WRONG_SHAPE, with the place.
    """
    if not isinstance(value, dict):
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is no object")
    if value.keys() != names:
        missing, odd = names - value.keys(), value.keys() - names
        what = f"has no {min(missing)}" if missing else f"has {min(odd)[:_SHOWN]!r}, which does not belong there"
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} {what}")
    return cast("dict[str, Any]", value)


def elements(value: object, where: str) -> list[Any]:
    """See that `value` is an array.

    Raises:
        InvalidMessage: WRONG_SHAPE, with the place.
    """
    if not isinstance(value, list):
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is no array")
    return value


def read_int(value: object, where: str) -> int:
    """Read an unsigned integer of at most 64 bits.

    Raises:
        InvalidMessage: WRONG_SHAPE, with the place.
    """
    if type(value) is not int or not 0 <= value <= U64_MAX:
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is no integer of 64 bits")
    return value


def read_text(value: object, where: str) -> str:
    """Read a text that UTF-8 can say.

    Raises:
        InvalidMessage: WRONG_SHAPE, with the place.
    """
    if not isinstance(value, str):
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is no text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} has half a character") from error
    return value


def read_bytes(value: object, where: str) -> bytes:
    """Read lower-case hexadecimal.

    Raises:
        InvalidMessage: WRONG_SHAPE, with the place.
    """
    text = read_text(value, where)
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if data.hex() != text:
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is not lower-case hexadecimal")
    return data


def read_peer_id(value: object, where: str) -> PeerId:
    """Read a peer id from its text.

    Raises:
        InvalidMessage: WRONG_SHAPE or BAD_KEY, with the place.
    """
    text = read_text(value, where)
    try:
        return peer_id_from_text(text)
    except InvalidMessage as error:
        raise InvalidMessage(error.fault, f"{where}: {error.detail}") from error


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    """Give the fields of a type with what they hold, the codec's marks left out."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@lru_cache
def _reader(hint: Any) -> Reader:  # noqa: ANN401 - annotations are of any type
    if hint is PeerId:
        return read_peer_id
    kind = getattr(hint, "__supertype__", hint)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if get_origin(hint) is tuple:
        item = _reader(get_args(hint)[0])
        return lambda value, where: tuple(
            item(one, f"{where}[{place}]") for place, one in enumerate(elements(value, where))
        )
    readers = {name: _reader(inner) for name, inner in _hints(hint).items()}
    names = frozenset(readers)

    def read(value: object, where: str) -> object:
        found = members(value, where, names)
        return hint(**{name: one(found[name], f"{where}.{name}") for name, one in readers.items()})

    return read


_SIMPLE: Final[dict[object, Reader]] = {int: read_int, str: read_text, bytes: read_bytes}
