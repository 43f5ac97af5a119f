"""A process that dies at the n-th thing it does to a file, while it keeps something. Run by test_every_write.py.

Imports no network. Each line on stdin is one life, `DIRECTORY POINT WAY`; it is lived in a fork, so that hundreds of
them cost one start of Python, and answered by a line on stdout: how many things were done to files, and the signal
that ended it. What was kept is written to DIRECTORY.said, line by line as each commit returns.

Ways to die at a write: `before` it, in the `half` of it, `after` it; or `power`: all that was not synced is lost, kept
or torn by chance, as disks do when the current fails. A sync, a truncation and a deletion have no half: they are not
begun then.
"""

import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import apsw
import trio

SECTOR: Final = 512

Say = Callable[[str], None]
"""Writes a line to DIRECTORY.said."""
Keep = Callable[[Path, Say], Awaitable[None]]


class Fate:
    """Counts what is done to files, and ends the process when its time has come.

    Remembers for each file what the disk surely has, and what was written to it since the last sync.
    """

    def __init__(self, point: int, way: str) -> None:
        self.point = point
        self.way = way
        self.count = 0
        self.synced: dict[str, bytes] = {}
        self.pending: dict[str, list[tuple[int, bytes | None]]] = {}

    def is_due(self) -> bool:
        """Count one thing; tell whether it is the last."""
        self.count += 1
        return self.count == self.point

    def end(self) -> None:
        """Die at once, like a process that is killed, or like a machine whose power fails."""
        if self.way == "power":
            chance = random.Random(self.point)
            for path, writes in self.pending.items():
                Path(path).write_bytes(some_of(self.synced.get(path, b""), writes, chance))
        os.kill(os.getpid(), signal.SIGKILL)


def some_of(data: bytes, writes: list[tuple[int, bytes | None]], chance: random.Random) -> bytes:
    """Give what a disk may have of `writes` (None: the file was cut there) that nobody waited for."""
    content = bytearray(data)
    for offset, piece in writes:
        kept = chance.choice(("all", "none", "torn"))
        if kept == "none":
            continue
        if piece is None:
            del content[offset:]
            continue
        if kept == "torn":
            piece = piece[: chance.randrange(0, len(piece) + 1, SECTOR)]  # noqa: PLW2901 - what is left of it
        content.extend(bytes(max(0, offset + len(piece) - len(content))))
        content[offset : offset + len(piece)] = piece
    return bytes(content)


class DyingFile(apsw.VFSFile):
    """A file of the database, its log or its journal."""

    def __init__(self, fate: Fate, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self.fate = fate
        self.path = name if isinstance(name, str) else name.filename()
        fate.synced.setdefault(self.path, Path(self.path).read_bytes())

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        due = self.fate.is_due()
        if due and self.fate.way == "before":
            self.fate.end()
        if due and self.fate.way == "half":
            super().xWrite(data[: len(data) // 2], offset)
            self.fate.end()
        super().xWrite(data, offset)
        self.fate.pending.setdefault(self.path, []).append((offset, bytes(data)))
        if due:
            self.fate.end()

    def xTruncate(self, size: int) -> None:  # noqa: N802 - SQLite's name
        due = self.fate.is_due()
        if due and self.fate.way in {"before", "half"}:
            self.fate.end()
        super().xTruncate(size)
        self.fate.pending.setdefault(self.path, []).append((size, None))
        if due:
            self.fate.end()

    def xSync(self, flags: int) -> None:  # noqa: ARG002, N802 - SQLite's
        if self.fate.is_due() and self.fate.way != "after":
            self.fate.end()
        # The system keeps what was written though this process dies, so there is nothing to wait for.
        self.fate.synced[self.path] = Path(self.path).read_bytes()
        self.fate.pending.pop(self.path, None)
        if self.fate.count == self.fate.point:
            self.fate.end()


class DyingDisk(apsw.VFS):
    """The disk of this process, as SQLite sees it."""

    def __init__(self, fate: Fate) -> None:
        super().__init__("dying", "unix", makedefault=True)
        self.fate = fate

    def xOpen(self, name: Any, flags: list[int]) -> DyingFile:  # noqa: N802 - SQLite's name
        return DyingFile(self.fate, name, flags)

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802, FBT001 - SQLite's
        due = self.fate.is_due()
        if due and self.fate.way != "after":
            self.fate.end()
        super().xDelete(name, sync)
        self.fate.synced.pop(name, None)
        self.fate.pending.pop(name, None)
        if due:
            self.fate.end()


def live(keep: Keep, directory: Path, point: int, way: str) -> None:
    """Live one life and tell on stdout how long it was, if it comes to its end."""
    fate = Fate(point, way)
    disk = DyingDisk(fate)
    said = os.open(f"{directory}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(what: str) -> None:
        os.write(said, f"{what}\n".encode())

    trio.run(keep, directory, say)
    os.write(said, f"things {fate.count}\n".encode())
    del disk


def main(keep: Keep) -> None:
    """Live the lives that stdin asks for."""
    if "libp2p" in sys.modules:
        raise SystemExit("no network was to be imported")
    for line in sys.stdin:
        directory, point, way = line.split()
        child = os.fork()
        if not child:
            try:
                live(keep, Path(directory), int(point), way)
            finally:
                # Whatever happened: not the loop of the parent, nor its buffers.
                os._exit(int(sys.exc_info()[0] is not None))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
