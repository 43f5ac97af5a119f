"""UDP sockets, for what speaks QUIC: bound alone, like those of TCP."""

import socket
from typing import Any, Final

import trio

from loremesh.primitives import KIB

Address = tuple[Any, ...]
"""As the socket module writes it: host and port first."""

_BUFFER: Final = 1024 * KIB
"""Asked of the machine for what comes while we are busy; it gives as much of it as it likes."""


async def bound(host: str, port: int) -> list[trio.socket.SocketType]:
    """Take a UDP port at every address of a host, alone. The caller closes the sockets.

    Raises:
        OSError: It is taken, or not ours to take.
    """
    infos = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
    sockets: list[trio.socket.SocketType] = []
    try:
        for family, kind, protocol, _, address in infos:
            one = trio.socket.socket(family, kind, protocol)
            sockets.append(one)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # else it would take the IPv4 port too
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            await one.bind(address)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


async def connected(host: str, port: int) -> trio.socket.SocketType:
    """Open a UDP socket that talks to one address and hears when nobody listens there. The caller closes it.

    Raises:
        OSError: There is no way to it.
    """
    one = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        await one.connect((host, port))
    except BaseException:
        one.close()
        raise
    return one
