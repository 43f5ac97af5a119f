"""Multiaddrs as far as this node speaks them: an IP address or a DNS name, a TCP port, perhaps a peer id.

Source: the multiaddr specification.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from loremesh.errors import InvalidMessage, UsageError
from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_from_text, peer_id_text

_EXAMPLE: Final = "like /ip4/127.0.0.1/tcp/4001 or /dns4/example.org/tcp/4001, with or without /p2p/16Uiu2…"
_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?\.?")
_LONGEST: Final = 512
_HIGHEST_PORT: Final = 65535
_FAMILIES: Final = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to dial or to listen at; `peer_id` is who is expected there, if that is known."""

    kind: str
    host: str
    port: int
    peer_id: PeerId | None

    @classmethod
    def from_str(cls, text: str) -> "Endpoint":
        """Read a multiaddr.

        Raises:
            UsageError: Not an address that this node can dial; the message shows one that is.
        """
        parts = text.split("/")
        if len(text) > _LONGEST or len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
            raise UsageError(f"cannot use the address {text!r:.100}: write it {_EXAMPLE}")
        kind, host, port, rest = parts[1], parts[2], parts[4], parts[5:]
        if not _is_host(kind, host) or not port.isascii() or not port.isdigit() or int(port) > _HIGHEST_PORT:
            raise UsageError(f"cannot use the address {text!r:.100}: write it {_EXAMPLE}")
        if rest and rest[0] != "p2p":
            raise UsageError(f"cannot use the address {text!r:.100}: write it {_EXAMPLE}")
        try:
            peer_id = peer_id_from_text(rest[1]) if rest else None
        except InvalidMessage as error:
            raise UsageError(f"the address {text!r:.100} has no usable peer id: {error.detail}") from error
        return cls(kind, host, int(port), peer_id)

    @property
    def family(self) -> int:
        """The address family to resolve names to."""
        return _FAMILIES[self.kind]

    @property
    def is_wildcard(self) -> bool:
        """Stands for every address of this machine: good to listen at, not to dial."""
        return self.kind in {"ip4", "ip6"} and ipaddress.ip_address(self.host).is_unspecified

    def of(self, peer_id: PeerId) -> "Endpoint":
        """Give the same place with this peer expected there."""
        return Endpoint(self.kind, self.host, self.port, peer_id)

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        return text if self.peer_id is None else f"{text}/p2p/{peer_id_text(self.peer_id)}"


def endpoint_of_socket(host: str, port: int) -> Endpoint:
    """Name the place that a socket's address tuple means."""
    return Endpoint("ip6" if ":" in host else "ip4", host, port, None)


def _is_host(kind: str, host: str) -> bool:
    if kind == "ip4":
        return _parses(ipaddress.IPv4Address, host)
    if kind == "ip6":
        return _parses(ipaddress.IPv6Address, host) and "%" not in host
    return kind in _FAMILIES and _NAME.fullmatch(host) is not None


def _parses(kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address], host: str) -> bool:
    try:
        kind(host)
    except ValueError:
        return False
    return True
