"""Where the checkout is, and what is committed in it."""

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkout(pytestconfig: pytest.Config) -> Path:
    """The folder that holds pyproject.toml and the Makefile."""
    return pytestconfig.rootpath


@pytest.fixture(scope="session")
def committed(checkout: Path) -> tuple[Path, ...]:
    """Every committed file that is still there, as an absolute path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, capture_output=True, check=True, timeout=60)
    paths = [checkout / name for name in listed.stdout.decode().split("\0") if name]
    return tuple(path for path in paths if path.is_file())
