"""What may happen to things on their way between two nodes in memory, and the dice for it."""

import random
from dataclasses import dataclass
from typing import Final, Protocol

_RETRANSMISSION: Final = 0.2
"""Seconds until a lost packet of a stream is sent again, twice as long each time, as TCP does."""
_MOST_RETRANSMISSIONS: Final = 6
_LATE: Final = 20.0
"""An overtaken message takes up to this many latencies longer."""


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad a link is. Shares are between 0 and 1.

    Attributes:
        jitter: Of the latency, by how much a delay may be longer.
        loss: Of gossip messages, never arrive; of what streams carry, arrives late.
        duplication: Of gossip messages, arrive a second time, and pass the filter that remembers those seen.
        reordering: Of gossip messages, are overtaken by others.
        breaks: Of what streams carry, breaks its stream.
    """

    jitter: float = 0.1
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    breaks: float = 0.0


FAIR: Final = Weather()
STORM: Final = Weather(jitter=1.0, loss=0.2, duplication=0.1, reordering=0.2, breaks=0.005)


class Way(Protocol):
    """What the dice need of a link."""

    latency: float
    weather: Weather


class Chance:
    """The dice of one direction of one conversation: repeatable, whoever else throws theirs."""

    def __init__(self, way: Way, seed: str) -> None:
        self._way = way
        self._draw = random.Random(seed).random  # noqa: S311 - repeatable is the point

    def delay(self) -> float:
        """Draw seconds from the sender to the receiver."""
        return self._way.latency * (1 + self._way.weather.jitter * self._draw())

    def delay_of_what_is_repeated(self) -> float:
        """Draw seconds, where what is lost is sent again."""
        delay, times = self.delay(), 0
        while self._falls(self._way.weather.loss) and times < _MOST_RETRANSMISSIONS:
            delay += _RETRANSMISSION * 2**times
            times += 1
        return delay

    def lateness(self) -> float:
        """Draw how much longer an overtaken message takes, 0 for one that keeps its place."""
        if not self._falls(self._way.weather.reordering):
            return 0.0
        return self._way.latency * _LATE * self._draw()

    def is_lost(self) -> bool:
        """Draw whether a message is lost."""
        return self._falls(self._way.weather.loss)

    def is_doubled(self) -> bool:
        """Draw whether a message arrives twice."""
        return self._falls(self._way.weather.duplication)

    def breaks(self) -> bool:
        """Draw whether a stream breaks."""
        return self._falls(self._way.weather.breaks)

    def _falls(self, share: float) -> bool:
        return share > 0 and self._draw() < share
