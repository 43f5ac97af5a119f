"""A key is there as a whole or not at all, however its making ends."""

import os
import subprocess
import sys
from pathlib import Path

from loremesh.storage.keys import load_or_create_key

DIE = """
import os, signal, sys
from pathlib import Path
from loremesh.storage.keys import load_or_create_key

calls = int(sys.argv[2])

def dying(real):
    def call(*args, **kwargs):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call

for name in ("open", "fchmod", "fsync", "link", "unlink", "close", "mkdir"):
    setattr(os, name, dying(getattr(os, name)))
print(load_or_create_key(Path(sys.argv[1]) / "key", bytes(range(32))).peer_id.hex(), flush=True)
"""


def make_key(directory: Path, calls: int) -> tuple[int, str]:
    """Make a key in a process that dies at the n-th call to the system; give how it ended and what it said."""
    ended = subprocess.run(
        [sys.executable, "-c", DIE, str(directory), str(calls)], capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stdout.strip()


def test_killed_at_any_call_it_leaves_no_key_or_a_whole_one(tmp_path: Path) -> None:
    calls = 0
    while True:
        calls += 1
        directory = tmp_path / str(calls)
        code, said = make_key(directory, calls)
        assert code in {0, -9}
        key = load_or_create_key(directory / "key", os.urandom(32))
        assert load_or_create_key(directory / "key", os.urandom(32)) == key
        if code == 0:
            assert said == key.peer_id.hex()
            break
    assert calls > 5


def test_of_many_processes_that_make_the_key_at_once_all_get_the_same(tmp_path: Path) -> None:
    program = "import os, sys; from pathlib import Path; from loremesh.storage.keys import load_or_create_key\n"
    program += "sys.stdin.read(); print(load_or_create_key(Path(sys.argv[1]), os.urandom(32)).peer_id.hex())"
    command = [sys.executable, "-c", program, str(tmp_path / "key")]
    makers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.close()
        maker.stdin = None
    ended = [maker.communicate() for maker in makers]
    assert [maker.returncode for maker in makers] == [0] * 6, ended
    assert len({said for said, _ in ended}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key"]
