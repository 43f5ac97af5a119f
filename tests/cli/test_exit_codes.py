"""Every way a command can end, the code it ends with and the one line it says."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from loremesh.cli.errors import ExitCode, execute
from loremesh.errors import (
    BackendError,
    DeadlinePassed,
    Fault,
    InvalidGenesis,
    InvalidMessage,
    MachineError,
    StorageError,
    Unreachable,
    UsageError,
)

OUTCOMES = [
    (UsageError("give --story"), ExitCode.USAGE),
    (InvalidGenesis("no title"), ExitCode.USAGE),
    (Unreachable("nobody at /ip4/127.0.0.1/tcp/1"), ExitCode.UNREACHABLE),
    (BackendError("no model answers"), ExitCode.UNREACHABLE),
    (InvalidMessage(Fault.BAD_SIGNATURE), ExitCode.REFUSED),
    (DeadlinePassed("no block in 5 s"), ExitCode.DEADLINE),
    (MachineError("port 4001 is taken"), ExitCode.MACHINE),
    (StorageError("the disk is gone"), ExitCode.MACHINE),
    (OSError(errno.ENOSPC, "No space left on device"), ExitCode.MACHINE),
    (KeyError("oops"), ExitCode.BUG),
    (KeyboardInterrupt(), ExitCode.INTERRUPTED),
]


def program(error: BaseException | None = None) -> typer.Typer:
    """A program whose one command ends with `error`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.command()
    def command() -> None:
        if error is not None:
            raise error

    return app


@pytest.fixture
def quiet_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("loremesh")
    former = logger.level
    yield logger
    logger.setLevel(former)


def test_a_command_that_returns_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(program(), "loremesh", []) == ExitCode.DONE
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("error", "code"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_each_kind_of_error_has_its_code_and_one_line(
    error: BaseException, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(program(error), "loremesh", []) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("loremesh: ")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_an_error_counts_the_same_inside_the_groups_that_nurseries_make(error: BaseException, code: ExitCode) -> None:
    group = BaseExceptionGroup("outer", [BaseExceptionGroup("inner", [error])])
    assert execute(program(group), "loremesh", []) == code


def test_of_several_errors_at_once_our_bug_is_the_one_shown(capsys: pytest.CaptureFixture[str]) -> None:
    group = ExceptionGroup("", [Unreachable("nobody there"), ZeroDivisionError("division by zero")])
    assert execute(program(group), "loremesh", []) == ExitCode.BUG
    assert capsys.readouterr().err == (
        "loremesh: a bug of ours: ZeroDivisionError: division by zero (--log-level debug shows where)\n"
    )


def test_a_bug_shows_its_traceback_when_debugging(
    capsys: pytest.CaptureFixture[str], quiet_logger: logging.Logger
) -> None:
    quiet_logger.setLevel(logging.DEBUG)
    assert execute(program(KeyError("oops")), "loremesh", []) == ExitCode.BUG
    assert "Traceback" in capsys.readouterr().err


def test_what_a_peer_wrote_cannot_repaint_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    execute(program(Unreachable("\x1b[2J\nloremesh: all is well")), "loremesh", [])
    assert capsys.readouterr().err == "loremesh: \\x1b[2J\\nloremesh: all is well\n"


@pytest.mark.parametrize("arguments", [["--nope"], ["surplus"]])
def test_arguments_nobody_expects_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(program(), "loremesh", arguments) == ExitCode.USAGE
    assert capsys.readouterr().err.endswith("(see loremesh --help)\n")


SHOUT = """
import sys, typer
from loremesh.cli.errors import run
app = typer.Typer()

@app.command()
def shout(length: int, again: int) -> None:
    for _ in range(again):
        sys.stdout.write("x" * length)

run(app, "loremesh")
"""


def shout(length: int, again: int, stdout: int) -> tuple[int, bytes]:
    """Run a program that writes to `stdout`; give its exit code and what it says on stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", SHOUT, str(length), str(again)],
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    return ended.returncode, ended.stderr


AMOUNTS = pytest.mark.parametrize(("length", "again"), [(1, 1), (1, 100_000), (100_000, 3)])


@AMOUNTS
def test_output_that_nobody_reads_any_more_is_no_error(length: int, again: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert shout(length, again, writing) == (0, b"")
    finally:
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to write to")
@AMOUNTS
def test_a_full_disk_is_this_machines_fault(length: int, again: int) -> None:
    with Path("/dev/full").open("wb") as full:
        code, said = shout(length, again, full.fileno())
    assert code == ExitCode.MACHINE
    assert said == b"loremesh: [Errno 28] No space left on device\n"
