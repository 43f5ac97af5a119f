"""What an event did to the store of fork choice, in the order in which it happened.

Source: docs/protocol/fork-choice.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from loremesh.errors import InvalidBlock
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block


@dataclass(frozen=True, slots=True)
class Accepted:
    """A block joined the tree."""

    hash: Hash
    block: Block


@dataclass(frozen=True, slots=True)
class Waiting:
    """A block waits: as an orphan for its parent, or held for its time."""

    hash: Hash
    held: bool


@dataclass(frozen=True, slots=True)
class SetAside:
    """A surplus header: it waits until somebody builds on it."""

    hash: Hash


@dataclass(frozen=True, slots=True)
class Refused:
    """A block that had been waiting turned out invalid, or had to make room (`error` None)."""

    hash: Hash
    error: InvalidBlock | None


@dataclass(frozen=True, slots=True)
class HeadMoved:
    """The canon changed: `abandoned` left it (newest first), `adopted` joined it (oldest first)."""

    head: Hash
    abandoned: tuple[Hash, ...]
    adopted: tuple[Hash, ...]


@dataclass(frozen=True, slots=True)
class ReorgWithheld:
    """A heavier branch forks off deeper than `max_reorg`: only the operator may switch."""

    tip: Hash
    depth: int


@dataclass(frozen=True, slots=True)
class Equivocated:
    """A producer signed a second header on one parent, or a further one."""

    producer: PeerId
    first: Hash
    second: Hash


Change = Accepted | Waiting | SetAside | Refused | HeadMoved | ReorgWithheld | Equivocated
