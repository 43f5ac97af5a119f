"""What was found good lately, so that it need not be looked at again: a cache that costs a digest for each."""


class Recent:
    """Remembers the last so many digests that it was told of, and at most twice as many.

    Args:
        most: That are remembered for sure.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._newer: set[bytes] = set()
        self._older: set[bytes] = set()

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._newer or digest in self._older

    def __len__(self) -> int:
        return len(self._newer | self._older)

    def add(self, digest: bytes) -> None:
        """Remember a digest; half of the others are forgotten at once when there is no more room."""
        if len(self._newer) >= self._most:
            self._older, self._newer = self._newer, set()
        self._newer.add(digest)

    def clear(self) -> None:
        """Forget everything."""
        self._newer, self._older = set(), set()
