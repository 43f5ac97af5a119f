"""The end of a connection: `libp2p.network.connection.swarm_connection.SwarmConn._cleanup`.

Symptom: it sleeps for a tenth of a second before it tells anybody that the connection is gone. `Yamux.close`, which
`muxing` mends, has then slept for as long already.

`Swarm.add_conn` makes its connections of whatever class bears the stock one's name, so ours takes its place there.
"""

from contextlib import suppress

import trio
from libp2p.abc import IMuxedStream
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream

from loremesh.network.locks import EagerLock


class PromptConn(SwarmConn):
    """A connection that is over when it is closed."""

    async def _add_stream(self, muxed_stream: IMuxedStream) -> NetStream:
        stream = await super()._add_stream(muxed_stream)
        stream._state_lock = EagerLock()  # type: ignore[assignment]  # noqa: SLF001 - entered, no more
        return stream

    async def _cleanup(self) -> None:
        self.swarm.remove_conn(self)
        for stream in list(self.streams):
            with suppress(Exception):  # whatever upstream raises here, the stream is gone with its connection
                await stream.reset()
        await trio.lowlevel.checkpoint()
        await self._notify_disconnected()


def install() -> None:
    """Put `PromptConn` in the place of the stock class, in the whole process; again does nothing."""
    swarm_connection.SwarmConn = PromptConn  # type: ignore[misc]  # a class, but to be replaced
