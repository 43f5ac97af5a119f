"""What a node asks of a connection with streams on it beyond what upstream's interface has, whatever carries it."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Final

import trio
from libp2p.abc import IMuxedConn

from loremesh.primitives import KIB, MIB

_UNREAD_TOGETHER: Final = 16 * MIB
"""Of all connections of a node: else a hundred strangers could each have their limit held."""
UNREAD_FREE: Final = 256 * KIB
"""Of one connection, whatever the others hold: one stream's window, which the honest may fill at any time."""


class Muxed(IMuxedConn):
    """A connection to a proven peer, carrying streams."""

    event_closed: trio.Event

    @property
    @abstractmethod
    def open_streams(self) -> int:
        """Streams on which either side may still say something."""

    @property
    @abstractmethod
    def unread(self) -> int:
        """Bytes that came and were not read yet."""

    @abstractmethod
    async def is_answering(self, within: float) -> bool:
        """Ask the other side for a sign of life, for at most `within` seconds."""

    @abstractmethod
    async def cut(self) -> None:
        """End it now: a goodbye that has not been taken yet is given up."""


def is_too_much(held: int, coming: int, all_of_node: Iterable[Muxed]) -> bool:
    """Tell whether a connection that is to hold `held` unread bytes, `coming` ones among them, holds too many."""
    if held <= UNREAD_FREE:
        return False
    return coming + sum(one.unread for one in all_of_node if not one.event_closed.is_set()) > _UNREAD_TOGETHER
