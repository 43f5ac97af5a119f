"""Whole networks in virtual time: whatever happens to links and nodes, what must hold holds, and they agree again."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from loremesh.testing.scenarios import PLANS, Heal, Partition, Scenario, Step
from loremesh.testing.simulator import InvariantBroken, simulate

SEEDS = 6
MANY_SEEDS = 60


def test_fifty_nodes_that_were_two_halves_end_with_one_head_and_both_histories() -> None:
    scenario = Scenario(plan="partition", seed=1, nodes=50, miners=12, minutes=0.75)
    assert [type(step.action) for step in scenario.steps()] == [Partition, Heal]
    report = simulate(scenario)
    assert report.deepest_reorg >= 2
    assert report.branches >= 2
    assert report.blocks > report.height
    assert report.agreed_after < 30


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("plan", ["storm", "chaos"])
def test_nothing_that_links_and_kills_do_breaks_an_honest_network(plan: str, seed: int) -> None:
    report = simulate(Scenario(plan=plan, seed=seed, nodes=8, miners=4, minutes=2))
    assert report.height >= 15


@pytest.mark.parametrize("plan", sorted(PLANS))
def test_nor_in_many_more_runs(plan: str, full: bool) -> None:  # noqa: FBT001 - a fixture
    if not full:
        pytest.skip("the long version: --full")
    for seed in range(SEEDS, SEEDS + MANY_SEEDS):
        simulate(Scenario(plan=plan, seed=seed, nodes=6 + seed % 8, miners=3 + seed % 3, minutes=2 + seed % 3))


def test_one_seed_is_one_history_and_another_seed_another() -> None:
    digests = [simulate(Scenario(plan="chaos", seed=seed, nodes=6, miners=3)).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_the_history_does_not_depend_on_how_python_orders_its_sets(checkout: Path) -> None:
    flags = "--plan chaos --nodes 8 --miners 4 --seed 3 --hostile 6"
    said = [
        subprocess.run(
            [sys.executable, "examples/simulate.py", *flags.split()],
            cwd=checkout,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.splitlines()[-1]
        for hash_seed in ("0", "1")
    ]
    assert said[0] == said[1]
    assert said[0].startswith("digest ")


def never_heals(scenario: Scenario, _: random.Random) -> list[Step]:
    return [Step(15, Partition(tuple(range(scenario.nodes)), 2))]


def test_a_run_that_fails_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLANS, "never heals", never_heals)
    scenario = Scenario(plan="never heals", seed=7, nodes=4, miners=4, minutes=0.5, bound=10)
    with pytest.raises(InvariantBroken, match="2 heads") as first:
        simulate(scenario)
    with pytest.raises(InvariantBroken) as second:
        simulate(scenario)
    assert "seed 7, after 4" in str(first.value)
    assert scenario.command() in str(first.value)
    assert str(first.value) == str(second.value)
