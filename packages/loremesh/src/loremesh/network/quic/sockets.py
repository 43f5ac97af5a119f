"""The datagrams under QUIC, whose loss is nothing special: what fails here is only told of."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from loremesh.network.udp import Address
from loremesh.primitives import KIB

_log = logging.getLogger("loremesh.network")
_LARGEST: Final = 64 * KIB
_PAUSE: Final = 0.05


class DatagramSocket:
    """A UDP socket, bound or connected."""

    def __init__(self, socket: trio.socket.SocketType, remote: Address | None = None) -> None:
        self._socket = socket
        self._remote = remote

    @property
    def name(self) -> Address:
        """Where the socket is."""
        return tuple(self._socket.getsockname())

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()

    async def run(self, deliver: Callable[[bytes, Address], Awaitable[None]], on_refusal: Callable[[], None]) -> None:
        """Deliver what comes, until cancelled or closed; then the socket is closed."""
        try:
            while self._socket.fileno() >= 0:
                try:
                    data, address = await self._socket.recvfrom(_LARGEST)
                except ConnectionRefusedError:
                    on_refusal()
                except OSError as error:
                    _log.debug("a UDP socket failed to receive: %s", error)
                    await trio.sleep(_PAUSE)
                else:
                    await deliver(data, self._remote or address)
        except trio.ClosedResourceError:
            pass
        finally:
            self.close()

    async def send(self, data: bytes, address: Address) -> None:
        """Send a datagram, if that can be done."""
        try:
            if self._remote is None:
                await self._socket.sendto(data, address)
            else:
                await self._socket.send(data)
        except (OSError, trio.ClosedResourceError) as error:  # a refusal of an earlier one too; `run` hears of the next
            _log.debug("a datagram to %s was not sent: %r", address, error)
