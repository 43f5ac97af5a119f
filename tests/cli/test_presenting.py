"""What people see: lines that fit their terminal, commands that can be copied, and no traceback at Ctrl-C."""

import os
import shlex
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from rich.console import Console
from rich.text import Text

from loremesh.cli.demo_nodes import DemoNode
from loremesh.cli.demo_show import Show
from loremesh.cli.present import beside
from loremesh.cli.tree import block_line

INTERRUPTED = 130

END_OF_A_DEMO = """
from pathlib import Path
from loremesh.cli.demo_show import Show
Show(as_json=False).finale("The Reef Light", Path("/srv/a-folder-with-a-name-that-is-rather-long"))
"""

INTERRUPTED_WHILE = """
import os, signal, sys

class Interrupt:
    @staticmethod
    def find_spec(name, path, target=None):
        if name == "{}":
            os.kill(os.getpid(), signal.SIGINT)

from loremesh_client.__main__ import main
sys.meta_path.insert(0, Interrupt)
sys.argv = ["loremesh", "canon", "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9"]
main()
"""


def block(height: int, text: str) -> dict[str, Any]:
    return {"height": height, "hash": "ab" * 32, "producer": "16Uiu2HAm8Sjp4AexkDmWjqoy4K9rcu29", "text": text}


def test_what_stands_beside_a_label_goes_on_under_itself_where_the_terminal_is_narrow() -> None:
    out = Console(width=40, file=StringIO())
    shown = beside(out, Text("ok  name  "), Text("the first words and the last ones of it"))
    assert shown.plain == "ok  name  the first words and the last\n          ones of it"


def test_what_stands_beside_a_label_is_one_line_where_there_is_room() -> None:
    out = Console(width=10_000, file=StringIO())
    assert beside(out, Text("label "), Text("word " * 200)).plain == "label " + ("word " * 200).rstrip()


def test_the_style_of_a_label_is_not_that_of_what_stands_beside_it() -> None:
    out = Console(width=40, file=StringIO(), force_terminal=True, color_system="standard", no_color=False)
    out.print(beside(out, Text("label ", "bold"), Text("plain")))
    assert out.file.getvalue() == "\x1b[1mlabel \x1b[0mplain\n"  # type: ignore[attr-defined]  # as given above


@pytest.mark.parametrize("width", [60, 80, 100, 10_000])
def test_a_block_of_a_tree_takes_one_line_whatever_the_terminal(width: int) -> None:
    lines = [
        block_line(block(9, "word " * 40), 3, width),
        block_line(block(100, "word " * 40), 3, width, "  └ ", " [abandoned]"),
    ]
    assert all(len(line) <= min(width, 96) for line in lines)
    assert all("…" in line.partition("  ")[2] for line in lines)
    assert lines[1].endswith(" [abandoned]")


def test_the_heights_of_a_tree_stand_below_each_other() -> None:
    assert block_line(block(9, "Short."), 2, 80).index("abab") == block_line(block(10, "Short."), 2, 80).index("abab")


def test_the_next_commands_of_the_demo_can_be_copied_from_a_narrow_terminal() -> None:
    reading, terminal = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", END_OF_A_DEMO],
            stdout=terminal,
            env={**os.environ, "COLUMNS": "60", "TERM": "dumb"},
            check=True,
            timeout=60,
        )
        os.close(terminal)
        shown = read_all(reading)
    finally:
        os.close(reading)
    # A shell joins lines that end so; those that begin with two spaces are to be copied.
    commands = [shlex.split(line) for line in shown.replace("\\\n", "").splitlines() if line.startswith("  ")]
    assert [command[0].rpartition("/")[2] for command in commands[-6:]] == [
        "loremesh-validator",
        "loremesh-executor",
        "export",
        "loremesh",
        "loremesh",
        "loremesh",
    ]
    node = ["--data-dir", "/srv/a-folder-with-a-name-that-is-rather-long/validator"]
    assert commands[-6][1:] == [*node, "--listen-address", "/ip4/127.0.0.1/tcp/4001"]


def test_a_block_that_comes_as_the_demo_stops_is_shown_only_if_the_validator_has_heard_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    validator, executor = (
        DemoNode(name, Path(), [], f"16Uiu2{name}", cast("trio.Process", None)) for name in ("validator", "executor-1")
    )
    nodes, show = [validator, executor], Show(as_json=False)
    show.race_ends()
    for node, name in ((executor, "11" * 32), (validator, "22" * 32)):
        head = {"event": "head", "height": 9, "hash": name, "producer": executor.peer_id, "reorg_depth": 0}
        show.event(node, head, nodes, "")
        show.event(node, {"event": "state", "height": 9, "state": "tracker"}, nodes, "")
    said = capsys.readouterr().out
    assert "block 9  22222222  won by executor-1" in said
    assert len(said.splitlines()) == 1


def test_in_a_pipe_no_line_of_the_demo_is_filled_with_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    node = DemoNode("executor-1", Path(), [], "16Uiu2one", cast("trio.Process", None))
    show = Show(as_json=False)
    head = {"event": "head", "height": 1, "hash": "11" * 32, "producer": node.peer_id, "reorg_depth": 0}
    show.event(node, head, [node], "A paragraph. " * 20)
    show.quote("loremesh tree", "0 11111111 The Reef Light\n")
    show.finale("The Reef Light\n\nA paragraph.\n", Path("run"))
    said = capsys.readouterr().out
    assert "          A paragraph. A paragraph." in said
    assert [line for line in said.splitlines() if line != line.rstrip()] == []


def read_all(reading: int) -> str:
    """Read what was written to a terminal that is closed by now."""
    pieces = list[bytes]()
    while True:
        try:
            piece = os.read(reading, 4096)
        except OSError:  # what Linux says at the end of a terminal
            piece = b""
        if not piece:
            return b"".join(pieces).decode().replace("\r\n", "\n")
        pieces.append(piece)


@pytest.mark.parametrize("module", ["loremesh.cli.errors", "loremesh.cli.main", "loremesh.config", "trio"])
def test_ctrl_c_is_one_line_and_no_traceback_from_the_first_import_on(module: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE.format(module)], capture_output=True, check=False, timeout=60
    )
    assert ended.stderr.decode() == "loremesh: interrupted\n"
    assert ended.returncode == INTERRUPTED
