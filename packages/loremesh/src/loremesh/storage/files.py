"""Directories that exist and names that survive a power cut."""

import os
from pathlib import Path

from loremesh.errors import MachineError


def make_directory(directory: Path) -> None:
    """Create `directory`, for its owner alone, and its parents; one that exists stays as it is.

    Raises:
        MachineError: It cannot be made, or the name belongs to a file.
    """
    try:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(directory.parent)
    except OSError as error:
        raise MachineError(f"cannot use {directory} as a directory: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: a file's own fsync does not cover its name."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
