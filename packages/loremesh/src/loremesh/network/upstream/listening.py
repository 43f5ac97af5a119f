"""Where a node listens: the listener of `libp2p.transport.tcp.tcp`.

Symptoms: it sets SO_REUSEPORT, so that two processes share one port without an error and each gets part of the dials;
a port that cannot be had is a `False` that nobody looks at; TCP and WebSocket on one port lose half of the dials.
"""

from collections.abc import Iterable
from functools import partial

import trio

from loremesh.errors import MachineError
from loremesh.network.addresses import Endpoint, Transport, endpoint_of_socket
from loremesh.network.upstream.swarm import BoundedSwarm


class Listening:
    """The sockets that a node listens at, each alone and each for one transport."""

    def __init__(self) -> None:
        self._listeners: list[tuple[Transport, trio.SocketListener]] = []

    async def open(self, endpoints: Iterable[Endpoint]) -> None:
        """Listen everywhere, or nowhere.

        Raises:
            MachineError: A port is taken, or not ours to take.
        """
        try:
            for endpoint in endpoints:
                listeners = await _listen(endpoint)
                self._listeners += [(endpoint.transport, listener) for listener in listeners]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give every port back."""
        for _, listener in self._listeners:
            listener.socket.close()

    def endpoints(self) -> list[Endpoint]:
        """Tell where that is, wildcards as they are and ports as the machine chose them."""
        return [endpoint_of_socket(listener.socket.getsockname(), transport) for transport, listener in self._listeners]

    async def serve(self, swarm: BoundedSwarm, handlers: trio.Nursery) -> None:
        """Accept connections until cancelled; then every socket is closed. What was accepted lives on in `handlers`."""
        async with trio.open_nursery() as nursery:
            for transport, listener in self._listeners:
                serve = partial(swarm.serve_socket, transport)
                nursery.start_soon(partial(trio.serve_listeners, serve, [listener], handler_nursery=handlers))


async def _listen(endpoint: Endpoint) -> list[trio.SocketListener]:
    """Listen at one place, alone.

    Raises:
        MachineError: The port is taken, or not ours to take.
    """
    try:
        return await trio.open_tcp_listeners(endpoint.port, host=endpoint.host)
    except OSError as error:
        raise MachineError(f"cannot listen at {endpoint} (port {endpoint.port}): {error.strerror or error}") from error
