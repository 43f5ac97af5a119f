"""`loremesh canon` against a warm node, from a cold start to the checked story: beside the import of libp2p alone."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Row, Samples, at_most, compare
from nodes import PATIENCE, keep_story, program, validator

_BLOCKS = 100
_ROUNDS = 7


def run() -> list[Row]:
    """Measure reading a story of 100 blocks over the network."""
    with tempfile.TemporaryDirectory() as folder:
        keep_story(Path(folder), _BLOCKS)
        with validator(Path(folder)) as (_, address, _):
            return [
                compare(
                    f"loremesh canon --json, {_BLOCKS} blocks of 100 words",
                    "ms",
                    lambda: _read(address),
                    against="python -c 'import libp2p'",
                    peer=_import,
                    goal=at_most(2),
                    rounds=_ROUNDS,
                )
            ]


def _read(address: str) -> Samples:
    with tempfile.TemporaryDirectory() as folder:  # a reader who comes for the first time
        command = [program("loremesh"), "canon", "--json", "--bootstrap-nodes", address, "--data-dir", folder]
        before = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
        taken = time.perf_counter() - before
    assert json.loads(done.stdout)["height"] == _BLOCKS
    return [taken]


def _import() -> Samples:
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import libp2p"], check=True, timeout=PATIENCE)
    return [time.perf_counter() - before]
