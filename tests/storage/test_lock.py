import os
import subprocess
import sys
from pathlib import Path

import pytest

from loremesh.errors import MachineError
from loremesh.storage.lock import locked

HOLD = """
import sys
from pathlib import Path
from loremesh.storage.lock import locked

with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    """Start a process that owns `directory` until its stdin closes."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_a_second_process_is_told_who_uses_the_directory_and_what_to_do(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        with pytest.raises(MachineError) as caught, locked(tmp_path):
            raise AssertionError("two owners")
        holder.kill()

    message = str(caught.value)
    assert message == f"{tmp_path} is in use by process {holder.pid}: stop it or choose another --data-dir"


def test_the_lock_dies_with_a_killed_process(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        holder.kill()

    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_program_started_meanwhile_does_not_inherit_the_lock(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "print('running', flush=True); input()"]
    with locked(tmp_path):
        child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
    with child, locked(tmp_path):
        child.kill()


def test_the_lock_ends_with_the_block(tmp_path: Path) -> None:
    for _ in range(3):
        with locked(tmp_path):
            pass


def test_a_file_in_place_of_the_directory_is_the_machines_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for directory in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(MachineError, match=f"cannot use {directory}"), locked(directory):
            raise AssertionError("locked a file")
