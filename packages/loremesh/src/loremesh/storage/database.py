"""SQLite through apsw: durable transactions shared by concurrent callers, and reads that never wait for them.

Why apsw, why threads and why no writer task: docs/adr/0002-storage.md.
"""

import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Final, Self, TypeVar

import apsw
import trio

from loremesh.errors import LoremeshError, MachineError, StorageError
from loremesh.storage.files import sync_directory
from loremesh.storage.migrations import STORY, Shape, migrate
from loremesh.storage.transaction import transaction
from loremesh.storage.writes import Write, joined

T = TypeVar("T")

_MOST_SHARED: Final = 256
"""Callers whose writes share one transaction at most, so that the first of them need not wait without end."""
_BUSY_MILLIS: Final = 5000
_CACHE_KIB: Final = 256
"""Pages that a connection keeps: SQLite's own 2,000 KiB take an hour to fill, and the system keeps the file anyway."""
_OPENING_SECONDS: Final = 30
_OPENING_PAUSE: Final = 0.01
_SMALLEST_PAGE: Final = 512
_REFUSALS: Final = (apsw.FullError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError)
_DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError, apsw.FormatError)
_FAILURES: Final = (apsw.IOError, apsw.BusyError, apsw.LockedError, apsw.NoMemError, apsw.ProtocolError)


@dataclass(slots=True, eq=False)
class _Request:
    """One caller's writes, and what became of them."""

    writes: tuple[Write, ...]
    is_done: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Database:
    """One writing and one reading connection to the same file, each used by one thread at a time."""

    path: Path
    writer: apsw.Connection
    reader: apsw.Connection
    shape: Shape
    _waiting: dict[_Request, None] = field(default_factory=dict)
    _is_writing: bool = False
    _written: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    _writing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _reading: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, shape: Shape = STORY) -> AsyncIterator[Self]:
        """Open `path`, made if missing (for its owner alone), at the newest version; its directory exists.

        Several processes may have it open: a commit waits up to five seconds for another's.

        Raises:
            MachineError: It cannot be opened, is damaged, or is of a newer program.
            StorageError: The disk failed, or another process does not let go.
        """
        writer, reader = await trio.to_thread.run_sync(_open, path, shape)
        database = cls(path, writer, reader, shape)
        try:
            yield database
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(reader.close)
                await trio.to_thread.run_sync(writer.close)

    async def commit(self, writes: tuple[Write, ...]) -> None:
        """Make all of `writes` durable, or none of them.

        Callers that come while a transaction is on its way to the disk share the next one: whoever gets the turn
        writes for everybody waiting. A write that fails fails its own caller only. When cancelled: all or nothing
        is kept, and nothing if the turn had not come.

        Raises:
            MachineError: The disk is full or read-only, or the file is damaged.
            StorageError: The disk failed; the next commit may succeed.
        """
        request = _Request(writes)
        self._waiting[request] = None
        try:
            while not request.is_done:
                if self._is_writing:
                    await self._written.park()
                else:
                    await self._write_for_all()
        finally:
            self._waiting.pop(request, None)
        if request.error is not None:
            raise request.error

    async def read(self, query: Callable[[apsw.Connection], T]) -> T:
        """Run `query` on the reading connection: it sees every commit that has returned.

        Raises:
            MachineError: The file is damaged.
            StorageError: The disk failed.
        """
        return await trio.to_thread.run_sync(self._query, query, limiter=self._reading)

    def _query(self, query: Callable[[apsw.Connection], T]) -> T:
        with explained(self.path, self.shape):
            return query(self.reader)

    async def _write_for_all(self) -> None:
        self._is_writing = True
        try:
            # Those whose writes are just done wake in the same round of the scheduler as this task, before it or after
            # it. Those who then ask for more share this trip.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            requests = list(islice(self._waiting, _MOST_SHARED))
            # A thread is never abandoned: whoever is cancelled here first ends what it does for the others.
            errors = await trio.to_thread.run_sync(
                self._transact, [request.writes for request in requests], limiter=self._writing
            )
            for request, error in zip(requests, errors, strict=True):
                request.is_done, request.error = True, error
                self._waiting.pop(request, None)
        finally:
            self._is_writing = False
            self._written.unpark_all()

    def _transact(self, requests: list[tuple[Write, ...]]) -> list[Exception | None]:
        try:
            with explained(self.path, self.shape), transaction(self.writer):
                for write in joined(chain.from_iterable(requests)):
                    write.apply(self.writer)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller whose write it was
            if len(requests) == 1:
                return [error]
            # The whole transaction is undone: alone, only those to blame fail.
            return [self._transact([writes])[0] for writes in requests]
        return [None] * len(requests)


