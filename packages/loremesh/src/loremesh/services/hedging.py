"""Hedging: whoever takes longer than usual to answer holds nobody up, for a second peer is asked the same.

Source: docs/protocol/sync.md; Dean & Barroso, The Tail at Scale, CACM 2013.
"""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from loremesh.errors import ProtocolError, ServiceError
from loremesh.primitives import PeerId

T = TypeVar("T")

_LEAST_PATIENCE: Final = 1.0

Failure = ProtocolError | ServiceError


def patience(usual: float) -> float:
    """Tell after how many seconds without an answer a second peer is asked.

    Args:
        usual: Seconds that answers take here; 0 when nothing is known of that.
    """
    return max(_LEAST_PATIENCE, 2 * usual)


async def first_answer(
    ask: Callable[[PeerId], Awaitable[T | None]],
    first: PeerId,
    second: Callable[[], PeerId | None],
    usual: float,
    failed: dict[PeerId, Failure],
) -> tuple[PeerId, T] | None:
    """Ask one peer, and a second one when the first takes long or has no answer; never a third.

    Args:
        ask: Gives a peer's answer once that was checked, None when it is of no use; raises a Failure.
        first: Whom to ask at once.
        second: Chooses whom to ask then; asked again after a while if there is nobody yet.
        usual: As in `patience`.
        failed: Takes in who failed how. Whoever was merely slower is not in it.

    Returns:
        The first answer of use and who gave it; whoever else was asked is asked no more. None: there was none.
    """
    answers: list[tuple[PeerId, T]] = []
    async with trio.open_nursery() as nursery:

        async def run(peer: PeerId, ended: trio.Event) -> None:
            try:
                answer = await ask(peer)
            except (ProtocolError, ServiceError) as error:
                failed.setdefault(peer, error)
            else:
                if answer is not None:
                    answers.append((peer, answer))
                    nursery.cancel_scope.cancel()
            ended.set()

        ended = trio.Event()
        nursery.start_soon(run, first, ended)
        other: PeerId | None = None
        while other is None:
            with trio.move_on_after(patience(usual)):
                await ended.wait()
            other = second()
            if other is None and ended.is_set():
                break
        if other is not None:
            nursery.start_soon(run, other, trio.Event())
    # Both may have answered in one moment: the first of them counts.
    return answers[0] if answers else None
