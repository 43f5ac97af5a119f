"""Refusals: how often a client's calls are refused, and whether it then waits as it is told.

Who waits is never shut out, however many callers are behind one name. Who does not wait breaks a rule.

Source: docs/protocol/llm.md, "Whom it costs".
"""

from typing import Final

import trio

from loremesh.errors import BackendBusy, Fault, InvalidMessage
from loremesh.primitives import PeerId
from loremesh.services.settling import Lane
from loremesh.services.slots import LATEST, MINUTE, PerMinute

MAX_REFUSALS: Final = 300
"""In a minute, of one client: whoever asks on is told to wait for the rest of it."""
MAX_IMPATIENCE: Final = 300
"""Of those, calls for which the client did not wait as it was told on their stream: one more breaks a rule."""
WAIT_FOR_EACH: Final = 0.004
"""Least seconds of waiting, for each refusal of the last minute: who waits so long stays far below the limit."""


class Refusals:
    """Counts them for all clients."""

    def __init__(self) -> None:
        self._all = PerMinute(MAX_REFUSALS)
        self._early = PerMinute(MAX_IMPATIENCE)

    def on_call(self, client: PeerId, lane: Lane) -> bool:
        """Take in that a client calls; tell whether it should have waited.

        Raises:
            InvalidMessage: FLOOD, it has not waited far too often.
        """
        if self._early.wait(client) > 0:
            raise InvalidMessage(Fault.FLOOD, f"{MAX_IMPATIENCE} calls within {MINUTE:g} s did not wait as told")
        is_early, lane.wait_until = trio.current_time() < lane.wait_until, 0.0
        return is_early

    def check(self, client: PeerId) -> None:
        """See that a client has not been refused too often of late.

        Raises:
            BackendBusy: It has; with the seconds after which it may be refused again.
        """
        if (wait := self._all.wait(client)) > 0:
            raise BackendBusy("that were many refused calls in one minute", wait)

    def note(self, client: PeerId, *, is_early: bool) -> None:
        """Take in that a call is refused, and whether its client should have waited."""
        self._all.note(client)
        if is_early:
            self._early.note(client)

    def wait(self, client: PeerId, lane: Lane, busy: BackendBusy) -> float:
        """Give the seconds that a client is to wait, and expect on its stream that it does."""
        pace = self._all.count(client) * WAIT_FOR_EACH
        seconds = min(max(busy.retry_after or LATEST, pace), LATEST)
        lane.wait_until = trio.current_time() + seconds
        return seconds
