"""The key file: 64 hexadecimal digits and a newline, for its owner's eyes only."""

import os
import stat
from pathlib import Path
from typing import Final

from loremesh.errors import InvalidKey, MachineError, UsageError
from loremesh.protocol.identity import Identity
from loremesh.storage.files import make_directory, sync_directory

_FOR_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# Enough to tell a key from anything else without reading a whole disk image given by mistake.
_READ_BYTES: Final = 256


def load_or_create_key(path: Path, entropy: bytes) -> Identity:
    """Read the identity kept at `path`; where there is none yet, make one of `entropy` and keep it.

    Args:
        path: The key file; missing directories are made.
        entropy: 32 random bytes (`secrets.token_bytes(32)`), unused when the file exists.

    Raises:
        InvalidKey: The file is not a key; its content is never repeated.
        UsageError: Others may read the file, or it is not a file.
        MachineError: It can be neither read nor written.
    """
    try:
        return read_key(path)
    except FileNotFoundError:
        identity = Identity.generate(entropy)
        try:
            write_key(path, identity)
        except UsageError:
            if not path.exists():  # a link to nowhere
                raise
            return read_key(path)  # another process was quicker
        return identity


def read_key(path: Path) -> Identity:
    """Read the identity kept at `path`.

    Raises:
        FileNotFoundError: There is no file.
        InvalidKey, UsageError, MachineError: As in `load_or_create_key`.
    """
    try:
        # Not blocking: a pipe given by mistake would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path} is not a file: name a key file")
        if mode & _FOR_OTHERS:
            raise UsageError(f"others may read the key in {path}: chmod 600 {path}")
        content = os.read(descriptor, _READ_BYTES)
    finally:
        os.close(descriptor)
    try:
        return Identity.from_str(content.decode("ascii", "replace"))
    except InvalidKey as error:
        raise InvalidKey(f"{path} holds no key: {error}; move it away to have a new one made") from error


def write_key(path: Path, identity: Identity) -> None:
    """Keep `identity` at `path`, mode 0600, durable on return. Nothing is ever overwritten.

    Raises:
        UsageError: Something of that name exists.
        MachineError: It cannot be written.
    """
    make_directory(path.parent)
    # Whole under another name first: half a key, left by a kill or a power cut, would refuse every later start.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)
        try:
            _write_secret(unfinished, identity)
            os.link(unfinished, path)  # fails where a rename would overwrite
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(path.parent)
    except FileExistsError:
        raise UsageError(f"{path} exists, and a key is never overwritten: name another file") from None
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from error


def _write_secret(path: Path, identity: Identity) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        # The mode given to open is cut by the umask, which may be stricter than the owner's own right to read.
        os.fchmod(file.fileno(), 0o600)
        file.write(f"{identity.secret.hex()}\n".encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
