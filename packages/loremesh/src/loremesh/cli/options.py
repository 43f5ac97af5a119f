"""The flags that several commands share, each described once, and how a command gets at them.

A flag's value stays text here: `loremesh.config` checks it, together with what the environment and the file say, so
that a mistake is explained the same way wherever it stands.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, ParamSpec

import typer

import loremesh

if TYPE_CHECKING:
    from loremesh.config import Settings

P = ParamSpec("P")
Flags = dict[str, object]
"""What was typed, by key; None where a flag was not given."""


def _text(flag: str, metavar: str, description: str) -> Any:  # noqa: ANN401 - an annotation
    return Annotated[str | None, typer.Option(flag, metavar=metavar, help=description)]


def _many(flag: str, metavar: str, description: str) -> Any:  # noqa: ANN401 - an annotation
    return Annotated[list[str] | None, typer.Option(flag, metavar=metavar, help=f"{description} Repeatable.")]


def _switch(flags: str, description: str) -> Any:  # noqa: ANN401 - an annotation
    return Annotated[bool | None, typer.Option(flags, help=description)]


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer calls it so
    if wanted:
        typer.echo(loremesh.__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]

MaxPrice = Annotated[
    int | None, typer.Option("--max-price", metavar="GWEI", min=0, help="Most to agree to, for 1,000 tokens.")
]
Discovery = Annotated[
    float, typer.Option("--discovery", metavar="SECONDS", min=0, max=600, help="To look for an executor.")
]
Timeout = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=1, max=600, help="For the whole answer.")]


DESCRIPTIONS: Final[dict[str, Any]] = {
    "listen_address": _many(
        "--listen-address",
        "MULTIADDR",
        "Listen here: …/tcp/4001, …/tcp/4002/ws or …/udp/4001/quic-v1; port 0: any.",
    ),
    "announce_address": _many("--announce-address", "MULTIADDR", "Tell others this address instead."),
    "bootstrap_nodes": _text("--bootstrap-nodes", "MULTIADDR,MULTIADDR", "Nodes to connect to first."),
    "data_dir": _text("--data-dir", "DIR", "Where the key and the chain are kept."),
    "genesis": _text("--genesis", "FILE.toml", "Start or join the story of this file."),
    "story": _text("--story", "ID", "Join this story, fetching its genesis from a peer."),
    "key_file": _text("--key-file", "PATH", "The private key's file; made on first use."),
    "private_key": _text("--private-key", "HEX", "The private key itself; visible to everybody on this machine."),
    "relay": _switch("--relay", "Pass bytes on between peers that cannot reach each other."),
    "mdns": _switch("--mdns", "Find peers on the local network, and be found there."),
    "max_connections_per_address": _text(
        "--max-connections-per-address", "N", "Most connections from one IP address. [default: 32]"
    ),
    "max_reorg": _text("--max-reorg", "BLOCKS", "Most blocks that an automatic reorganisation may undo."),
    "http": _text("--http", "HOST:PORT", "Serve /healthz, /readyz and /metrics here; port 0 takes a free one."),
    "drain": _text("--drain", "SECONDS", "How long calls in flight may take when stopping. [default: 2]"),
    "backend": _text("--backend", "builtin|openai|local|mesh", "What answers prompts. [default: builtin]"),
    "base_url": _text("--base-url", "URL", "The OpenAI-compatible server to use."),
    "model": _many("--model", "NAME", "A model to serve, or to ask the mesh for; the first one writes."),
    "mine": _switch("--mine/--no-mine", "Race to write the next block, or only keep the chain. [default: mine]"),
    "serve": _switch("--serve/--no-serve", "Answer calls to the models, or keep them to itself. [default: serve]"),
    "work_share": _text("--work-share", "SHARE", "Share of one core that the search for work may use. [default: 0.2]"),
    "max_tokens_per_day": _text("--max-tokens-per-day", "N", "Tokens the backend may use per day (UTC)."),
    "latency": _text("--latency", "MIN,MAX", "Seconds that the builtin backend pretends to think."),
    "json": _switch("--json", "Print results and events as JSON."),
    "config": _text("--config", "FILE.toml", "Read settings from this file; flags win over it."),
    "log_level": _text("--log-level", "LEVEL", "Least severe log shown: debug, info, warning, error. [default: info]"),
    "log_format": _text("--log-format", "text|json", "How log lines look. [default: text]"),
    "version": Version,
}

_EVERYWHERE: Final = ("json", "config", "log_level", "log_format")
OFFLINE_FLAGS: Final = ("data_dir", *_EVERYWHERE)
CLIENT_FLAGS: Final = ("bootstrap_nodes", "story", "data_dir", "key_file", "private_key", *_EVERYWHERE)
VALIDATOR_FLAGS: Final = (
    "listen_address",
    "announce_address",
    "bootstrap_nodes",
    "data_dir",
    "genesis",
    "story",
    "key_file",
    "private_key",
    "relay",
    "mdns",
    "max_connections_per_address",
    "max_reorg",
    "http",
    "drain",
    *_EVERYWHERE,
    "version",
)
EXECUTOR_FLAGS: Final = (
    "backend",
    "base_url",
    "model",
    "mine",
    "serve",
    "work_share",
    "max_tokens_per_day",
    "latency",
    *VALIDATOR_FLAGS,
)


def with_flags(*keys: str) -> Callable[[Callable[Concatenate[Flags, P], None]], Callable[..., None]]:
    """Give a command the shared flags named by `keys`; it gets their values as its first argument.

    The command's own parameters follow as usual::

        @app.command()
        @with_flags(*CLIENT_FLAGS)
        def canon(flags: Flags, follow: Annotated[bool, typer.Option("--follow")] = False) -> None: ...
    """

    def decorate(command: Callable[Concatenate[Flags, P], None]) -> Callable[..., None]:
        _, *own = inspect.signature(command).parameters.values()
        shared = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=DESCRIPTIONS[key])
            for key in keys
        ]

        @functools.wraps(command)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            flags: Flags = {key: kwargs.pop(key, None) for key in keys}
            command(flags, *args, **kwargs)

        # typer reads the signature and the annotations; of the original it must see neither.
        del wrapper.__wrapped__
        parameters = [*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *shared]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
        wrapper.__annotations__ = {one.name: one.annotation for one in parameters}
        return wrapper

    return decorate


def client_settings(flags: Flags) -> "Settings":
    """Load what a client command was told, and send its logs to stderr.

    Raises:
        UsageError: A setting is wrong.
    """
    from loremesh.config import Program, load_settings

    settings = load_settings(Program.CLIENT, flags, os.environ)
    start_logs(settings, flags)
    return settings


def start_logs(settings: "Settings", flags: Flags) -> None:
    """Send logs to stderr as the settings say; warn about a key that `ps` shows."""
    from loremesh import logs

    logs.configure(settings.log_level, settings.log_format)
    if flags.get("private_key"):
        logs.get_logger(__name__).warning(
            "everybody on this machine can read the command line, and with it the private key: prefer --key-file"
        )
