"""Where the js-libp2p nodes are, and which program runs them."""

import subprocess
from pathlib import Path
from typing import Final

from harness import BenchError

JS: Final = Path(__file__).parents[1] / "js"


def set_up() -> str:
    """Install js-libp2p if need be, and tell which node runs it."""
    done = subprocess.run(["sh", JS / "set-up.sh"], check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise BenchError((done.stderr.strip().splitlines() or ["js-libp2p could not be installed"])[-1])
    return done.stdout.strip()
