"""EIP-712 digests of flat structs, by hand: what an EVM contract can check, computed without any EVM library.

Source: EIP-712 (typed structured data hashing and signing); docs/protocol/llm.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final

from loremesh.primitives import Hash
from loremesh.protocol.codec import U64, Bytes, schema
from loremesh.protocol.identity import keccak256

DOMAIN_NAME: Final = "loremesh"
DOMAIN_VERSION: Final = "1"
_ADDRESS_BYTES: Final = 20


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class Domain:
    """Where a signature holds: one contract on one chain."""

    chain_id: U64 = 0
    contract: Annotated[bytes, Bytes(_ADDRESS_BYTES)] = bytes(_ADDRESS_BYTES)


LOCAL: Final = Domain()
"""No chain and no contract: bills between nodes that settle nowhere."""


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct type: its name and its members; `struct_type` makes one."""

    type_hash: Hash
    encoders: tuple[Callable[..., bytes], ...]


def struct_type(name: str, *members: tuple[str, str]) -> Struct:
    """Describe a struct.

    Args:
        name: Of the struct.
        members: Type and name of each; the types are `bytes32`, `address`, `uint64`, `uint256` and `string`.
    """
    described = f"{name}({','.join(f'{kind} {member}' for kind, member in members)})"
    return Struct(keccak256(described.encode("ascii")), tuple(_ENCODERS[kind] for kind, _ in members))


def struct_hash(struct: Struct, *values: object) -> Hash:
    """Hash the values of a struct, in the order of its members: EIP-712's `hashStruct`."""
    words = [encoder(value) for encoder, value in zip(struct.encoders, values, strict=True)]
    return keccak256(struct.type_hash + b"".join(words))


def signing_digest(domain: Domain, struct: Struct, *values: object) -> Hash:
    """Give what is signed: `keccak256(0x1901 ‖ domain separator ‖ hashStruct)`."""
    return keccak256(b"\x19\x01" + domain_separator(domain) + struct_hash(struct, *values))


@lru_cache(maxsize=64)
def domain_separator(domain: Domain) -> Hash:
    """Hash a domain; the name is `loremesh` and the version 1."""
    return struct_hash(_DOMAIN, DOMAIN_NAME, DOMAIN_VERSION, domain.chain_id, domain.contract)


def _number(value: int) -> bytes:
    return value.to_bytes(32, "big")


@lru_cache(maxsize=1024)
def _string(value: str) -> bytes:
    return keccak256(value.encode())


def _address(value: bytes) -> bytes:
    return value.rjust(32, b"\x00")


def _bytes32(value: bytes) -> bytes:
    return value


_ENCODERS: Final[dict[str, Callable[..., bytes]]] = {
    "address": _address,
    "bytes32": _bytes32,
    "string": _string,
    "uint256": _number,
    "uint64": _number,
}
_DOMAIN: Final = struct_type(
    "EIP712Domain",
    ("string", "name"),
    ("string", "version"),
    ("uint256", "chainId"),
    ("address", "verifyingContract"),
)
