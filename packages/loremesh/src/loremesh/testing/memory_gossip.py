"""Gossip on its way between nodes in memory: one inbox for each node, so that a large network needs few tasks."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, Protocol

import trio

from loremesh.primitives import PeerId
from loremesh.testing.weather import Chance

MOST_UNDER_WAY: Final = 1024
"""Messages on their way in one direction of a connection; more are dropped."""


@dataclass(frozen=True, slots=True)
class Gossip:
    """A message on its way; signer and number name it."""

    signer: PeerId
    number: int
    topic: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it comes out of the inbox. `again`: it came before, and is not to be known for it."""

    message: Gossip
    forwarder: PeerId
    again: bool = False


class Link(Protocol):
    """What gossip needs of a link."""

    def chance(self) -> Chance:
        """Give dice."""

    def is_silent(self, sender: PeerId) -> bool:
        """What `sender` sends does not arrive for now."""


class GossipWay:
    """One direction of a connection. Messages keep their order, but for those that bad weather lets be overtaken."""

    def __init__(self, link: Link, sender: PeerId) -> None:
        self.inbox: Inbox | None = None
        """Of the node at the other end, once it is there."""
        self._link = link
        self._sender = sender
        self._chance = link.chance()
        self._latest = 0.0
        self._under_way = 0
        self._held: list[Letter] = []
        self._closed = False

    @property
    def is_full(self) -> bool:
        """No more fit."""
        return self._under_way >= MOST_UNDER_WAY

    def put(self, message: Gossip) -> None:
        """Send a message on its way."""
        due = max(trio.current_time() + self._chance.delay(), self._latest)
        late = self._chance.lateness()
        if not late:
            self._latest = due
        if not self._chance.is_lost():
            self._send(Letter(message, self._sender), due + late)
        if self._chance.is_doubled():
            self._send(Letter(message, self._sender, again=True), due + late + self._chance.delay())

    def _send(self, letter: Letter, due: float) -> None:
        if self.inbox is not None:
            self._under_way += 1
            self.inbox.put(due, partial(self._arrive, letter))

    def _arrive(self, letter: Letter) -> Letter | None:
        if self._closed:
            return None
        if self._link.is_silent(self._sender):
            self._held.append(letter)
            return None
        self._under_way -= 1
        return letter

    def go_on(self) -> None:
        """Let what was held up arrive, if it may."""
        held, self._held = self._held, []
        for letter in held:
            if self.inbox is not None:
                self.inbox.put(trio.current_time(), partial(self._arrive, letter))

    def close(self) -> None:
        """Lose what is on its way."""
        self._closed = True


class Inbox:
    """What is on its way to one node, the earliest first."""

    def __init__(self) -> None:
        self._coming: list[tuple[float, int, Callable[[], Letter | None]]] = []
        self._numbers = count()
        self._sleep = trio.CancelScope()

    def put(self, due: float, arrive: Callable[[], Letter | None]) -> None:
        """Take in something that arrives at `due`; what `arrive` gives then, if anything, comes out."""
        number = next(self._numbers)
        heapq.heappush(self._coming, (due, number, arrive))
        if self._coming[0][1] == number:
            self._sleep.deadline = due

    async def take(self) -> list[Letter]:
        """Wait for what is due next."""
        letters: list[Letter] = []
        while not letters:
            self._sleep = trio.CancelScope(deadline=self._coming[0][0] if self._coming else math.inf)
            with self._sleep:
                await trio.sleep_forever()
            now = trio.current_time()
            while self._coming and self._coming[0][0] <= now:
                letter = heapq.heappop(self._coming)[2]()
                if letter is not None:
                    letters.append(letter)
        return letters
