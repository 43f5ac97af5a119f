"""Bytes that are no block, each refused by one rule of the encoding: made out of the bytes of a good block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loremesh.errors import Fault
from loremesh.primitives import KIB


@dataclass(frozen=True, slots=True)
class BadBytes:
    """Bytes that are no block, made out of the bytes of one."""

    name: str
    fault: Fault
    make: Callable[[bytes], bytes]


# A block begins 95 01 9b 01: an array of five, version 1, and in it an array of eleven, version 1.
BAD_BYTES: Final = (
    BadBytes("nothing", Fault.TRUNCATED, lambda _: b""),
    BadBytes("the last byte missing", Fault.TRUNCATED, lambda data: data[:-1]),
    BadBytes("half of it", Fault.TRUNCATED, lambda data: data[: len(data) // 2]),
    BadBytes("a byte too many", Fault.TRAILING_BYTES, lambda data: data + b"\x00"),
    BadBytes("twice", Fault.TRAILING_BYTES, lambda data: data * 2),
    BadBytes("version 2", Fault.UNKNOWN_VERSION, lambda data: data[:1] + b"\x02" + data[2:]),
    BadBytes("header of version 2", Fault.UNKNOWN_VERSION, lambda data: data[:3] + b"\x02" + data[4:]),
    BadBytes("version as a boolean", Fault.UNKNOWN_VERSION, lambda data: data[:1] + b"\xc3" + data[2:]),
    BadBytes("version nested 1,000 deep", Fault.UNKNOWN_VERSION, lambda data: b"\x95" + b"\x91" * 1000 + data[1:]),
    BadBytes("version in two bytes", Fault.NOT_CANONICAL, lambda data: data[:1] + b"\xcc\x01" + data[2:]),
    BadBytes("array header in three bytes", Fault.NOT_CANONICAL, lambda data: b"\xdc\x00\x05" + data[1:]),
    BadBytes("an element too many", Fault.WRONG_SHAPE, lambda data: b"\x96" + data[1:] + b"\x00"),
    BadBytes("a field missing", Fault.WRONG_SHAPE, lambda data: b"\x94" + data[1:-1]),
    BadBytes("nil", Fault.WRONG_SHAPE, lambda _: b"\xc0"),
    BadBytes("an empty map", Fault.WRONG_SHAPE, lambda _: b"\x80"),
    BadBytes("a map", Fault.WRONG_SHAPE, lambda _: b"\x81\x01\x02"),
    BadBytes("an extension", Fault.WRONG_SHAPE, lambda _: b"\xd4\x01\x00"),
    BadBytes("a reserved byte", Fault.WRONG_SHAPE, lambda _: b"\xc1"),
    BadBytes("nested 10,000 deep", Fault.TOO_DEEP, lambda _: b"\x91" * 10_000 + b"\x01"),
    BadBytes("array header 2^32-1", Fault.WRONG_SHAPE, lambda _: b"\xdd\xff\xff\xff\xff"),
    BadBytes("string header 2^32-1", Fault.TRUNCATED, lambda _: b"\xdb\xff\xff\xff\xff"),
    BadBytes("bytes header 2^32-1", Fault.TRUNCATED, lambda _: b"\xc6\xff\xff\xff\xff"),
    BadBytes("over the limit of the type", Fault.TOO_LARGE, lambda _: bytes(256 * KIB + 1)),
)
