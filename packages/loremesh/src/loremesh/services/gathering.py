"""Puts pieces of an answer together that come faster than they can be sent: each costs a signature and a frame.

For whom reads them as they come: the first piece goes out at once; while it is signed and sent, the next ones gather,
and go out as one. For whom reads the whole answer: all that comes within a while goes out as one.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from loremesh.backends.chat import Deliver
from loremesh.protocol.llm import MAX_DELTA_BYTES

T = TypeVar("T")

_MOST: Final = 16 * 1024
"""Characters that may wait; then whoever writes waits as well."""


@dataclass(frozen=True, slots=True)
class Leisure:
    """How to hand on what nobody reads before it is whole.

    Attributes:
        every: Seconds after which what was gathered is handed on all the same: so much is lost at most.
        tick: Called each time while more is to come, whether anything was handed on or not.
    """

    every: float
    tick: Callable[[], Awaitable[None]]


async def gathering(write: Callable[[Deliver], Awaitable[T]], deliver: Deliver, leisure: Leisure | None = None) -> T:
    """Let somebody write pieces, and hand them on in their order, as few as may be and as soon as may be.

    Args:
        write: Gets what takes its pieces. All that it has written is handed on, also when it fails then.
        deliver: Takes what was gathered; one at a time.
        leisure: Nobody waits for a piece: as few as may be.

    Raises:
        Exception: Whatever `deliver` raises, which cancels `write`; else whatever `write` raises.
    """
    waiting = _Waiting(_MOST if leisure is None else MAX_DELTA_BYTES)
    failed: list[Exception] = []

    async def hand_on() -> None:
        try:
            while not waiting.is_over:
                if leisure is None:
                    await waiting.wait(1)
                else:
                    with trio.move_on_after(leisure.every):
                        await waiting.wait(MAX_DELTA_BYTES)
                if text := waiting.take():
                    await deliver(text)
                if leisure is not None and not waiting.is_over:
                    await leisure.tick()
        except Exception as error:  # noqa: BLE001 - passed on below, without a group around it
            failed.append(error)
            nursery.cancel_scope.cancel()

    async def listen() -> None:
        try:
            results.append(await write(waiting.put))
        except Exception as error:  # noqa: BLE001 - likewise
            broken.append(error)
        waiting.end()

    results: list[T] = []
    broken: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_on)
        await listen()
    for error in (*failed, *broken):
        raise error
    return results[0]


class _Waiting:
    """Pieces that nobody has taken yet; once there are `most` characters, whoever writes waits."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pieces: list[str] = []
        self._size = 0
        self._ended = False
        self._came = trio.Event()
        self._left = trio.Event()

    @property
    def is_over(self) -> bool:
        """All are taken, and no more follow."""
        return self._ended and not self._pieces

    async def put(self, text: str) -> None:
        """Add a piece; wait while there are many."""
        self._pieces.append(text)
        self._size += len(text)
        self._came.set()
        while self._size >= self._most:
            await self._left.wait()

    def end(self) -> None:
        """No more pieces follow."""
        self._ended = True
        self._came.set()

    async def wait(self, size: int) -> None:
        """Wait until there are so many characters, or no more follow."""
        while self._size < size and not self._ended:
            await self._came.wait()
            self._came = trio.Event()

    def take(self) -> str:
        """Give all there are."""
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._left.set()
        self._left = trio.Event()
        return text
