"""A clock that jumps for the tests here that use `autojump_clock`, and a network in memory to start nodes on."""

from collections.abc import Callable
from inspect import iscoroutinefunction
from pathlib import Path

import pytest
import trio

from loremesh.protocol.genesis import Genesis
from loremesh.testing.builders import EASY, small_genesis
from loremesh.testing.serving_scene import Scene
from loremesh.testing.small_network import SmallNetwork, SmallNode
from loremesh.testing.virtual_time import run_jumping

NewNetwork = Callable[..., SmallNetwork]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `usefixtures("autojump_clock")` have the effect that naming the clock among a test's arguments has."""
    for item in items:
        if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
            continue
        if "autojump_clock" in item.fixturenames and iscoroutinefunction(item.function):
            item.add_marker(pytest.mark.trio(run=run_jumping), append=False)


@pytest.fixture
def new_network(nursery: trio.Nursery) -> NewNetwork:
    """Make a network whose nodes run until the test ends."""

    def new(genesis: Genesis | None = None, *, latency: float = 0.02, seed: int = 0) -> SmallNetwork:
        return SmallNetwork(nursery, genesis, latency=latency, seed=seed)

    return new


@pytest.fixture
async def scene(nursery: trio.Nursery) -> Scene:
    """Let an executor with a scripted backend serve."""
    return await Scene.set(nursery)


@pytest.fixture
async def pair(new_network: NewNetwork) -> tuple[SmallNetwork, SmallNode, SmallNode]:
    """Let two nodes know each other; the second dialled the first."""
    network = new_network(small_genesis(EASY))
    first = await network.start("ann")
    second = await network.start("bob", first)
    await first.wait_joined(second.peer_id)
    await second.wait_joined(first.peer_id)
    return network, first, second
