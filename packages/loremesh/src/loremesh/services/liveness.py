"""What silence says about a peer: late, suspect, dead.

Source: docs/protocol/peers.md; S1's heartbeat.
"""

import math
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Final

from loremesh.protocol.wire import PeerRecord

HEARTBEAT: Final = 5.0
"""Seconds between two heartbeats of a node."""
LATE_AFTER: Final = HEARTBEAT + 0.25
SUSPECT_AFTER: Final = 15.0
DEAD_AFTER: Final = HEARTBEAT + 30.0 + 0.5
"""Thirty seconds after the first heartbeat that did not come, and half a second more.

Whoever freezes was last heard at most `LATE_AFTER` before, so it is dead 30.25 to 35.5 s after it froze. What is left
of 30 to 36 is for heartbeats that travel longer than others, and for machines that are busy.
"""


@unique
class Liveness(StrEnum):
    """What we think of a peer."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


@dataclass(slots=True)
class Known:
    """A peer that was heard of from itself. Times are seconds of a clock that only runs forward."""

    record: PeerRecord
    seen: float
    """When it last gave a sign of life."""
    liveness: Liveness = Liveness.ALIVE
    asked: float = -math.inf
    """When it was last asked whether it lives."""

    @property
    def next_question(self) -> float:
        """When to ask it directly, if it is connected and nothing is heard of it before."""
        return max(self.seen + LATE_AFTER, self.asked + HEARTBEAT)

    @property
    def next_judgement(self) -> float:
        """When silence makes it worse than it is."""
        waits = {Liveness.ALIVE: SUSPECT_AFTER, Liveness.SUSPECT: DEAD_AFTER, Liveness.DEAD: math.inf}
        return self.seen + waits[self.liveness]
