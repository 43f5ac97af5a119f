"""A writer and a worker for miners under a virtual clock: they take their time without using any."""

import hashlib
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import trio

from loremesh.backends.base import Draft
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import BackendError, BackendFailed
from loremesh.primitives import Hash, Target
from loremesh.protocol.work import search, work_of

_AT_A_TIME: Final = 1000


@dataclass(slots=True)
class PretendBackend:
    """Writes a paragraph that names its place, after a pause drawn between `least` and `most` seconds.

    `failures` are raised by the next calls, first to last.
    """

    seed: int = 0
    least: float = 0.0
    most: float = 0.0
    model: str = "pretend"
    failures: deque[BackendError] = field(default_factory=deque)
    requests: list[ParagraphRequest] = field(default_factory=list)
    aborted: int = 0
    """Calls that were cancelled before they had an answer."""
    fails_when_cancelled: bool = False
    """Whether giving such a call up fails as well, as a connection may that breaks while it is closed."""

    def __post_init__(self) -> None:
        """Make the generator of pauses."""
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable is the point

    _random: random.Random = field(init=False, repr=False)

    async def write(self, request: ParagraphRequest) -> Draft:
        """Write, or fail as told."""
        self.requests.append(request)
        try:
            await trio.sleep(self._random.uniform(self.least, self.most))
        except trio.Cancelled:
            self.aborted += 1
            if self.fails_when_cancelled:
                raise BackendFailed("broke off") from None
            raise
        if self.failures:
            raise self.failures.popleft()
        place = hashlib.sha256(request.seed).hexdigest()[:12]
        text = f"On page {request.height} somebody had written {place} and drawn a small boat under it."
        return Draft(text, self.model, Hash(bytes(32)), Hash(hashlib.sha256(text.encode()).digest()))

    async def aclose(self) -> None:
        """Nothing to give back."""


@dataclass(slots=True)
class PretendSearch:
    """Takes as long as a search at `rate` hashes per second takes, then finds a nonce that is really valid.

    The targets must be easy enough to be met at once: thousands of hashes, not millions.
    """

    seed: int = 0
    rate: float = 10.0
    aborted: int = 0
    """Searches that were cancelled."""

    def __post_init__(self) -> None:
        """Make the generator of durations."""
        self._random = random.Random(self.seed)  # noqa: S311 - repeatable is the point

    _random: random.Random = field(init=False, repr=False)

    async def find(self, prefix: bytes, target: Target) -> int:
        """Search."""
        try:
            await trio.sleep(self._random.expovariate(self.rate / work_of(target)))
        except trio.Cancelled:
            self.aborted += 1
            raise
        start = 0
        while (nonce := search(prefix, target, start, _AT_A_TIME)) is None:
            start += _AT_A_TIME
        return nonce
