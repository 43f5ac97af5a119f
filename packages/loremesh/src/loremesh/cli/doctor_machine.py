"""The doctor's look at this machine: programs, directories, keys, limits, ports, and the backend it is to use."""

import os
import platform
import resource
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio

import loremesh
from loremesh.cli.errors import ExitCode
from loremesh.cli.findings import Check, failed
from loremesh.config import Settings
from loremesh.errors import BackendError, BackendUnauthorised, LoremeshError, MachineError, UsageError
from loremesh.network.addresses import Endpoint, Transport, where_to_listen
from loremesh.network.settings import NetworkSettings
from loremesh.network.udp import bound
from loremesh.primitives import MIB
from loremesh.protocol.identity import Identity, peer_id_text
from loremesh.storage.keys import read_key
from loremesh.storage.lock import owner_of

_OLDEST: Final = (3, 11)
_LITTLE_DISK: Final = 256 * MIB
_FILES_BESIDE_CONNECTIONS: Final = 128
_BACKEND_PATIENCE: Final = 10.0


def check_machine(settings: Settings) -> list[Check]:
    """Look at all that needs no network; changes nothing."""
    directory = settings.data_dir
    return [
        _versions(),
        _directory(directory),
        _space(directory),
        _lock(directory),
        _key(settings),
        _open_files(),
    ]


async def check_listening(addresses: tuple[str, ...]) -> list[Check]:
    """Try each address a node is to listen at, and give it back at once."""
    checks = []
    for address in addresses:
        name = f"listen at {address}"
        try:
            endpoint = Endpoint.from_str(address)
            if endpoint.transport is Transport.QUIC:
                for datagrams in await bound(endpoint.host, endpoint.port):
                    datagrams.close()
            else:
                for listener in await trio.open_tcp_listeners(endpoint.port, host=endpoint.host):
                    await listener.aclose()
        except OSError as error:
            checks.append(failed(name, f"cannot be listened at: {error.strerror or error}", where_to_listen(error)))
        except UsageError as error:
            checks.append(failed(name, str(error), "write the address as shown", ExitCode.USAGE))
        else:
            checks.append(Check(name, "free"))
    return checks


async def check_backend(settings: Settings, base_url: str) -> Check:
    """Ask an OpenAI-compatible server for its models, and whether ours is among them."""
    from loremesh.backends.openai import OpenAIBackend

    name = f"backend {base_url}"
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    try:
        backend = OpenAIBackend(base_url=base_url, api_key=key, patience=_BACKEND_PATIENCE)
    except UsageError as error:
        return failed(name, str(error), "write the URL as shown", ExitCode.USAGE)
    try:
        models = await backend.served_models()
    except BackendUnauthorised as error:
        remedy = "set LOREMESH_API_KEY (or api_key in the configuration file) to a key that the server knows"
        return failed(name, str(error), remedy, ExitCode.USAGE)
    except BackendError as error:
        remedy = "start the server, or correct the URL: it usually ends in /v1"
        return failed(name, str(error), remedy, ExitCode.UNREACHABLE)
    finally:
        await backend.aclose()
    wanted = [settings.model_aliases.get(name, name) for name in settings.models]
    missing = [model for model in wanted if model not in models]
    detail = f"serves {', '.join(models[:8])}{' and more' if len(models) > 8 else ''}" if models else "serves no model"  # noqa: PLR2004 - fits a line
    if missing or not models:
        remedy = f"load {missing[0] if missing else 'a model'} into the server, or choose --model among those it serves"
        return failed(name, detail, remedy, ExitCode.USAGE)
    return Check(name, detail)


def _versions() -> Check:
    python = platform.python_version()
    detail = f"loremesh {loremesh.__version__}, Python {python}, libp2p {version('libp2p')}, trio {version('trio')}"
    if sys.version_info < _OLDEST:
        return failed("versions", detail, "install Python 3.11 or newer and run make setup again")
    return Check("versions", detail)


def _directory(directory: Path) -> Check:
    name = "data directory"
    remedy = f"make it writable for this user, or choose another --data-dir than {directory}"
    if directory.exists() and not directory.is_dir():
        return failed(name, f"{directory} is not a directory", "choose another --data-dir")
    nearest = _nearest(directory)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return failed(name, f"{nearest} is not writable", remedy)
    return Check(name, str(directory) if directory.exists() else f"{directory} (will be made)")


def _nearest(directory: Path) -> Path:
    """Give the directory itself, or the nearest one above it that exists."""
    return next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())


def _space(directory: Path) -> Check:
    free = shutil.disk_usage(_nearest(directory)).free // MIB
    if free < _LITTLE_DISK // MIB:
        return failed("disk space", f"{free} MiB free", "make room: a node stops when the disk is full")
    return Check("disk space", f"{free} MiB free")


def _lock(directory: Path) -> Check:
    try:
        owner = owner_of(directory)
    except MachineError as error:
        return failed("lock", str(error), "run the doctor as the user who runs the node")
    return Check("lock", f"process {owner} runs a node here" if owner else "free: no node runs here")


def _key(settings: Settings) -> Check:
    path = settings.key_file or settings.data_dir / "key"
    try:
        if settings.private_key is not None:
            identity = Identity.from_str(settings.private_key.get_secret_value())
            return Check("key", f"from the settings, peer id {peer_id_text(identity.peer_id)}")
        identity = read_key(path)
    except (FileNotFoundError, NotADirectoryError):
        return Check("key", f"none at {path} yet: a node makes one on its first run")
    except LoremeshError as error:
        code = ExitCode.MACHINE if isinstance(error, MachineError) else ExitCode.USAGE
        return failed("key", str(error), "mend the file as said, or name another one with --key-file", code)
    return Check("key", f"{path}, mode {path.stat().st_mode & 0o777:04o}, peer id {peer_id_text(identity.peer_id)}")


def _open_files() -> Check:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = NetworkSettings().max_connections + _FILES_BESIDE_CONNECTIONS
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        return failed("open files", f"{allowed} allowed, a busy node needs {needed}", "raise the limit: ulimit -n 1024")
    return Check("open files", "any number" if allowed == resource.RLIM_INFINITY else f"{allowed} allowed")
