"""What a node says of itself to its operator's machines: whether it is of use, and its figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, unique


@unique
class Kind(StrEnum):
    """How a figure moves."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric.

    Attributes:
        name: As Prometheus wants it: lower case, with the unit; a counter ends in `_total`.
        kind: Whether it goes up and down, or only up until the process ends.
        meaning: One line for people.
        labels: Names of the labels that tell its values apart.
        values: Per combination of label values, in the order of `labels`; the key is empty without labels.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Report:
    """A node at one moment.

    Attributes:
        reasons: Why it is of no use right now; none: it is.
        figures: All there are; fewer while it starts.
    """

    reasons: tuple[str, ...]
    figures: tuple[Figure, ...]
