"""Each import contract, shown to fail when somebody breaks it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

LIBRARY = "packages/loremesh/src/loremesh"
SOURCES = ("packages/loremesh/src", "bin/client", "bin/executor", "bin/validator")

# contract, file, what somebody adds to it
OFFENCES = [
    (
        "Binaries are thin and know nothing of each other",
        "bin/client/loremesh_client/__main__.py",
        "import loremesh_executor",
    ),
    ("Binaries never ship the test kit", "bin/client/loremesh_client/__main__.py", "import loremesh.testing.builders"),
    ("Layers point inwards", f"{LIBRARY}/storage/keys.py", "import loremesh.services"),
    ("Layers point inwards", f"{LIBRARY}/storage/keys.py", "import loremesh.network"),
    ("Layers point inwards", f"{LIBRARY}/logs.py", "import loremesh.config"),
    ("Layers point inwards", f"{LIBRARY}/primitives.py", "import loremesh.errors"),
    ("Layers point inwards", f"{LIBRARY}/attic.py", '"""A room that chose no layer."""'),
    ("Siblings form no cycles", f"{LIBRARY}/protocol/codec.py", "import loremesh.protocol.genesis"),
    ("The protocol has no I/O, no clock and no randomness", f"{LIBRARY}/protocol/work.py", "import time"),
    ("The protocol has no I/O, no clock and no randomness", f"{LIBRARY}/protocol/work.py", "import os"),
    ("The protocol has no I/O, no clock and no randomness", f"{LIBRARY}/primitives.py", "import random"),
    ("Each outside library has one door", f"{LIBRARY}/services/attic.py", "import libp2p"),
    ("Layers point inwards", f"{LIBRARY}/web/report.py", "import loremesh.network"),
    ("Each outside library has one door", f"{LIBRARY}/roles/desk.py", "import starlette"),
    ("Each outside library has one door", f"{LIBRARY}/protocol/block.py", "import coincurve"),
    ("Each outside library has one door", f"{LIBRARY}/logs.py", "import pydantic"),
    ("Each outside library has one door", "bin/client/loremesh_client/__main__.py", "import typer"),
]


@pytest.fixture
def house(checkout: Path, tmp_path: Path) -> Path:
    """A copy of everything the contracts speak about, free to be vandalised."""
    for folder in SOURCES:
        shutil.copytree(
            checkout / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    shutil.copy(checkout / "pyproject.toml", tmp_path)
    return tmp_path


def lint(house: Path) -> tuple[int, str]:
    """Run the contracts over the copy; give the exit code and what was said, on one line."""
    ended = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", "--no-logo"],
        cwd=house,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(house / folder) for folder in SOURCES), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return ended.returncode, " ".join((ended.stdout + ended.stderr).split())


def test_the_house_as_it_stands_keeps_every_contract(house: Path) -> None:
    code, said = lint(house)
    assert code == 0, said
    assert " 0 broken" in said


@pytest.mark.parametrize(("contract", "file", "line"), OFFENCES, ids=[f"{one[1]}: {one[2]}" for one in OFFENCES])
def test_a_broken_contract_is_named(contract: str, file: str, line: str, house: Path) -> None:
    with (house / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    code, said = lint(house)
    assert code == 1, said
    assert f"{contract} BROKEN" in said


def test_every_contract_is_broken_here_once(checkout: Path) -> None:
    settings = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    assert {contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]} == {
        contract for contract, _, _ in OFFENCES
    }
