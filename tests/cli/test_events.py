"""What a node tells the people who run it."""

from pathlib import Path

import pytest

from loremesh.cli.events import printer
from loremesh.config import Program, load_settings
from loremesh.primitives import Hash, Height
from loremesh.protocol.tracker import TrackerState
from loremesh.services.happenings import Head, Ready, Role
from loremesh.testing.builders import identity

ANN, BOB = identity("ann").peer_id, identity("bob").peer_id
BLOCK = Hash(b"\xab" * 32)


def said_by(program: Program, capsys: pytest.CaptureFixture[str], tmp_path: Path, **flags: object) -> list[str]:
    """Let a node become ready, and win a block after another one did; give its lines."""
    tell = printer(load_settings(program, {"data_dir": str(tmp_path), **flags}, {}))
    tell(Role(TrackerState.PEER, Height(0)))
    tell(Ready(program.value, ANN, ("/ip4/127.0.0.1/tcp/4001",), None))
    tell(Head(Height(1), BLOCK, BOB, 0))
    tell(Head(Height(2), BLOCK, ANN, 0))
    return capsys.readouterr().out.splitlines()


def test_a_node_says_first_who_it_is_then_what_it_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = said_by(Program.EXECUTOR, capsys, tmp_path)
    assert said[0].endswith(" is ready")
    assert said.index("we are a peer in this round") > said.index(f"  keeping its key and what it knows in {tmp_path}")


def test_a_node_knows_its_own_blocks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    *_, other, own = said_by(Program.EXECUTOR, capsys, tmp_path)
    assert own == "block 2 (abababab) by us"
    assert "by …" in other


def test_an_executor_names_the_models_it_serves_and_nobody_else_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "  serving builtin" in said_by(Program.EXECUTOR, capsys, tmp_path)
    assert not any("serving" in line for line in said_by(Program.EXECUTOR, capsys, tmp_path, serve=False))
    assert not any("serving" in line for line in said_by(Program.VALIDATOR, capsys, tmp_path))
