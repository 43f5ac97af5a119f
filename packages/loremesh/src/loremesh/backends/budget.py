"""A cap on the tokens a paid backend may use in one day (UTC)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from loremesh.errors import BackendExhausted
from loremesh.primitives import Millis

_DAY: Final = 24 * 60 * 60 * 1000


class TokenCounter(Protocol):
    """Remembers, over restarts, how many tokens a day took. `day` counts from 1 January 1970, UTC."""

    async def used(self, day: int) -> int:
        """Tell what `add` has summed up for `day`; 0 for a day it has not heard of."""
        ...

    async def add(self, day: int, tokens: int) -> None:
        """Add to the sum of `day`; `tokens` is below zero when a reservation is given back."""
        ...


@dataclass(slots=True)
class MemoryTokenCounter:
    """A counter that forgets when the process ends."""

    days: dict[int, int] = field(default_factory=dict)

    async def used(self, day: int) -> int:
        """Tell the sum of `day`."""
        return self.days.get(day, 0)

    async def add(self, day: int, tokens: int) -> None:
        """Add to the sum of `day`."""
        self.days[day] = self.days.get(day, 0) + tokens


@dataclass(slots=True)
class DailyCap:
    """Reserves what a call may take at most, and gives back what it did not."""

    limit: int
    """Tokens per day."""
    counter: TokenCounter
    now: Callable[[], Millis]

    async def reserve(self, tokens: int) -> int:
        """Set `tokens` aside and tell the day they belong to.

        The reservation is made before the check, so calls that run at once never pass the limit together.

        Raises:
            BackendExhausted: They do not fit into what is left of today.
        """
        day = self.now() // _DAY
        await self.counter.add(day, tokens)
        used = await self.counter.used(day)
        if used > self.limit:
            await self.counter.add(day, -tokens)
            left = max(0, self.limit - (used - tokens))
            raise BackendExhausted(
                f"the daily limit of {self.limit} tokens leaves {left}, a call may take {tokens}; more at 00:00 UTC",
                Millis((day + 1) * _DAY),
            )
        return day

    async def settle(self, day: int, reserved: int, used: int) -> None:
        """Replace a reservation by what the call really took."""
        await self.counter.add(day, used - reserved)
