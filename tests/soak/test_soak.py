"""Three minutes of the soak, as `make soak MINUTES=3` runs it."""

import json
import sys
from pathlib import Path

import trio

MINUTES = "3"
PATIENCE = 600


async def test_a_small_network_bears_three_minutes_of_load_and_troubles_and_comes_out_as_it_went_in() -> None:
    with trio.fail_after(PATIENCE):
        ended = await trio.run_process(
            [sys.executable, str(Path(__file__).with_name("soak.py")), "--minutes", MINUTES, "--json"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    said = ended.stderr.decode()
    assert ended.stdout, said
    found = json.loads(ended.stdout)
    assert not [check for check in found["checks"] if not check["ok"]], said
    assert ended.returncode == 0, said
    assert found["troubles"]["kill"] >= 1
    for name in ("validator", "executor-1", "executor-2", "executor-3"):  # the fourth is killed again and again
        assert set(found["figures"][name]) == {"memory", "descriptors", "tasks", "threads"}
