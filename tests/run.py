"""Runs every test, in two processes side by side: most tests wait for nodes most of the time.

Usage: python tests/run.py
"""

import shutil
import subprocess
import sys
import tempfile
from typing import Final

_HALF: Final = [
    "backends",
    "cli",
    "config",
    "content",
    "crash",
    "docs",
    "doctor",
    "e2e",
    "examples",
    "house",
    "protocol",
]
"""About half of the time; whatever is not named here is in the other half."""


_TOOLS: Final = {"git": "apt-get install git", "npm": "apt-get install nodejs npm"}
"""What tests call, and what brings it: better missed now than by a test in ten minutes."""


def main() -> int:
    """Run both halves; what the second one says follows what the first one says."""
    for tool, remedy in _TOOLS.items():
        if shutil.which(tool) is None:
            sys.stderr.write(f"loremesh: {tool} is missing, and tests call it: {remedy}\n")
            return 2
    pytest = [sys.executable, "-m", "pytest", "--ignore=tests/bench"]
    others = [f"--ignore=tests/{name}" for name in _HALF]
    with tempfile.TemporaryFile() as said:
        second = subprocess.Popen([*pytest, *others], stdout=said, stderr=subprocess.STDOUT)
        try:
            first = subprocess.run([*pytest, *(f"tests/{name}" for name in _HALF)], check=False)
            second.wait()
        except KeyboardInterrupt:  # both have heard it
            second.wait()
            return 130
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return 1 if first.returncode or second.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
