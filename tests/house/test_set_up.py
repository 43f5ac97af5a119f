"""The first thing a stranger meets: what is said when a tool is missing, and what make offers."""

import os
import re
import subprocess
from pathlib import Path

import pytest

SMALL_TERMINAL = 80


def set_up(checkout: Path, python: Path) -> subprocess.CompletedProcess[str]:
    """Run the set-up with one interpreter to choose from; it must end before it makes anything."""
    return subprocess.run(
        ["sh", str(checkout / "scripts" / "set-up.sh"), str(python.parent / "venv"), str(python.parent)],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("fails_at", "reason", "remedy"),
    [
        ("version_info", "Python 3.11 or newer is missing", "apt-get install python3 python3-venv"),
        ("ensurepip", "cannot make virtual environments", "apt-get install python3-venv"),
    ],
)
def test_a_missing_tool_is_named_in_one_line_with_what_brings_it(
    fails_at: str, reason: str, remedy: str, checkout: Path, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{fails_at}*) exit 1;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    ended = set_up(checkout, python)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert reason in ended.stderr
    assert remedy in ended.stderr
    assert not (tmp_path / "venv").exists()


def test_an_interpreter_that_is_not_there_is_a_missing_python(checkout: Path, tmp_path: Path) -> None:
    assert "Python 3.11 or newer is missing" in set_up(checkout, tmp_path / "none").stderr


def make(checkout: Path, *arguments: str) -> str:
    ended = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=checkout,
        env={key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return ended.stdout


def test_make_alone_lists_every_command(checkout: Path) -> None:
    makefile = (checkout / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE)) - {"help"}
    said = make(checkout)
    assert set(re.findall(r"^make ([a-z]+)", said, re.MULTILINE)) == targets
    assert max(map(len, said.splitlines())) <= SMALL_TERMINAL


def test_the_demo_passes_on_what_it_is_given(checkout: Path) -> None:
    def command(*arguments: str) -> str:
        # A recipe may stand in several lines; the shell sees one.
        said = make(checkout, "-n", "demo", *arguments).replace("\\\n", " ")
        return " ".join(said[said.index("loremesh demo") :].split())

    assert command() == "loremesh demo --blocks '8' --executors '4'"
    assert command("BLOCKS=6", "EXECUTORS=3", "JSON=1") == "loremesh demo --blocks '6' --executors '3' --json"
    assert command("MALICIOUS=1") == "loremesh demo --blocks '8' --executors '4' --malicious"
