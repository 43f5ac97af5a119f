"""`upstream/closing.py` and `BoundedYamux.close`: a connection that is closed is over at once."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.upstream.closing import PromptConn
from loremesh.network.upstream.muxing import BoundedYamux

from libp2p.network.connection import swarm_connection  # isort: skip
from libp2p.peer.id import ID  # isort: skip
from libp2p.stream_muxer.yamux.yamux import Yamux  # isort: skip

StartNode = Callable[..., Awaitable[Behaviour]]
PEER = ID(bytes(39))
Stock: type[Any] = PromptConn.__mro__[1]


class Session:
    """A secured connection that takes everything."""

    is_initiator = True

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    async def write(self, data: bytes) -> None:
        self.written += data

    async def close(self) -> None:
        self.is_closed = True


class Swarm:
    """Hears of connections that are gone."""

    def __init__(self) -> None:
        self.removed: list[object] = []
        self.told: list[object] = []

    def remove_conn(self, conn: object) -> None:
        self.removed.append(conn)

    async def notify_disconnected(self, conn: object) -> None:
        self.told.append(conn)


class Stream:
    """A stream whose reset may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.was_reset = False
        self._error = error

    async def reset(self) -> None:
        self.was_reset = True
        if self._error is not None:
            raise self._error


def ours(session: Any) -> Yamux:
    return BoundedYamux(session, PEER, max_streams=4)


def stock(session: Any) -> Yamux:
    return Yamux(session, PEER)


@pytest.mark.parametrize(
    ("new_conn", "new_muxed", "seconds"), [(PromptConn, ours, 0), (Stock, ours, 0.1), (PromptConn, stock, 0.1)]
)
async def test_closing_says_goodbye_and_tells_at_once(
    new_conn: Callable[..., Any], new_muxed: Callable[[Any], Yamux], seconds: float, autojump_clock: object
) -> None:
    swarm, session = Swarm(), Session()
    conn = new_conn(new_muxed(session), swarm)
    before = trio.current_time()
    await conn.close()
    assert trio.current_time() - before == pytest.approx(seconds)
    assert session.written[1] == 3  # yamux's GO_AWAY
    assert session.is_closed
    assert conn.is_closed
    assert swarm.removed == swarm.told == [conn]


async def test_a_multiplexer_that_ends_by_itself_takes_its_connection_along() -> None:
    swarm, muxed = Swarm(), ours(Session())
    conn: Any = PromptConn(muxed, swarm)  # type: ignore[arg-type]  # enough of a swarm
    await muxed.close()
    assert conn.is_closed
    assert swarm.told == [conn]


async def test_every_stream_is_reset_even_after_one_that_fails() -> None:
    conn: Any = PromptConn(ours(Session()), Swarm())  # type: ignore[arg-type]  # as above
    streams = [Stream(RuntimeError("gone")), Stream(), Stream(RuntimeError("gone"))]
    conn.streams.update(streams)
    await conn.close()
    assert all(stream.was_reset for stream in streams)


async def test_a_node_puts_it_in_the_place_of_the_stock_class(start_node: StartNode) -> None:
    await start_node()
    assert swarm_connection.SwarmConn is PromptConn
