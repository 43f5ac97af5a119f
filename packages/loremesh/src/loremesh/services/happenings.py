"""What a node tells its operator: one type per event of the command line's contract, sent to a plain function.

Source: docs/cli.md, "Node events".
"""

from collections.abc import Callable
from dataclasses import dataclass

from loremesh.errors import Fault
from loremesh.primitives import Hash, Height, PeerId, StoryId
from loremesh.protocol.receipts import Receipt
from loremesh.protocol.tracker import TrackerState


@dataclass(frozen=True, slots=True)
class Ready:
    """The node can be used; sent once."""

    role: str
    peer_id: PeerId
    addresses: tuple[str, ...]
    story: StoryId | None
    http: str | None = None
    """HOST:PORT at which it answers its operator's machines."""


@dataclass(frozen=True, slots=True)
class Head:
    """A new head, already durable."""

    height: Height
    hash: Hash
    producer: PeerId | None
    reorg_depth: int


@dataclass(frozen=True, slots=True)
class Role:
    """This node became the tracker of the coming round, or a peer again."""

    state: TrackerState
    height: Height


@dataclass(frozen=True, slots=True)
class Tracker:
    """Who became the tracker of the coming round, or took over in it."""

    peer_id: PeerId
    height: Height


@dataclass(frozen=True, slots=True)
class PeerChanged:
    """A peer joined, left or was found dead."""

    peer_id: PeerId
    change: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something from a peer broke a rule."""

    what: str
    fault: Fault
    peer_id: PeerId
    detail: str


@dataclass(frozen=True, slots=True)
class Banned:
    """A peer broke too many rules and is kept out for a while."""

    peer_id: PeerId
    seconds: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """A producer signed two headers on one parent."""

    producer: PeerId
    kind: str


@dataclass(frozen=True, slots=True)
class Served:
    """A client's call was answered in full, and is written down."""

    receipt: Receipt


Happening = Ready | Head | Role | Tracker | PeerChanged | Rejected | Banned | Evidence | Served
Tell = Callable[[Happening], None]
"""Takes a happening; must return at once."""

Clock = Callable[[], int]
"""Gives Unix milliseconds."""
