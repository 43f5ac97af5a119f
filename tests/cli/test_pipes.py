"""Whoever reads a program's output may stop, as `head` does: no error, no complaint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["loremesh_client", "doctor", "--data-dir"],
        ["loremesh_validator", "--listen-address", "/ip4/127.0.0.1/tcp/0", "--data-dir"],
    ],
)
def test_a_reader_that_is_gone_is_no_bug_of_ours(command: list[str], tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", *command, str(tmp_path)],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert ended.stderr.decode() == ""
    assert ended.returncode == 0
