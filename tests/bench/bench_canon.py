"""`loremesh canon` against a warm node, from a cold start to the checked story: beside the import of libp2p alone."""

import json
import sys
import tempfile
from pathlib import Path

from harness import Row, Samples, at_most, compare
from nodes import keep_story, program, run_timed, validator

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
        where = ["--bootstrap-nodes", address, "--data-dir", folder]
        taken, printed = run_timed([program("loremesh"), "canon", "--json", *where])
    assert json.loads(printed)["height"] == _BLOCKS
    return [taken]


def _import() -> Samples:
    return [run_timed([sys.executable, "-c", "import libp2p"])[0]]
