"""Which of the addresses that peers claim have been seen to work: a list of peers passes on no others.

Source: docs/protocol/peers.md.
"""

from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from loremesh.errors import UsageError
from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_text
from loremesh.protocol.wire import PeerCard

_AGAIN: Final = 60.0
"""Seconds until an address that did not work is tried again."""
_AT_ONCE: Final = 8
_DEADLINE: Final = 5.0


class Network(Protocol):
    """What this needs of the network."""

    async def reaches(self, address: str, timeout: float) -> bool:  # noqa: ASYNC109 - the network's surface takes seconds
        """Tell whether the peer that an address names proves its key there."""


@dataclass(slots=True)
class _Claims:
    checked: tuple[str, ...]
    again: float
    reached: tuple[str, ...] = ()
    done: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class Reachability:
    """Sole owner of what is known of the addresses on cards."""

    network: Network
    _claims: dict[PeerId, _Claims] = field(default_factory=dict)
    _limit: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    def reached(self, card: PeerCard) -> tuple[str, ...]:
        """Give those of a card's addresses at which its peer has been met."""
        claims = self._claims.get(card.peer_id)
        return () if claims is None else tuple(one for one in card.addresses if one in claims.reached)

    def is_due(self, card: PeerCard) -> bool:
        """Tell whether there is something to find out: new addresses, or some that did not work a while ago."""
        claims = self._claims.get(card.peer_id)
        if claims is None or claims.checked != card.addresses:
            return bool(card.addresses)
        return len(claims.reached) < len(claims.checked) and trio.current_time() >= claims.again

    async def check(self, card: PeerCard) -> None:
        """Go and see, at all addresses at once, where the peer is; or wait for whoever is doing that already."""
        if not self.is_due(card):
            if card.peer_id in self._claims:
                await self._claims[card.peer_id].done.wait()
            return
        known = self.reached(card)
        claims = _Claims(card.addresses, trio.current_time() + _AGAIN, known)
        self._claims[card.peer_id] = claims
        name = f"/p2p/{peer_id_text(card.peer_id)}"
        try:
            async with trio.open_nursery() as nursery:
                for address in card.addresses:
                    if address not in known and address.endswith(name):
                        nursery.start_soon(self._check, claims, address)
        except BaseException:
            claims.again = trio.current_time()  # whoever could not wait leaves it to the next
            raise
        finally:
            claims.done.set()

    async def _check(self, claims: _Claims, address: str) -> None:
        async with self._limit:
            try:
                works = await self.network.reaches(address, _DEADLINE)
            except UsageError:  # the peer claims what is no address
                works = False
        if works:
            claims.reached = (*claims.reached, address)

    def forget(self, peer: PeerId) -> None:
        """Keep nothing of a peer."""
        self._claims.pop(peer, None)
