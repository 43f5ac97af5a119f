"""S0's demo: four peers in panes of tmux, one of which starts as the tracker."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from loremesh.testing.node_processes import run_program

PATIENCE = 120

# What the script needs of tmux, for machines without it: each pane's command runs on its own, and all end together.
STAND_IN = """#!/bin/sh
case "$1" in
    has-session) exit 1 ;;
    new-session | split-window)
        for command; do :; done
        setsid sh -c "$command" >/dev/null 2>&1 </dev/null &
        echo $! >>"$TMUX_TMPDIR/panes" ;;
    kill-server) while read -r pane; do kill -- "-$pane"; done <"$TMUX_TMPDIR/panes" ;;
esac
"""


@pytest.fixture
async def address(tmp_path: Path, pytestconfig: pytest.Config) -> AsyncIterator[str]:
    """Start the script beside whatever tmux the machine runs otherwise, and end its session afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "tmux").mkdir()
    path = os.environ["PATH"]
    if shutil.which("tmux") is None:
        stand_in = tmp_path / "bin" / "tmux"
        stand_in.parent.mkdir()
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
        path = f"{stand_in.parent}:{path}"
    environment = {"TMUX_TMPDIR": str(tmp_path / "tmux"), "PORT": str(port), "DETACHED": "1", "PATH": path}
    script = pytestconfig.rootpath / "examples" / "demo-tmux.sh"
    started = await trio.run_process([str(script), str(tmp_path / "run")], capture_stdout=True, env=environment)
    assert b"tmux attach" in started.stdout
    yield f"/ip4/127.0.0.1/tcp/{port}"
    await trio.run_process(["tmux", "kill-server"], env=environment, check=False, stderr=subprocess.DEVNULL)


async def test_four_peers_one_of_them_the_first_tracker_write_a_story(address: str) -> None:
    with trio.fail_after(PATIENCE):
        authors: set[str] = set()
        while len(authors) < 2:
            canon = await run_program("loremesh", "canon", "--json", "--bootstrap-nodes", address)
            if canon.code == 0:
                blocks = json.loads(canon.out)["blocks"]
                authors = {block["producer"] for block in blocks}
        peers = json.loads((await run_program("loremesh", "peers", "--json", "--bootstrap-nodes", address)).out)
    assert peers["tracker"] is not None
    assert len(peers["peers"]) >= 4
