"""The commands that need no network, run as a user runs them but inside this process."""

import json
from pathlib import Path

import pytest
import typer

from loremesh.cli import executor, main, validator
from loremesh.cli.errors import ExitCode, execute
from loremesh.protocol.genesis import genesis_from_toml, story_id
from loremesh.protocol.identity import Identity, evm_address_text, peer_id_text

ANN = Identity.new(bytes.fromhex("11" * 32))
CHILD_OF_TIME = ["new", "--title", "A tale", "--premise", "Once upon a time, in a harbour town."]


def loremesh(*arguments: str) -> int:
    return execute(main.app, "loremesh", arguments)


def test_a_new_key_is_kept_for_its_owner_only_and_shown_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.key"
    assert loremesh("key", "new", str(file), "--json") == ExitCode.DONE
    made = json.loads(capsys.readouterr().out)
    assert file.stat().st_mode & 0o777 == 0o600
    assert loremesh("key", "show", str(file), "--json") == ExitCode.DONE
    assert json.loads(capsys.readouterr().out) == made


def test_a_key_is_shown_with_the_names_that_follow_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ann.key"
    file.touch(mode=0o600)
    file.write_text(ANN.secret.hex())
    loremesh("key", "show", str(file))
    said = capsys.readouterr().out
    assert peer_id_text(ANN.peer_id) in said
    assert evm_address_text(ANN.evm_address) in said
    assert ANN.secret.hex() not in said


def test_a_key_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.key"
    loremesh("key", "new", str(file))
    before = file.read_text()
    capsys.readouterr()
    assert loremesh("key", "new", str(file)) == ExitCode.USAGE
    assert file.read_text() == before
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "00" * 32, "11" * 31, "no key at all"])
def test_a_file_that_holds_no_key_is_refused_without_repeating_it(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.key"
    file.touch(mode=0o600)
    file.write_text(content)
    assert loremesh("key", "show", str(file)) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert str(file) in said
    assert not content or content not in said


def test_a_missing_key_file_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loremesh("key", "show", str(tmp_path / "none.key")) == ExitCode.USAGE
    assert "loremesh key new" in capsys.readouterr().err


def test_a_new_story_is_a_genesis_file_that_names_its_id(capsys: pytest.CaptureFixture[str]) -> None:
    assert loremesh(*CHILD_OF_TIME, "--validator", peer_id_text(ANN.peer_id)) == ExitCode.DONE
    text = capsys.readouterr().out
    genesis = genesis_from_toml(text)
    assert text.startswith(f"# Story {story_id(genesis).hex()}\n")
    assert genesis.title == "A tale"
    assert [one.peer_id for one in genesis.validators] == [ANN.peer_id]
    assert genesis.tracker == (ANN.peer_id,)


def test_a_slower_story_keeps_the_proportions_of_its_pace(capsys: pytest.CaptureFixture[str]) -> None:
    loremesh(*CHILD_OF_TIME)
    usual = genesis_from_toml(capsys.readouterr().out).parameters
    loremesh(*CHILD_OF_TIME, "--spacing", str(usual.spacing * 10))
    slow = genesis_from_toml(capsys.readouterr().out).parameters
    assert slow.spacing == 10 * usual.spacing
    assert slow.min_spacing == 10 * usual.min_spacing
    assert slow.half_life == 10 * usual.half_life
    assert slow.solo_after == 10 * usual.solo_after


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--validator", "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"], "--validator"),
        (["--validator", "nobody"], "--validator"),
        (["--spacing", "0"], "spacing"),
        (["--spacing", "soon"], "--spacing"),
        (["--title", ""], "no words"),
        (["--title", "x\x00y"], "character"),
        (["--premise", "word " * 201], "too many words"),
    ],
)
def test_a_story_that_cannot_be_is_refused_with_its_reason(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loremesh(*CHILD_OF_TIME, *arguments) == ExitCode.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("app", "program"),
    [(main.app, "loremesh"), (executor.app, "loremesh-executor"), (validator.app, "loremesh-validator")],
)
def test_every_program_tells_its_version(app: typer.Typer, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(app, program, ["--version"]) == ExitCode.DONE
    assert capsys.readouterr().out == "0.1.0\n"


def test_no_command_at_all_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert loremesh() == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("Usage: loremesh ")


def test_a_mistyped_command_is_met_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert loremesh("kye") == ExitCode.USAGE
    assert "'key'" in capsys.readouterr().err


def test_an_executor_runs_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        assert execute(executor.app, "loremesh-executor", arguments) == ExitCode.DONE
        assert "--work-share" in capsys.readouterr().out


def test_a_node_with_a_wrong_flag_ends_before_it_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(validator.app, "loremesh-validator", ["--drain", "-1"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "loremesh-validator: --drain: should be greater than or equal to 0, not '-1'\n"
    assert execute(executor.app, "loremesh-executor", ["--latency", "0,9"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "loremesh-executor: --latency: should be less than or equal to 5, not '9'\n"
