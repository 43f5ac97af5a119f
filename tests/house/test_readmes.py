"""The README of a program lists exactly the flags that its help shows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from loremesh.cli import executor, main, validator
from loremesh.config import load_executors

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
PROGRAMS = [("client", main.app), ("executor", executor.app), ("validator", validator.app)]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every way to ask for help: the program's own, and each command's."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


def flags_of_help(app: typer.Typer) -> set[str]:
    flags = set[str]()
    for path in commands(typer.main.get_command(app)):
        answer = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
        assert answer.exit_code == 0, answer.output
        options = answer.output.partition("Options:")[2].partition("Commands:")[0]
        for line in options.splitlines():
            # Flags stand in the first column; what a description mentions is no flag of this command.
            flags.update(FLAG.findall(re.split(r" {2,}", line.strip())[0]))
    return flags


def flags_of_readme(text: str) -> set[str]:
    """Flags in tables and code; prose in between may speak of other programs."""
    return {flag for line in text.splitlines() if line.startswith("|") for flag in FLAG.findall(line.split("|")[1])}


@pytest.mark.parametrize(("program", "app"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_a_readme_lists_exactly_the_flags_of_its_program(program: str, app: typer.Typer, checkout: Path) -> None:
    readme = (checkout / "bin" / program / "README.md").read_text(encoding="utf-8")
    assert flags_of_readme(readme) == flags_of_help(app)


@pytest.mark.parametrize(("program", "app"), PROGRAMS, ids=[name for name, _ in PROGRAMS])
def test_a_readme_names_every_command(program: str, app: typer.Typer, checkout: Path) -> None:
    readme = (checkout / "bin" / program / "README.md").read_text(encoding="utf-8")
    missing = [path for path in commands(typer.main.get_command(app)) if path and f"`{' '.join(path)}" not in readme]
    assert not missing


def test_the_configuration_that_a_readme_shows_is_one(checkout: Path, tmp_path: Path) -> None:
    readme = (checkout / "bin" / "executor" / "README.md").read_text(encoding="utf-8")
    file = tmp_path / "config.toml"
    file.write_text(readme.partition("```toml\n")[2].partition("```")[0], encoding="utf-8")
    ann, bob = load_executors({"config": str(file)}, {})
    assert (ann.name, ann.backend, bob.name, bob.backend) == ("ann", "builtin", "bob", "openai")
