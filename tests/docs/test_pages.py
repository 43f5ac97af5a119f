"""What the pages say of programs, files and each other is so."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from loremesh.cli import executor, main, validator
from loremesh.cli.errors import ExitCode
from loremesh.cli.events import event_view
from loremesh.errors import Fault
from loremesh.primitives import Hash, Height
from loremesh.protocol.tracker import TrackerState
from loremesh.services.happenings import Banned, Evidence, Head, PeerChanged, Ready, Rejected, Role, Tracker
from loremesh.testing.builders import ANN

PROGRAMS = [("loremesh-validator", validator.app), ("loremesh-executor", executor.app), ("loremesh", main.app)]
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)")
HAPPENINGS = [
    Ready("validator", ANN.peer_id, (), None),
    Head(Height(1), Hash(bytes(32)), None, 0),
    Role(TrackerState.TRACKER, Height(1)),
    Tracker(ANN.peer_id, Height(1)),
    PeerChanged(ANN.peer_id, "joined"),
    Rejected("block", Fault.TOO_EARLY, ANN.peer_id, ""),
    Banned(ANN.peer_id, 600.0),
    Evidence(ANN.peer_id, "two headers on one parent"),
]


@pytest.fixture
def checkout(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath


def pages(checkout: Path) -> Iterator[Path]:
    yield from checkout.glob("*.md")
    for folder in ("docs", "examples", "bin", "packages"):
        yield from (path for path in (checkout / folder).rglob("*.md") if "node_modules" not in path.parts)


def test_every_link_between_pages_leads_somewhere(checkout: Path) -> None:
    broken = [
        f"{page.relative_to(checkout)}: {found[1]}"
        for page in pages(checkout)
        for found in LINK.finditer(page.read_text(encoding="utf-8"))
        if not (page.parent / found[1]).exists()
    ]
    assert not broken


def commands(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    inner: dict[str, object] = getattr(command, "commands", {})
    if not inner:
        yield path
    for name, one in inner.items():
        yield from commands(one, (*path, name))


def flags_of_help(app: typer.Typer, path: tuple[str, ...]) -> set[str]:
    answer = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"})
    assert answer.exit_code == 0, answer.output
    lines = answer.output.partition("Options:")[2].splitlines()
    return {flag for line in lines for flag in FLAG.findall(re.split(r" {2,}", line.strip())[0])} - {"--help"}


def section(text: str, heading: str) -> str:
    """The part of a page under a heading, up to the next one of its level or above."""
    level = heading.index(" ")
    rest = text.partition(f"\n{heading}\n")[2]
    assert rest, heading
    return re.split(rf"\n#{{1,{level}}} ", rest)[0]


def test_the_page_about_the_programs_lists_exactly_their_flags(checkout: Path) -> None:
    page = (checkout / "docs" / "cli.md").read_text(encoding="utf-8")
    shared = set(FLAG.findall(section(page, "### Every client command that asks nodes")))
    nodes = set(FLAG.findall(section(page, "### Both node programs")))
    for program, app in PROGRAMS:
        for path in commands(typer.main.get_command(app)):
            name = " ".join((program, *path)).removesuffix(" run")
            own = section(page, f"### `{name}`")
            listed = set(
                FLAG.findall("\n".join(line.split("|")[1] for line in own.splitlines() if line.startswith("|")))
            )
            if "(#both-node-programs)" in own:
                listed |= nodes
            if "(#every-client-command-that-asks-nodes)" in own:
                listed |= shared
            assert listed == flags_of_help(app, path), name


@pytest.mark.parametrize("happening", HAPPENINGS, ids=lambda one: type(one).__name__)
def test_every_event_stands_on_the_page_with_its_fields(happening: object, checkout: Path) -> None:
    page = section((checkout / "docs" / "cli.md").read_text(encoding="utf-8"), "## Events")
    view = event_view(happening)  # type: ignore[arg-type]  # the union's members, one by one
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{view['event']}` ")]
    assert not [name for name in view if name != "event" and f"`{name}`" not in row]


def test_every_exit_code_stands_on_the_page(checkout: Path) -> None:
    page = section((checkout / "docs" / "cli.md").read_text(encoding="utf-8"), "## Exit codes")
    assert not [code for code in ExitCode if f"| {code.value} |" not in page]


def test_the_index_names_every_page(checkout: Path) -> None:
    docs = checkout / "docs"
    index = (docs / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in docs.glob("*.md") if path.name != "README.md" and f"({path.name})" not in index]
    decisions = (docs / "adr" / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in (docs / "adr").glob("0*.md") if f"({path.name})" not in decisions]


PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_every_python_snippet_compiles_and_imports_what_there_is(checkout: Path) -> None:
    for page in pages(checkout):
        for found in PYTHON.finditer(page.read_text(encoding="utf-8")):
            tree = ast.parse(found[1], str(page))
            imports: list[ast.stmt] = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), str(page), "exec"), {})  # noqa: S102 - our own pages
