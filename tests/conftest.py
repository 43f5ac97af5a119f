"""Options of every test run."""

import sys
from collections.abc import Callable
from typing import Final

import psutil
import pytest
from hypothesis import HealthCheck, settings

# How fast a busy machine makes up examples is no property of what is tested.
settings.register_profile("loremesh", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("loremesh")

RECURSION_LIMIT: Final = sys.getrecursionlimit()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run ask for the long versions of the tests that have one."""
    parser.addoption("--full", action="store_true", help="run the long versions: every point, every round")


def pytest_collection_finish() -> None:
    """Run under the interpreter's own limit of recursion, as nodes do.

    A library that `eth_account` imports raises it to 100,000 for the whole process, where deeply nested JSON ends the
    process instead of raising an error.
    """
    sys.setrecursionlimit(RECURSION_LIMIT)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether the long versions were asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def processor_time() -> Callable[[int], float]:
    """Give what tells the seconds of processor that a process has used: no load of others counts."""

    def of_process(pid: int) -> float:
        used = psutil.Process(pid).cpu_times()
        return float(used.user + used.system)

    return of_process
