"""What clients took and left without paying, each for itself: so much is lent, and time or payment forgives it.

Source: docs/protocol/llm.md, "Whom it costs"; docs/threat-model.md.
"""

from collections.abc import Callable
from typing import Final

import trio

from loremesh.primitives import PeerId

MOST_UNPAID: Final = 2**16
"""Tokens that are lent to one client; as many are forgiven within an hour."""
FORGIVING: Final = 4
"""Tokens that must be paid for one to be forgiven: whoever breaks off one answer in five still gets the next."""
_HOUR: Final = 3600.0
_MOST_CLIENTS: Final = 4096


class Unpaid:
    """Sole owner of what clients owe in tokens; names that owe nothing cost no memory.

    Args:
        limit: Most tokens that one client may owe and be served all the same.
        now: Seconds of a clock that only runs forward.
    """

    def __init__(self, limit: int = MOST_UNPAID, now: Callable[[], float] = trio.current_time) -> None:
        self.total = 0
        """Tokens left unpaid so far, whatever was forgiven."""
        self._limit = limit
        self._now = now
        self._owed: dict[PeerId, tuple[float, float]] = {}  # tokens, and when they were as many

    def __len__(self) -> int:
        return len(self._owed)

    def wait(self, client: PeerId) -> float:
        """Tell in how many seconds a client may be served again; 0: now."""
        return max(0.0, self._tokens(client) - self._limit) * _HOUR / self._limit

    def leave(self, client: PeerId, tokens: int) -> None:
        """Take in that a client took tokens, and left without paying."""
        self.total += tokens
        self._set(client, self._tokens(client) + tokens)

    def pay(self, client: PeerId, tokens: int) -> None:
        """Take in that a client has paid for tokens."""
        if client in self._owed:
            self._set(client, self._tokens(client) - tokens / FORGIVING)

    def _tokens(self, client: PeerId) -> float:
        tokens, when = self._owed.get(client, (0.0, 0.0))
        return max(0.0, tokens - (self._now() - when) * self._limit / _HOUR)

    def _set(self, client: PeerId, tokens: float) -> None:
        if tokens <= 0:
            self._owed.pop(client, None)
            return
        if client not in self._owed and len(self._owed) >= _MOST_CLIENTS:
            del self._owed[min(self._owed, key=self._tokens)]
        self._owed[client] = tokens, self._now()
