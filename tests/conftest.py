"""Options of every test run."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run ask for the long versions of the tests that have one."""
    parser.addoption("--full", action="store_true", help="run the long versions: every point, every round")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether the long versions were asked for."""
    return bool(request.config.getoption("--full"))
