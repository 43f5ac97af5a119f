"""Every command in TESTING.md is one that runs: its files, targets and flags exist."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
import typer.main

from loremesh.cli import executor, main, validator

PROGRAMS = {"loremesh": main.app, "loremesh-executor": executor.app, "loremesh-validator": validator.app}


def commands(checkout: Path) -> list[list[str]]:
    text = (checkout / "TESTING.md").read_text(encoding="utf-8")
    return [shlex.split(line.partition(" > ")[0]) for line in re.findall(r"^\$ (.+)$", text, re.MULTILINE)]


def parse(app: typer.Typer, program: str, arguments: list[str]) -> None:
    """Let typer parse arguments, sub-commands included, and run nothing."""
    command, path = typer.main.get_command(app), program
    while True:
        context = command.make_context(path, list(arguments))
        inner = getattr(command, "commands", {})
        if not inner:
            return
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]  # typer keeps the type of groups to itself
        path = f"{path} {name}"


def test_the_page_has_commands_of_every_kind(checkout: Path) -> None:
    programs = {Path(words[0]).name for words in commands(checkout)}
    assert programs >= {"make", "run", "python", "loremesh", "loremesh-executor", "loremesh-validator"}


def test_each_command_of_the_page_could_be_run(checkout: Path) -> None:
    makefile = (checkout / "Makefile").read_text(encoding="utf-8")
    for words in commands(checkout):
        program, *arguments = words
        match Path(program).name:
            case "make":
                assert f"\n{arguments[0]}:" in makefile, words
            case "run":
                assert (checkout / program).stat().st_mode & 0o100, words
            case "python" if arguments[1] == "pytest":
                assert all((checkout / path).exists() for path in arguments if path.startswith("tests")), words
            case "python":
                assert find_spec(arguments[1]) is not None, words
            case "mkdir":
                assert arguments == ["-p", "try"]
            case name:
                parse(PROGRAMS[name], name, arguments)


@pytest.mark.parametrize("program", ["loremesh.testing.fake_openai"])
def test_a_module_that_the_page_starts_can_be_started(program: str) -> None:
    ended = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, check=False, timeout=60)
    assert ended.returncode == 0
    assert b"--port" in ended.stdout
    assert b"--behaviour" in ended.stdout


def test_the_table_of_kinds_names_folders_that_exist(checkout: Path) -> None:
    text = (checkout / "TESTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/[a-z0-9_/]+(?:\.py)?)`", text))
    assert not {path for path in named if not (checkout / path).exists()}
