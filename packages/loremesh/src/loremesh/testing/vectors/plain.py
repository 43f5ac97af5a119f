"""How a value of the protocol is written in a vector: JSON that every language reads.

Bytes are hexadecimal, a target is 64 hexadecimal digits, integers are exact (up to 2^64 - 1, beyond what a double
holds), a type is an object with its fields in the order in which they are encoded.
"""

import dataclasses
from collections.abc import Callable

from loremesh.errors import LoremeshError, ProtocolError

Case = dict[str, object]


def plain(value: object, name: str = "") -> object:
    """Write a value for JSON; `name` is the field it stands in."""
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return {field: plain(getattr(value, field), field) for field in fields}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if name == "target" and isinstance(value, int):
        return target_text(value)
    return value


def target_text(target: int) -> str:
    """Write a target as 32 bytes, big-endian."""
    return target.to_bytes(32, "big").hex()


def outcome(attempt: Callable[[], object]) -> Case:
    """Give `{"fault": null}`, or the fault or the kind of error that `attempt` ends with."""
    try:
        attempt()
    except ProtocolError as error:
        return {"fault": str(error.fault)}
    except LoremeshError as error:
        return {"fault": type(error).__name__}
    return {"fault": None}
