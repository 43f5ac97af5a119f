"""Everything that docs/requirements.md names exists, and no row is missing."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

LIBRARY = "packages/loremesh/src/loremesh"
SPANS = {
    "S0": [*range(1, 49)],
    "U": [*range(1, 10)],
    "S1": [33, 34, 35, 60, 61, 62, 66, 71, 80],
    "S2": [*range(1, 33), *range(45, 52)],
    "S3": [19, 20, 24, 28],
    "X": [4, 11, 14, 16, 18, 19, 20, 21, 28, 30, 31],
}
TOP_LEVEL = ["pyproject.toml", "README.md", "packages", "bin", "tests", "examples", "docs"]


def rows(checkout: Path) -> Iterator[list[str]]:
    for line in (checkout / "docs" / "requirements.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.match(r"(S\d|U|X)-\d", cells[0]):
            yield cells


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_row_is_there_once(checkout: Path) -> None:
    ids = [cells[0] for cells in rows(checkout)]
    assert sorted(ids) == sorted(f"{group}-{number}" for group, numbers in SPANS.items() for number in numbers)


def test_every_place_that_is_named_exists(checkout: Path) -> None:
    missing = [
        f"{cells[0]}: {path}"
        for cells in rows(checkout)
        for path in named(cells[2])
        if not (checkout / path).exists() and not (checkout / LIBRARY / path).exists()
    ]
    assert not missing


def test_every_row_names_a_test_and_every_test_that_is_named_exists(checkout: Path) -> None:
    missing = []
    for cells in rows(checkout):
        assert named(cells[3]), cells[0]
        for test in named(cells[3]):
            file, _, name = test.partition("::")
            path = checkout / file
            tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([], [])
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            if name not in functions:
                missing.append(f"{cells[0]}: {test}")
    assert not missing


def test_the_top_level_is_as_asked(checkout: Path) -> None:
    assert not [name for name in TOP_LEVEL if not (checkout / name).exists()]


def test_whoever_wants_to_use_or_change_it_finds_on_which_terms_and_how(checkout: Path) -> None:
    assert (checkout / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert "make check" in (checkout / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "RFC 9000" in (checkout / "docs" / "protocol" / "network.md").read_text(encoding="utf-8")


def test_ruff_asks_for_a_docstring_of_everything_public(checkout: Path) -> None:
    lint = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]
    assert "D" in lint["select"]
    # Magic methods, and constructors that their class describes.
    assert {rule for rule in lint["ignore"] if rule.startswith("D1")} == {"D105", "D107"}
    exempt = [path for path, rules in lint["per-file-ignores"].items() if any(rule.startswith("D") for rule in rules)]
    assert exempt == ["tests/**"]


def test_a_graph_and_a_sequence_are_drawn(checkout: Path) -> None:
    for page in ("README.md", "docs/architecture.md"):
        text = (checkout / page).read_text(encoding="utf-8")
        assert "```mermaid\ngraph " in text
        assert "```mermaid\nsequenceDiagram\n" in text