@contextmanager
def explained(path: Path, shape: Shape = STORY) -> Iterator[None]:
    """Turn what SQLite says about the machine into errors that say what to do. Bugs of ours pass unchanged."""
    try:
        yield
    except LoremeshError:
        raise
    except apsw.FullError as error:
        raise MachineError(f"no space left for {path}: free some and start again") from error
    except _REFUSALS as error:
        raise MachineError(f"cannot write {path}: {error}") from error
    except _DAMAGE as error:
        raise damaged(path, str(error), shape) from error
    except UnicodeDecodeError as error:  # bytes turned into text, or a name that was changed
        raise damaged(path, "text that is none", shape) from error
    except _FAILURES as error:
        raise StorageError(f"{path}: {error}") from error
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error


def damaged(path: Path, reason: str, shape: Shape = STORY) -> MachineError:
    """Give the error for a file that cannot be used any more."""
    return MachineError(f"{path} is damaged ({reason}): move it away and start again, {shape.remedy}")


def _open(path: Path, shape: Shape) -> tuple[apsw.Connection, apsw.Connection]:
    with explained(path, shape), _opening_alone(path.parent):
        _make(path, shape)
        writer = apsw.Connection(str(path))
        try:
            _prepare(writer)
            _migrate(writer, path, shape)
            sync_directory(path.parent)  # SQLite syncs the file, and the name of its log, but not the file's name
            reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
            _prepare(reader)
            reader.pragma("query_only", value=True)
        except apsw.SQLError as error:  # our statements are right, so what the file says of itself is not
            writer.close()
            raise damaged(path, str(error), shape) from error
        except BaseException:
            writer.close()
            raise
    return writer, reader


@contextmanager
def _opening_alone(directory: Path) -> Iterator[None]:
    """Let one process at a time make or migrate databases in `directory`.

    SQLite's own locks do not do: two that find a new file would both make it, and switching on the log fails at once
    where another does the same.

    Raises:
        StorageError: Another process is at it for too long.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + _OPENING_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"{directory}: another process is opening what is kept there") from None
                time.sleep(_OPENING_PAUSE)
        yield
    finally:
        os.close(descriptor)


def _make(path: Path, shape: Shape) -> None:
    """Make the file, for its owner alone (its log takes its mode from it), if there is none.

    Raises:
        MachineError: There is a log without its database: SQLite takes the rest of one for a new file, and deletes
            the log.
    """
    if _size_of(path.with_name(f"{path.name}-wal")) and _size_of(path) < _SMALLEST_PAGE:
        raise damaged(path, "cut short, and its log is not", shape)
    # Never opened where it is there already: to close it would end all of SQLite's locks of this process on it.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _size_of(path: Path) -> int:
    """Give a file's bytes, 0 where there is none: whoever closes a database last deletes its log."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _migrate(connection: apsw.Connection, path: Path, shape: Shape) -> None:
    """Bring the file to the newest version, and see that its tables are those that this makes.

    Raises:
        MachineError: It is of a newer program, or its description of itself is damaged.
    """
    pristine = apsw.Connection(":memory:")
    try:
        migrate(connection, shape.migrations)
        migrate(pristine, shape.migrations)
        if _schema(connection) != _schema(pristine):
            raise damaged(path, "its tables are not ours", shape)
    finally:
        pristine.close()


def _schema(connection: apsw.Connection) -> list[object]:
    return list(connection.execute("select type, name, tbl_name, sql from sqlite_schema order by name"))


def _prepare(connection: apsw.Connection) -> None:
    connection.set_busy_timeout(_BUSY_MILLIS)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL")  # NORMAL may forget the last commits in a power cut
    connection.pragma("foreign_keys", value=True)
    connection.pragma("cache_size", -_CACHE_KIB)
