"""Puts pieces of an answer together that come faster than they can be sent: each costs a signature and a frame.

The first piece goes out at once; while it is signed and sent, the next ones gather, and go out as one.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from loremesh.backends.chat import Deliver

T = TypeVar("T")

_MOST: Final = 16 * 1024
"""Characters that may wait; then whoever writes waits as well."""


async def gathering(write: Callable[[Deliver], Awaitable[T]], deliver: Deliver) -> T:
    """Let somebody write pieces, and hand them on in their order, as few as may be and as soon as may be.

    Args:
        write: Gets what takes its pieces. All that it has written is handed on, also when it fails then.
        deliver: Takes what was gathered; one at a time.

    Raises:
        Exception: Whatever `deliver` raises, which cancels `write`; else whatever `write` raises.
    """
    waiting = _Waiting()
    failed: list[Exception] = []

    async def hand_on() -> None:
        try:
            while text := await waiting.take():
                await deliver(text)
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
    """Pieces that nobody has taken yet."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._size = 0
        self._ended = False
        self._came = trio.Event()
        self._left = trio.Event()

    async def put(self, text: str) -> None:
        """Add a piece; wait while there are many."""
        self._pieces.append(text)
        self._size += len(text)
        self._came.set()
        while self._size >= _MOST:
            await self._left.wait()

    def end(self) -> None:
        """No more pieces follow."""
        self._ended = True
        self._came.set()

    async def take(self) -> str:
        """Wait for a piece and give all there are; nothing, once the last is taken."""
        while not self._pieces and not self._ended:
            await self._came.wait()
            self._came = trio.Event()
        text = "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        self._left.set()
        self._left = trio.Event()
        return text
