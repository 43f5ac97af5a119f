"""What happens to a simulated network: plans made from a seed, each a list of actions and their times."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loremesh.testing.weather import FAIR, STORM, Weather

_CHANGES_PER_MINUTE: Final = 8
_QUIET_END: Final = 0.75
"""Of the time, after which nothing more breaks."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Cut every link between the first `size` nodes of a shuffled list and the others."""

    order: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Heal:
    """Mend every link."""


@dataclass(frozen=True, slots=True)
class Mute:
    """Let nothing arrive that one node sends to another; the other way stays open."""

    sender: int
    receiver: int


@dataclass(frozen=True, slots=True)
class Silence:
    """Let nothing pass between two nodes, without breaking their connection."""

    one: int
    other: int


@dataclass(frozen=True, slots=True)
class Blow:
    """Change the weather everywhere."""

    weather: Weather


@dataclass(frozen=True, slots=True)
class Kill:
    """End a node as SIGKILL would."""

    node: int


@dataclass(frozen=True, slots=True)
class Restart:
    """Start a node that was killed, on its disk."""

    node: int


@dataclass(frozen=True, slots=True)
class Suggest:
    """Hand a suggestion to a node."""

    node: int
    text: str


Action = Partition | Heal | Mute | Silence | Blow | Kill | Restart | Suggest


@dataclass(frozen=True, slots=True)
class Step:
    """An action, and when: in seconds from the start."""

    at: float
    action: Action


@dataclass(frozen=True, slots=True)
class Scenario:
    """A network and what happens to it; equal scenarios have equal histories.

    Attributes:
        plan: A name in `PLANS`.
        seed: Of everything.
        nodes: How many; they join one after the other.
        miners: How many of them race.
        minutes: Of virtual time, before everybody must agree.
        hostile: How many more nodes lie, each in another way (`hostile.MALICES`); they join last.
        latency: Of every link, in seconds one way.
        bound: Seconds within which all must have one head and every block, once miners rest.
    """

    plan: str = "partition"
    seed: int = 0
    nodes: int = 50
    miners: int = 12
    minutes: float = 1.0
    hostile: int = 0
    latency: float = 0.05
    bound: float = 60.0

    def command(self) -> str:
        """Give the command that runs it again."""
        hostile = f" --hostile {self.hostile}" if self.hostile else ""
        return (
            f"python examples/simulate.py --plan {self.plan} --seed {self.seed} --nodes {self.nodes} "
            f"--miners {self.miners} --minutes {self.minutes:g}{hostile}"
        )

    def steps(self) -> list[Step]:
        """Make the plan."""
        steps = PLANS[self.plan](self, random.Random(f"{self.plan}/{self.seed}"))  # noqa: S311 - repeatable is the point
        return sorted(steps, key=lambda step: step.at)


def partition(scenario: Scenario, dice: random.Random) -> list[Step]:
    """Two halves that cannot hear each other for a third of the time."""
    seconds = scenario.minutes * 60
    order = tuple(dice.sample(range(scenario.nodes), scenario.nodes))
    return [Step(seconds / 3, Partition(order, scenario.nodes // 2)), Step(seconds * 2 / 3, Heal())]


def storm(scenario: Scenario, dice: random.Random) -> list[Step]:
    """Lost, doubled and overtaken messages and breaking streams, most of the time."""
    seconds = scenario.minutes * 60
    suggestions = [
        Step(dice.uniform(10, seconds), Suggest(dice.randrange(scenario.nodes), f"A storm blows, the {number}th."))
        for number in range(5)
    ]
    return [Step(5.0, Blow(STORM)), Step(seconds * _QUIET_END, Blow(FAIR)), *suggestions]


def chaos(scenario: Scenario, dice: random.Random) -> list[Step]:
    """All of it: partitions, one-way and silent cuts, bad weather, nodes that are killed and come back."""
    seconds = scenario.minutes * 60
    end = seconds * _QUIET_END
    steps = [Step(end, Heal()), Step(end, Blow(FAIR))]
    for _ in range(round(scenario.minutes * _CHANGES_PER_MINUTE)):
        at = dice.uniform(5, end)
        one, other = dice.sample(range(scenario.nodes), 2)
        match dice.randrange(7):
            case 0:
                order = tuple(dice.sample(range(scenario.nodes), scenario.nodes))
                steps.append(Step(at, Partition(order, dice.randrange(1, scenario.nodes))))
                steps.append(Step(min(end, at + dice.uniform(2, 40)), Heal()))
            case 1:
                steps.append(Step(at, Mute(one, other)))
            case 2:
                steps.append(Step(at, Silence(one, other)))
            case 3:
                steps.append(Step(at, Blow(dice.choice((FAIR, STORM, Weather(reordering=0.5), Weather(loss=0.5))))))
            case 4:
                steps.append(Step(at, Suggest(one, f"Somebody says {dice.random()}.")))
            case _:
                steps.append(Step(at, Kill(one)))
                steps.append(Step(min(end, at + dice.uniform(0.1, 20)), Restart(one)))
    return steps


PLANS: Final[dict[str, Callable[[Scenario, random.Random], list[Step]]]] = {
    "partition": partition,
    "storm": storm,
    "chaos": chaos,
}
