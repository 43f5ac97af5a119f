"""What a node told its operator, kept for a test to look at and to wait for."""

from collections.abc import Callable
from typing import Final, TypeVar

import trio

from loremesh.services.happenings import Happening

T = TypeVar("T")
PATIENCE: Final = 1800.0
"""Seconds after which a wait has failed: virtual ones, where a clock jumps."""


class Happened:
    """A `Tell` that keeps everything."""

    def __init__(self) -> None:
        self.all: list[Happening] = []
        self._more = trio.Event()

    def __call__(self, happening: Happening) -> None:
        """Take a happening."""
        self.all.append(happening)
        self._more.set()
        self._more = trio.Event()

    def of(self, kind: type[T], fits: Callable[[T], bool] = lambda _: True) -> list[T]:
        """List those of a kind that fit."""
        return [one for one in self.all if isinstance(one, kind) and fits(one)]

    async def wait(self, kind: type[T], fits: Callable[[T], bool] = lambda _: True) -> T:
        """Wait until one of a kind that fits has happened, and give the first.

        Raises:
            trio.TooSlowError: None did.
        """
        with trio.fail_after(PATIENCE):
            while not (found := self.of(kind, fits)):
                await self._more.wait()
        return found[0]
