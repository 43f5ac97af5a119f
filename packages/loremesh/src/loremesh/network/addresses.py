"""Multiaddrs as far as this node speaks them: a host, a port and what is spoken there, perhaps a relay, perhaps a peer.

Source: the multiaddr specification; for `/p2p-circuit`, libp2p's circuit relay v2.
"""

import errno
import ipaddress
import re
import socket
from dataclasses import dataclass, replace
from enum import StrEnum, unique
from typing import Any, Final

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


@unique
class Transport(StrEnum):
    """What is spoken at a port; the value is its multiaddr, with the port's place marked."""

    TCP = "tcp/{}"
    WEBSOCKET = "tcp/{}/ws"
    QUIC = "udp/{}/quic-v1"


_TRANSPORTS: Final = {one.replace("/{}", ""): one for one in Transport}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to dial or to listen at; `peer_id` is who is expected there, if that is known.

    With a `relay` the place is the relay's, and `peer_id` is to be reached, or to be reachable, through it.
    """

    kind: str
    host: str
    port: int
    peer_id: PeerId | None
    transport: Transport = Transport.TCP
    relay: PeerId | None = None

    @classmethod
    def from_str(cls, text: str) -> "Endpoint":
        """Read a multiaddr.

        Raises:
            UsageError: Not an address that this node can dial; the message shows one that is.
        """
        place, circuit, behind = text.partition("/p2p-circuit")
        parts = place.split("/")
        if len(text) > _LONGEST or len(parts) < 5 or parts[0] or not _is_host(parts[1], parts[2]):  # noqa: PLR2004 - host and port
            raise _unusable(text)
        port = parts[4]
        transport = _TRANSPORTS.get("/".join((parts[3], *parts[5:6]))) or _TRANSPORTS.get(parts[3])
        if transport is None or not port.isascii() or not port.isdigit() or int(port) > _HIGHEST_PORT:
            raise _unusable(text)
        peer_id = _peer_id("/".join(parts[transport.count("/") + 4 :]), text)
        if not circuit:
            return cls(parts[1], parts[2], int(port), peer_id, transport)
        if peer_id is None or (behind and not behind.startswith("/")):
            raise _unusable(text)
        return cls(parts[1], parts[2], int(port), _peer_id(behind[1:], text), transport, peer_id)

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
        return replace(self, peer_id=peer_id)

    @property
    def first_hop(self) -> "Endpoint":
        """The place that a connection is opened to: the relay, if there is one."""
        return self if self.relay is None else replace(self, peer_id=self.relay, relay=None)

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/{self.transport.format(self.port)}"
        if self.relay is not None:
            text += f"/p2p/{peer_id_text(self.relay)}/p2p-circuit"
        return text if self.peer_id is None else f"{text}/p2p/{peer_id_text(self.peer_id)}"


def endpoint_to_dial(text: str) -> Endpoint:
    """Read a multiaddr that is to be dialled.

    Raises:
        UsageError: Not an address, or one that names no one place.
    """
    endpoint = Endpoint.from_str(text)
    if endpoint.is_wildcard or not endpoint.port:
        raise UsageError(f"cannot dial {text}: it names no one place")
    if endpoint.relay is not None and endpoint.peer_id is None:
        raise UsageError(f"cannot dial {text}: it names nobody behind the relay")
    return endpoint


def where_to_listen(error: OSError) -> str:
    """Say what would do, where a node cannot listen."""
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address: listen at 0.0.0.0, and --announce-address what others dial"
    if error.errno == errno.EACCES:
        return "ports that low are not yours: choose a greater one"
    return "stop the program that uses the port (your own running node, perhaps), or choose another port"


def endpoint_of_socket(name: tuple[Any, ...], transport: Transport) -> Endpoint:
    """Name the place that a socket's address tuple means."""
    host, port = str(name[0]), int(name[1])
    return Endpoint("ip6" if ":" in host else "ip4", host, port, None, transport)


def _unusable(text: str) -> UsageError:
    return UsageError(f"cannot use the address {text!r:.100}: write it {_EXAMPLE}")


def _peer_id(text: str, address: str) -> PeerId | None:
    if not text:
        return None
    marker, _, name = text.partition("/")
    if marker != "p2p" or not name or "/" in name:
        raise _unusable(address)
    try:
        return peer_id_from_text(name)
    except InvalidMessage as error:
        raise UsageError(f"the address {address!r:.100} has no usable peer id: {error.detail}") from error


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
