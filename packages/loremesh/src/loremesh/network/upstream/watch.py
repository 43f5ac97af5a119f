"""The swarm's news: upstream wants all six methods of whoever cares for two."""

from collections.abc import Callable

from libp2p.abc import INetConn, INetStream, INetwork, INotifee
from multiaddr import Multiaddr


class Watch(INotifee):
    """Passes on that a connection came or went."""

    def __init__(self, came: Callable[[INetConn], None], went: Callable[[INetConn], None]) -> None:
        self._came = came
        self._went = went

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002 - upstream's
        """Pass it on."""
        self._came(conn)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002 - upstream's
        """Pass it on."""
        self._went(conn)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Do nothing."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Do nothing."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Do nothing."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Do nothing."""
