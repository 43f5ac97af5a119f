"""Where the checkout is, a clock that jumps for every async test here, and a network in memory."""

from collections.abc import Callable
from inspect import iscoroutinefunction
from pathlib import Path

import pytest
import trio

from loremesh.testing.small_network import SmallNetwork
from loremesh.testing.virtual_time import run_jumping

NewNetwork = Callable[..., SmallNetwork]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run every async test of this folder in virtual time, the same in every run."""
    for item in items:
        if item.path.parent != Path(__file__).parent or not isinstance(item, pytest.Function):
            continue
        if iscoroutinefunction(item.function):
            item.add_marker(pytest.mark.trio(run=run_jumping), append=False)


@pytest.fixture(scope="session")
def checkout(pytestconfig: pytest.Config) -> Path:
    """Give the folder of the checkout."""
    return pytestconfig.rootpath


@pytest.fixture
def new_network(nursery: trio.Nursery) -> NewNetwork:
    """Make a network whose nodes run until the test ends."""

    def new(*args: object, **kwargs: object) -> SmallNetwork:
        return SmallNetwork(nursery, *args, **kwargs)  # type: ignore[arg-type]  # as SmallNetwork takes them

    return new
