"""Which addresses of this machine others may dial."""

import socket
from collections.abc import Iterable
from dataclasses import replace

from loremesh.network.addresses import Endpoint

_ANYWHERE = {"ip4": (socket.AF_INET, "192.0.2.1"), "ip6": (socket.AF_INET6, "2001:db8::1")}
_LOOPBACK = {"ip4": "127.0.0.1", "ip6": "::1"}


def dialable(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Write the places listened at so that others can dial them: a wildcard becomes this machine's addresses."""
    places = []
    for endpoint in endpoints:
        hosts = _own_hosts(endpoint.kind) if endpoint.is_wildcard else [endpoint.host]
        places += [replace(endpoint, host=host) for host in hosts]
    return places


def multicast_hosts(endpoints: Iterable[Endpoint]) -> list[str]:
    """Name this machine's IPv4 addresses at which a node listens; all there are, if it listens at none."""
    hosts = [endpoint.host for endpoint in dialable(endpoints) if endpoint.kind == "ip4"]
    return hosts or _own_hosts("ip4")


def _own_hosts(kind: str) -> list[str]:
    family, somewhere = _ANYWHERE[kind]
    hosts = [_LOOPBACK[kind]]
    # Connecting a UDP socket sends nothing; it only asks the routing table which of our addresses would be used.
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((somewhere, 9))
            hosts.insert(0, str(probe.getsockname()[0]))
    except OSError:
        pass
    return list(dict.fromkeys(hosts))
