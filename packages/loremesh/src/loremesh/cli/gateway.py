"""`loremesh gateway`: every model of the mesh behind OpenAI's API, for programs that know nothing of us."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from loremesh.cli.options import CLIENT_FLAGS, Discovery, Flags, MaxPrice, Timeout, client_settings, with_flags
from loremesh.errors import UsageError

if TYPE_CHECKING:
    from loremesh.config import Settings

_KEY_VARIABLE: Final = "LOREMESH_API_KEY"
_MAX_KEY: Final = 4096


@with_flags(*CLIENT_FLAGS, "drain")
def gateway(  # noqa: PLR0917 - each is a flag, and typer passes them by name
    flags: Flags,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Serve here; port 0 takes a free one.")
    ] = "127.0.0.1:8080",
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", help="Answer only who sends it; everybody here sees it.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="The key is in this file.")
    ] = None,
    api_key_env: Annotated[
        str, typer.Option("--api-key-env", metavar="NAME", help="The key is in this variable.")
    ] = _KEY_VARIABLE,
    max_price: MaxPrice = None,
    timeout: Timeout = 600.0,
    discovery: Discovery = 10.0,
) -> None:
    """Serve OpenAI's API in front of the mesh until told to stop; executors can read what is asked.

    Point OPENAI_BASE_URL at what it prints. Without a key it answers programs of this machine alone.
    """
    from loremesh.cli.stopping import leave_at_signals

    leave_at_signals()
    settings = client_settings(flags)
    key = _key(api_key, api_key_file, api_key_env)
    address = _address(listen)

    import trio

    from loremesh import logs
    from loremesh.protocol.llm import MAX_PRICE

    if api_key is not None:
        logs.get_logger(__name__).warning(
            "everybody on this machine can read the command line, and with it the API key: prefer --api-key-file"
        )
    try:
        from loremesh.roles.gateway import Terms, run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise UsageError(f"gateway needs {missing}: pip install 'loremesh[http]'") from error

    def tell_ready(url: str) -> None:
        _tell_ready(settings, url)

    most = MAX_PRICE if max_price is None else min(max_price, MAX_PRICE)
    trio.run(run, settings, address, key, Terms(most, timeout, discovery), tell_ready)


def _tell_ready(settings: "Settings", url: str) -> None:
    typer.echo("note: executors can read what is asked here and what they answer", err=True)
    if settings.json_output:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        typer.echo(json.dumps({"event": "ready", "at": at, "role": "gateway", "base_url": url}))
    else:
        typer.echo(f"gateway is ready: OPENAI_BASE_URL={url}")


def _address(text: str) -> str:
    from loremesh.config import host_and_port

    try:
        return host_and_port(text)
    except ValueError as error:
        raise UsageError(f"--listen {text}: {error}") from error


def _key(given: str | None, file: Path | None, variable: str) -> str | None:
    """Find the key that clients must send.

    Raises:
        UsageError: Two are given, or what is given is none.
    """
    if given is not None and file is not None:
        raise UsageError("--api-key and --api-key-file say the same thing twice: give one of them")
    if file is not None:
        return _checked(_read(file), f"--api-key-file {file}")
    if given is not None:
        return _checked(given, "--api-key")
    if os.environ.get(variable):
        return _checked(os.environ[variable], variable)
    if variable != _KEY_VARIABLE:
        raise UsageError(f"--api-key-env {variable}: there is no such variable")
    return None


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_KEY + 1).decode("ascii", "replace").strip()
    except OSError as error:
        raise UsageError(f"--api-key-file {file}: {(error.strerror or str(error)).lower()}") from error


def _checked(key: str, where: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key or not 0 < len(key) <= _MAX_KEY:
        raise UsageError(f"{where}: a key is visible ASCII without blanks, at most {_MAX_KEY} characters")
    return key
