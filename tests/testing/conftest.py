"""A network in memory and a real one: each test that asks for a world runs in both."""

import pytest
import trio

from loremesh.testing.either_network import World, world_of


@pytest.fixture(params=["memory", "libp2p"])
def world(request: pytest.FixtureRequest, nursery: trio.Nursery) -> World:
    return world_of(request.param, nursery)
