"""Connections that this node opens by QUIC, each by a socket of its own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from libp2p.peer.id import ID

from loremesh.network.quic.connection import QuicMuxed, Terms
from loremesh.network.quic.credit import CreditedConnection
from loremesh.network.quic.sockets import DatagramSocket
from loremesh.network.udp import connected

_FAREWELL: Final = 1.0


@asynccontextmanager
async def dialled(
    host: str, port: int, expected: ID | None, terms: Terms, start: Callable[..., object]
) -> AsyncIterator[QuicMuxed]:
    """Have a connection to whoever proves a key at an address; it ends if the block raises, and else lives on.

    Args:
        host: An IP address.
        port: A UDP port.
        expected: Who is to be there, if that is known.
        terms: The node's.
        start: Runs a task for as long as the node does.

    Raises:
        OSError: No way there; ConnectionRefusedError if nobody listens.
        SecurityUpgradeFailure: No handshake, or one side refused the other.
    """
    remote = (host, port)
    socket = DatagramSocket(await connected(host, port), remote)
    quic = CreditedConnection(terms.configuration(is_client=True), terms.max_streams)
    connection = QuicMuxed(quic, terms, socket, remote, expected=expected)
    try:
        connection.begin()
        start(_run, connection, socket)
        await connection.wait_ready()
        yield connection
    except BaseException:
        with trio.CancelScope(shield=True), trio.move_on_after(_FAREWELL):
            await connection.close()
        socket.close()
        raise


async def _run(connection: QuicMuxed, socket: DatagramSocket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(socket.run, connection.receive, connection.on_refusal)
        await connection.run()
        nursery.cancel_scope.cancel()
