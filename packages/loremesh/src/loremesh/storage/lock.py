"""One process per data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loremesh.errors import MachineError
from loremesh.storage.files import make_directory

LOCK_NAME: Final = "lock"
_PID_BYTES: Final = 20


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Own `directory`, made if missing, for as long as the block runs.

    The kernel holds the lock for the open file, so it ends with the process however that ends. The file stays: to
    delete it would let two processes lock two files of one name.

    Raises:
        MachineError: Another process owns it, or it cannot be written.
    """
    make_directory(directory)
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise MachineError(f"cannot write in {directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except BlockingIOError:
            owner = os.read(descriptor, _PID_BYTES).decode("ascii", "replace").strip()
            raise MachineError(
                f"{directory} is in use by process {owner or '(starting)'}: stop it or choose another --data-dir"
            ) from None
        except OSError as error:
            raise MachineError(f"cannot write in {directory}: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def owner_of(directory: Path) -> str | None:
    """Tell the process that owns `directory`, None when nobody does. Changes nothing, and makes nothing.

    Raises:
        MachineError: The lock cannot be looked at.
    """
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise MachineError(f"cannot read in {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, _PID_BYTES).decode("ascii", "replace").strip() or "(starting)"
    finally:
        os.close(descriptor)
    return None
