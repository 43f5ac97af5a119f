"""Which requests were taken: each is served once, for as long as it could be sent again."""

from heapq import heappop, heappush
from typing import Final

from loremesh.errors import BackendBusy
from loremesh.primitives import Hash, Millis, PeerId

MAX_REMEMBERED: Final = 2**17
"""Requests: some 30 MB of them."""


class ServedOnce:
    """Remembers requests until they have expired."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._taken = set[tuple[PeerId, Hash]]()
        self._by_expiry: list[tuple[Millis, PeerId, Hash]] = []

    def __len__(self) -> int:
        return len(self._taken)

    def is_taken(self, client: PeerId, request: Hash) -> bool:
        """Tell whether a client's request was taken, and has not expired long since."""
        return (client, request) in self._taken

    def take(self, client: PeerId, request: Hash, expires: Millis, now: Millis) -> bool:
        """Take a request; tell whether it is the first time.

        Raises:
            BackendBusy: More are remembered than there is memory for; with the seconds until one expires.
        """
        while self._by_expiry and self._by_expiry[0][0] < now:
            _, *name = heappop(self._by_expiry)
            self._taken.discard((name[0], name[1]))
        if self.is_taken(client, request):
            return False
        if len(self._taken) >= self._most:
            raise BackendBusy("too many requests have come of late", (self._by_expiry[0][0] - now + 1) / 1000)
        self._taken.add((client, request))
        heappush(self._by_expiry, (expires, client, request))
        return True
