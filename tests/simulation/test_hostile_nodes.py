"""Networks in which some nodes lie: honest ones agree on valid blocks, shut liars out, and never each other."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from loremesh.errors import Fault
from loremesh.services.happenings import Banned, Rejected
from loremesh.testing.builders import identity
from loremesh.testing.hostile import MALICES, Malice, Villain
from loremesh.testing.invariants import Invariants
from loremesh.testing.orchard import Orchard
from loremesh.testing.scenarios import PLANS, Scenario
from loremesh.testing.simulator import InvariantBroken, simulate
from loremesh.testing.small_network import SmallNetwork

SEEDS = 2
MANY_SEEDS = 40
NewNetwork = Callable[..., SmallNetwork]


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("plan", sorted(PLANS))
def test_honest_nodes_agree_beside_one_liar_of_each_kind(plan: str, seed: int) -> None:
    report = simulate(Scenario(plan=plan, seed=seed, nodes=8, miners=4, minutes=1, hostile=len(MALICES)))
    assert report.bans >= sum(malice.is_provable for malice in MALICES)
    assert report.height >= 10


def test_nor_do_they_in_many_more_runs(full: bool) -> None:  # noqa: FBT001 - a fixture
    if not full:
        pytest.skip("the long version: --full")
    for seed in range(SEEDS, SEEDS + MANY_SEEDS):
        for plan in PLANS:
            simulate(Scenario(plan=plan, seed=seed, nodes=8, miners=4, minutes=1.5, hostile=3 + seed % 6))


def test_a_history_with_liars_is_the_same_in_every_run() -> None:
    scenario = Scenario(plan="chaos", seed=5, nodes=6, miners=3, hostile=6)
    first, second, other = (simulate(one).digest for one in (scenario, scenario, replace(scenario, hostile=5)))
    assert first == second
    assert first != other
    assert scenario.command().endswith("--hostile 6")


EXPECTED = {
    "forges blocks": {Fault.WRONG_STATE_ROOT, Fault.WRONG_HEIGHT, Fault.WRONG_CONTENT_ROOT, Fault.BAD_SIGNATURE},
    "lies in sync": {Fault.NOT_AS_ASKED},
    "signs many headers on one parent": set[Fault](),
    "claims to be the tracker": {Fault.NOT_THE_TRACKER},
    "withholds bodies": set[Fault](),
    "passes on forged cards": {Fault.WRONG_SENDER, Fault.BAD_SIGNATURE},
}


@pytest.mark.parametrize("malice", MALICES, ids=lambda malice: malice.name)
async def test_each_kind_is_refused_for_what_it_does_and_shut_out_if_that_breaks_rules(
    malice: Malice, new_network: NewNetwork
) -> None:
    network = new_network()
    honest = [await network.start("ann", mines=True)]
    honest += [await network.start(name, honest[0], mines=True) for name in ("bob", "cat")]
    await honest[0].wait_height(2)
    node = await network.start("liar", *honest)
    villain = Villain(node, network.genesis, [one.peer_id for one in honest], random.Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(malice.act, villain)
        await trio.sleep(90)
        nursery.cancel_scope.cancel()
    rejected = [said for one in honest for said in one.happened.of(Rejected)]
    assert {said.peer_id for said in rejected} <= {node.peer_id}
    assert {said.fault for said in rejected} <= EXPECTED[malice.name]
    assert bool(rejected) == malice.is_provable
    for one in honest:
        assert {said.peer_id for said in one.happened.of(Banned)} == ({node.peer_id} if malice.is_provable else set())
        assert (node.peer_id in one.network.connected()) != malice.is_provable
        assert one.height >= 10


# the watchman himself


async def nothing(villain: Villain) -> None:
    assert villain.others
    await trio.sleep_forever()


def with_malice(monkeypatch: pytest.MonkeyPatch, act: Callable[[Villain], Awaitable[None]]) -> None:
    malices = (Malice("lies, it says", act, is_provable=True),)
    monkeypatch.setattr("loremesh.testing.simulator.MALICES", malices)


def test_a_liar_that_nobody_shut_out_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with_malice(monkeypatch, nothing)
    with pytest.raises(InvariantBroken, match="nobody shut out whoever lies, it says"):
        simulate(Scenario(plan="storm", nodes=4, miners=2, minutes=0.5, hostile=1))


async def test_an_honest_node_that_is_shut_out_is_a_failure(new_network: NewNetwork) -> None:
    network = new_network()
    node = await network.start("ann")
    broken = list[str]()
    watch = Invariants(Orchard(network.genesis), broken.append)
    liar, honest = identity("liar").peer_id, identity("bob").peer_id
    watch.liars = frozenset({liar})
    watch.on_happening(node, Banned(liar, 600))
    assert not broken
    assert watch.banned == {liar: {node.peer_id}}
    watch.on_happening(node, Banned(honest, 600))
    assert "shut the honest" in broken[0]
