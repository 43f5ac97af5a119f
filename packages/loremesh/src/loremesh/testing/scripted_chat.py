"""A backend that answers chats as a script says: pieces, pauses and failures."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Final

import trio

from loremesh.backends.chat import ChatEnd, ChatRequest, Deliver
from loremesh.errors import BackendError
from loremesh.protocol.receipts import STOP, BackendUsage

Step = str | float | BackendError
"""A piece to deliver, seconds to wait, or what the call fails with."""
FOREVER: Final = float("inf")


@dataclass(slots=True)
class ScriptedChat:
    """A `ChatBackend`. Each call plays the next of `scripts`, and the last one again when there is no other."""

    scripts: deque[Iterable[Step]] = field(default_factory=lambda: deque([("Nobody", " keeps", " the lamp.")]))
    finish: str = STOP
    usage: BackendUsage | None = None
    fails_when_cancelled: bool = False
    """Whether giving a call up fails as well, as a connection may that breaks while it is closed."""
    requests: list[ChatRequest] = field(default_factory=list)
    running: int = 0
    aborted: int = 0
    """Calls that were cancelled."""
    begun: trio.Event = field(default_factory=trio.Event)
    """Set when a call begins; a test may put another one in its place."""
    ended: trio.Event = field(default_factory=trio.Event)
    """The same of the end, whatever it was."""

    @classmethod
    def playing(cls, *scripts: Sequence[Step]) -> "ScriptedChat":
        """Make one that plays these."""
        return cls(deque(scripts))

    async def chat(self, request: ChatRequest, deliver: Deliver) -> ChatEnd:
        """Play a script.

        Raises:
            BackendError: When the script says so.
        """
        self.requests.append(request)
        script = self.scripts.popleft() if len(self.scripts) > 1 else self.scripts[0]
        self.running += 1
        self.begun.set()
        try:
            for step in script:
                await self._play(step, deliver)
        except trio.Cancelled:
            self.aborted += 1
            if self.fails_when_cancelled:
                raise BackendError("broke off") from None
            raise
        finally:
            self.running -= 1
            self.ended.set()
        return ChatEnd(self.finish, self.usage)

    async def _play(self, step: Step, deliver: Deliver) -> None:
        if isinstance(step, BackendError):
            raise step
        if isinstance(step, str):
            await deliver(step)
        else:
            await trio.sleep(step)

    async def aclose(self) -> None:
        """Nothing is held."""


def endless(piece: str) -> Iterable[str]:
    """Give one piece again and again; more than any answer may have."""
    return islice((piece for _ in count()), 2**22)
