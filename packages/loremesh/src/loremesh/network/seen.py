"""Names of messages that were heard already: so many, for so long.

Source: gossipsub v1.0 specification, "Message Cache" (its `seen` cache, whose entries live for two minutes).
"""

from collections import OrderedDict


class Seen:
    """Remembers names for a while.

    Args:
        most: Names that it keeps; the oldest goes first.
        lifetime: Seconds that each is kept.
    """

    def __init__(self, most: int, lifetime: float) -> None:
        self._most = most
        self._lifetime = lifetime
        self._names = OrderedDict[bytes, float]()

    def __contains__(self, name: bytes) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: bytes, now: float) -> None:
        """Remember a name from now on, and forget what is too old or too much.

        Args:
            name: Of a message.
            now: Seconds of a clock that only runs forward.
        """
        self._names[name] = now
        self._names.move_to_end(name)
        while len(self._names) > self._most or next(iter(self._names.values())) < now - self._lifetime:
            self._names.popitem(last=False)
