"""Who is let in when: newcomers take turns by address, so that many from one neither hold up others nor take over.

A newcomer costs milliseconds of the one core that a node uses, most of them after its handshake. So those of one
address come one after the other at a steady pace, after the first few; and only some of the places for handshakes are
theirs, however slowly they shake hands.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

_SHARE: Final = 4
"""One address may have this part of the places for handshakes, and half of those to wait in."""
_REPEATS: Final = 2
"""All but the first that an address has under way share this part of the places: few addresses cannot take all."""
_FOR_FIRSTS: Final = 2
"""So many times as many may wait where those beyond are the only ones of their addresses."""
_MOST_IDLE: Final = 256
"""Addresses whose last turn is remembered although nobody waits; those that may have the next at once are forgotten."""


@dataclass(slots=True)
class _Address:
    under_way: trio.CapacityLimiter
    next_turn: float = -math.inf
    inside: int = 0
    """Waiting or under way."""


@dataclass(slots=True, eq=False)
class Turn:
    """The right to shake hands."""

    of: _Address
    is_over: bool = False


class Admission:
    """The turns of newcomers. Whoever finds no place to wait in is to be turned away at once, before it costs anything.

    Args:
        at_once: Handshakes under way; of one address a quarter of them, and all but the first of each share a half.
        waiting: Newcomers that wait their turn; of one address half of them. As many again may wait that are the only
            ones of their addresses.
        pace: Turns of one address in a second, in the long run.
        burst: Turns that an address may have at once when it has had none for a while.
    """

    def __init__(self, *, at_once: int, waiting: int, pace: float, burst: int) -> None:
        self._at_once = trio.CapacityLimiter(at_once)
        self._at_once_each = max(1, at_once // _SHARE)
        self._repeats = trio.CapacityLimiter(max(1, at_once // _REPEATS))
        self._waiting = waiting
        self._pace = pace
        self._burst = burst
        self._addresses: dict[str, _Address] = {}

    def has_room(self, address: str) -> bool:
        """Tell whether one more newcomer from an address may wait for its turn."""
        known = self._addresses.get(address)
        here = 0 if known is None else known.inside - known.under_way.borrowed_tokens
        everybody = sum(one.inside for one in self._addresses.values()) - self._at_once.borrowed_tokens
        most = self._waiting if here else self._waiting * _FOR_FIRSTS
        return here < max(1, self._waiting // 2) and everybody < most

    @property
    def is_crowded(self) -> bool:
        """Tell whether half of the handshakes that may be under way at once are."""
        return 2 * self._at_once.borrowed_tokens >= self._at_once.total_tokens

    @asynccontextmanager
    async def turn(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it for as long as the block lasts. The caller sets the deadline."""
        turn = await self.begin(address)
        try:
            yield
        finally:
            self.end(turn)

    async def begin(self, address: str) -> Turn:
        """Wait for a turn, and have it until it is given to `end`. The caller sets the deadline."""
        known = self._addresses.get(address)
        if known is None:
            self._forget_the_idle()
            known = self._addresses[address] = _Address(trio.CapacityLimiter(self._at_once_each))
        turn = Turn(known)
        known.inside += 1
        try:
            # In this order, so that in the queue for everybody stand but a few of each address.
            await known.under_way.acquire_on_behalf_of(turn)
            await trio.sleep_until(self._next_turn(known))
            if known.under_way.borrowed_tokens > 1:
                await self._repeats.acquire_on_behalf_of(turn)
            await self._at_once.acquire_on_behalf_of(turn)
        except BaseException:
            self.end(turn)
            raise
        return turn

    def end(self, turn: Turn) -> None:
        """Give a turn back; again does nothing."""
        if not turn.is_over:
            turn.is_over = True
            turn.of.inside -= 1
            for limiter in (turn.of.under_way, self._repeats, self._at_once):
                if turn in limiter.statistics().borrowers:
                    limiter.release_on_behalf_of(turn)

    def _next_turn(self, known: _Address) -> float:
        turn = max(known.next_turn, trio.current_time() - (self._burst - 1) / self._pace)
        known.next_turn = turn + 1 / self._pace
        return turn

    def _forget_the_idle(self) -> None:
        if len(self._addresses) >= _MOST_IDLE:
            rested = trio.current_time() - (self._burst - 1) / self._pace
            self._addresses = {
                address: known for address, known in self._addresses.items() if known.inside or known.next_turn > rested
            }
