"""Where a node listens: the listeners of `libp2p.transport.tcp.tcp` and of its other transports.

Symptoms: it sets SO_REUSEPORT, so that two processes share one port without an error and each gets part of the dials;
a port that cannot be had is a `False` that nobody looks at; TCP and WebSocket on one port lose half of the dials.
"""

from collections.abc import Iterable
from functools import partial

import trio

from loremesh.errors import MachineError
from loremesh.network.addresses import Endpoint, Transport, endpoint_of_socket, where_to_listen
from loremesh.network.quic.connection import Terms
from loremesh.network.quic.listener import QuicListener
from loremesh.network.udp import bound
from loremesh.network.upstream.swarm import BoundedSwarm


class Listening:
    """The sockets that a node listens at, each alone and each for one transport."""

    def __init__(self, quic: Terms) -> None:
        self._quic = quic
        self._listeners: list[tuple[Transport, trio.SocketListener]] = []
        self._quic_listeners: list[QuicListener] = []

    async def open(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen everywhere, or nowhere.

        Raises:
            MachineError: A port is taken, or not ours to take.
        """
        try:
            for endpoint in endpoints:
                await self._open(endpoint)
        except BaseException:
            self.close()
            raise

    async def _open(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.transport is Transport.QUIC:
                sockets = await bound(endpoint.host, endpoint.port)
                self._quic_listeners += [QuicListener(socket, self._quic) for socket in sockets]
            else:
                listeners = await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
                self._listeners += [(endpoint.transport, listener) for listener in listeners]
        except OSError as error:
            reason = f"{error.strerror or error}; {where_to_listen(error)}"
            raise MachineError(f"cannot listen at {endpoint}: {reason}") from error

    def close(self) -> None:
        """Give every port back."""
        for _, listener in self._listeners:
            listener.socket.close()
        for quic_listener in self._quic_listeners:
            quic_listener.close()

    def endpoints(self) -> list[Endpoint]:
        """Tell where that is, wildcards as they are and ports as the machine chose them."""
        places = [endpoint_of_socket(one.socket.getsockname(), transport) for transport, one in self._listeners]
        return places + [one.endpoint for one in self._quic_listeners]

    async def serve(self, swarm: BoundedSwarm, handlers: trio.Nursery) -> None:
        """Accept connections until cancelled. What was accepted lives on in `handlers`, with the sockets it needs."""
        async with trio.open_nursery() as nursery:
            for transport, listener in self._listeners:
                serve = partial(swarm.serve_socket, transport)
                nursery.start_soon(partial(trio.serve_listeners, serve, [listener], handler_nursery=handlers))
            for quic_listener in self._quic_listeners:
                nursery.start_soon(quic_listener.serve, swarm, handlers)
