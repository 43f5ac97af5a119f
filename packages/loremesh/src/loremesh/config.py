"""One configuration model for every program: flags, then `LOREMESH_*` variables, then a TOML file, then defaults.

A key has one name everywhere: `work_share` in the file is `--work-share` as a flag and `LOREMESH_WORK_SHARE` in the
environment. A value that cannot be used is refused in one line that says where it came from and what would do. With
`settings_tables` the only door to pydantic; the only one to platformdirs.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import platformdirs
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from loremesh.errors import UsageError
from loremesh.primitives import Hash, StoryId
from loremesh.settings_tables import (
    MESH,
    PATHS,
    BackendKind,
    BackendSettings,
    BaseUrl,
    Given,
    Latency,
    ModelName,
    NodeName,
    Seconds,
    read_backends,
    refuse,
    short_backend,
    take_keys,
)

_FILE_LIMIT: Final = 1024 * 1024
_MAX_PORT: Final = 65535
_HOSTS: Final = frozenset({"ip4", "ip6", "dns", "dns4", "dns6"})
LISTEN_DEFAULTS: Final = {"validator": "/ip4/0.0.0.0/tcp/4001", "executor": "/ip4/0.0.0.0/tcp/0"}
"""A validator is an anchor that others write down, so its port is fixed; an executor takes any free one."""

DEFAULT_MODEL: Final = "story-default"
"""The alias that writes when no model is named."""


class Program(StrEnum):
    """Who reads the configuration; it decides the default data directory and listening address."""

    CLIENT = "client"
    EXECUTOR = "executor"
    VALIDATOR = "validator"


def _as_list(value: object) -> object:
    """Take `a,b`, `["a", "b"]` and a flag given twice for the same thing."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(piece.strip() for piece in ",".join(parts).split(",") if piece.strip())


def _multiaddr(text: str) -> str:
    try:
        protocols = [protocol.name for protocol in Multiaddr(text).protocols()]
    except (MultiaddrError, ValueError) as error:
        raise ValueError("should be a multiaddr such as /ip4/127.0.0.1/tcp/4001") from error
    port = protocols[1:3] if protocols[1:2] == ["udp"] else protocols[1:2]
    if protocols[0] not in _HOSTS or port not in (["tcp"], ["udp", "quic-v1"]):
        quic = "or a UDP port for QUIC, such as /dns4/example.org/udp/4001/quic-v1"
        raise ValueError(f"should name a host and a TCP port, such as /dns4/example.org/tcp/4001, {quic}")
    return text


def _story(value: object) -> object:
    if isinstance(value, str):
        digits = value.strip().removeprefix("0x")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
            raise ValueError("should be a story id: 64 hexadecimal digits")
        return StoryId(Hash(bytes.fromhex(digits)))
    return value


def host_and_port(text: str) -> str:
    """Check that a text is HOST:PORT; give it.

    Raises:
        ValueError: It is not, and what one looks like.
    """
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    bracketed = host == f"[{bare}]"
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _MAX_PORT or not bare or (":" in bare) is not bracketed:
        raise ValueError("should be HOST:PORT such as 127.0.0.1:9464 or [::1]:9464")
    return text


def _as_pairs(value: object) -> object:
    """Take a table, or `NAME=MODEL,NAME=MODEL` from the environment."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split(",") if part.strip()]
    if not all(separator and model.strip() for _, separator, model in pairs):
        raise ValueError("should be NAME=MODEL,NAME=MODEL")
    return {name.strip(): model.strip() for name, _, model in pairs}


Addresses = Annotated[tuple[Annotated[str, AfterValidator(_multiaddr)], ...], BeforeValidator(_as_list)]
Names = Annotated[tuple[ModelName, ...], BeforeValidator(_as_list)]


class Settings(BaseModel):
    """Everything a user can decide; one model for all programs, of which each reads what concerns it.

    The alias of a field is its key in the file, its flag and its variable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: NodeName
    """What logs call this node; of several executors in one process, also the name of its data directory."""
    data_dir: Path
    """Holds the key, the chain and the mempool; one process at a time."""
    listen_addresses: Addresses = Field(alias="listen_address")
    """Multiaddrs to listen at; port 0 takes a free one."""
    announce_addresses: Addresses = Field(default=(), alias="announce_address")
    """Multiaddrs to tell others instead of those listened at, behind a cloud's address translation."""
    bootstrap_nodes: Addresses = ()
    """Multiaddrs to connect to first."""
    genesis: Path | None = None
    """The genesis file of the story to start or join."""
    story: Annotated[StoryId | None, BeforeValidator(_story)] = None
    """The story to join, fetching its genesis from a peer."""
    key_file: Path | None = None
    """Where the private key is; None: in the data directory."""
    private_key: SecretStr | None = None
    """The private key itself, in hexadecimal."""
    relay: bool = False
    """Whether to pass bytes on between peers that cannot reach each other."""
    mdns: bool = False
    """Whether to look for peers on the local network, and be found there."""
    max_connections_per_address: Annotated[int, Field(ge=1, le=128)] = 32
    """Most connections accepted from one IP address."""
    max_reorg: Annotated[int | None, Field(ge=1)] = None
    """Most blocks that an automatic reorganisation may undo; None: what the protocol recommends."""
    http: Annotated[str, AfterValidator(host_and_port)] | None = None
    """HOST:PORT at which the node serves /healthz, /readyz and /metrics; None: nowhere."""
    drain: Annotated[Seconds, Field(ge=0, le=600)] = 2.0
    """Seconds that calls in flight get when the node is asked to stop."""

    mine: bool = True
    """Whether an executor races to write the next block."""
    serve: bool = True
    """Whether an executor answers calls to its models."""
    backend: BackendKind = "builtin"
    """What answers prompts: the built-in generator, any server that speaks the OpenAI API, a small model in here, or
    another executor."""
    backends: tuple[BackendSettings, ...] = ()
    """Of an executor: what its `[[backend]]` tables say, or the one backend that the other keys describe."""
    base_url: BaseUrl | None = None
    """The OpenAI-compatible server; None: OpenAI's own."""
    api_key: SecretStr | None = None
    """The backend's key; no flag sets it, because a command line is visible to everybody on the machine."""
    models: Names = Field(default=(), alias="model")
    """Names of models, as the backend knows them; the first one writes."""
    model_aliases: Annotated[dict[str, str], BeforeValidator(_as_pairs)] = Field(default_factory=dict)
    """What names stand for here, such as `story-default` for the cheap model this operator pays for."""
    max_tokens_per_day: Annotated[int | None, Field(ge=1)] = None
    """Tokens that the backend may use between midnights UTC; None: any number."""
    latency: Latency = (0.0, 0.0)
    """Seconds, least and most, that the built-in generator pretends to think."""
    work_share: Annotated[Seconds, Field(gt=0, le=1)] = 0.2
    """Share of one core that the search for work may use."""

    json_output: bool = Field(default=False, alias="json")
    """Whether results and events go to stdout as JSON."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe kind of log line shown on stderr."""
    log_format: Literal["text", "json"] = "text"
    """How log lines look."""

    @property
    def served_models(self) -> tuple[str, ...]:
        """What clients may ask an executor for, by the names that they use."""
        own = [backend for backend in self.backends if self.serve and backend.is_own]
        return tuple(model for backend in own for model in backend.models)


KEYS: Final = tuple(field.alias or name for name, field in Settings.model_fields.items() if name != "backends")
_TABLE_KEYS: Final = frozenset(KEYS) - {"json", "log_level", "log_format", "drain"}
_FILE_KEYS: Final = frozenset(KEYS) - {"name"}


@dataclass(frozen=True, slots=True, repr=False)
class _File:
    """A configuration file: the keys at its top, and those of each `[[executor]]` table."""

    top: dict[str, Given]
    executors: tuple[dict[str, Given], ...] = ()


def models_directory() -> Path:
    """Tell where the weights of local models are kept, for all executors of this user."""
    return Path(platformdirs.user_data_path("loremesh", appauthor=False)) / "models"


def load_settings(program: Program, flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Merge every source into the settings of one node or one client command.

    Args:
        program: Whose defaults to use.
        flags: By key, as `KEYS` names them; None where a flag was not given. `config` is the path of the file.
        environment: The process environment.

    Raises:
        UsageError: The first thing that is wrong, where it stands, and what would succeed.
    """
    file, direct = _sources(flags, environment)
    return _settings(program, {**file.top, **direct}, environment)


def load_executors(flags: Mapping[str, object], environment: Mapping[str, str]) -> tuple[Settings, ...]:
    """Give the settings of each executor that one process runs: one per `[[executor]]` table, or one without tables.

    A table overrides the keys at the top of its file; flags and the environment override both. A data directory that
    is not a table's own is shared out: each executor gets the folder of its name in it.

    Raises:
        UsageError: As `load_settings`; also two executors that would share a key, a folder or a port.
    """
    file, direct = _sources(flags, environment)
    if not file.executors:
        return (_settings(Program.EXECUTOR, {**file.top, **direct}, environment),)
    shared = {**file.top, **direct}
    for key in ("key_file", "private_key"):
        if key in shared and len(file.executors) > 1:
            message = f"{shared[key].where}: is one node's, and there are {len(file.executors)} [[executor]] tables"
            raise UsageError(f"{message}: give {key} in each table")
    executors = tuple(
        _executor(
            {"name": Given(f"executor-{number}", f"[[executor]] {number}"), **file.top}, table, direct, environment
        )
        for number, table in enumerate(file.executors, 1)
    )
    _refuse_sharing(executors)
    return executors


def _executor(
    top: dict[str, Given], table: dict[str, Given], direct: dict[str, Given], environment: Mapping[str, str]
) -> Settings:
    settings = _settings(Program.EXECUTOR, {**top, **table, **direct}, environment)
    own_folder = "data_dir" in table and "data_dir" not in direct
    return settings if own_folder else settings.model_copy(update={"data_dir": settings.data_dir / settings.name})


def _refuse_sharing(executors: tuple[Settings, ...]) -> None:
    seen = dict[object, str]()
    for settings in executors:
        fixed = [address for address in settings.listen_addresses if not re.search("/(tcp|udp)/0(/|$)", address)]
        if settings.http is not None and not settings.http.endswith(":0"):
            fixed.append(settings.http)
        for thing in (settings.name, settings.data_dir, settings.key_file, *fixed):
            if thing is not None and thing in seen:
                raise UsageError(f"[[executor]] tables {seen[thing]!r} and {settings.name!r} both use {thing}")
            seen[thing] = settings.name


def _sources(flags: Mapping[str, object], environment: Mapping[str, str]) -> tuple[_File, dict[str, Given]]:
    direct = dict[str, Given]()
    for key in KEYS:
        variable = f"LOREMESH_{key.upper()}"
        flag = flags.get(key)
        if flag is not None and flag != []:
            direct[key] = Given(flag, "--" + key.replace("_", "-"))
        elif environment.get(variable):
            direct[key] = Given(environment[variable], variable)
    path = flags.get("config") or environment.get("LOREMESH_CONFIG")
    file = _read(Path(str(path))) if path else _File({})
    keyed = "api_key" in direct or "api_key" in file.top
    if not keyed and environment.get("OPENAI_API_KEY"):
        file.top["api_key"] = Given(environment["OPENAI_API_KEY"], "OPENAI_API_KEY")
    return file, direct


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as stream:
            data = stream.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise UsageError(f"{path}: a configuration file has at most {_FILE_LIMIT} bytes")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error
    executors = table.pop("executor", [])
    if not isinstance(executors, list) or not all(isinstance(one, dict) for one in executors):
        raise UsageError(f"{path}: executors are written as [[executor]] tables")
    return _File(
        take_keys(table, _FILE_KEYS | {"executor"}, path, str(path)),
        tuple(
            take_keys(one, _TABLE_KEYS, path, f"[[executor]] {number} of {path}")
            for number, one in enumerate(executors, 1)
        ),
    )


def _settings(program: Program, given: dict[str, Given], environment: Mapping[str, str]) -> Settings:
    given = dict(given)
    backend = given.get("backend")
    tables = backend.value if backend is not None and isinstance(backend.value, tuple) else ()
    if tables:
        del given["backend"]
    values: dict[str, object] = {
        "name": program.value,
        "data_dir": Path(platformdirs.user_data_path("loremesh", appauthor=False)) / program.value,
        "listen_address": LISTEN_DEFAULTS.get(program.value, ()),
        **{key: one.value for key, one in given.items()},
    }
    for key in PATHS & values.keys():
        values[key] = Path(str(values[key])).expanduser()
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        refuse(error.errors(include_url=False, include_context=False)[0], given)
    _check(given)
    if program is not Program.EXECUTOR:
        return settings  # a variable or a table may be meant for the executor that runs beside
    backends = read_backends(tables, environment, given) if tables else (_short_form(settings, given),)
    if settings.mine and not any(backend.models for backend in backends):
        raise UsageError("no [[backend]] names a model to write with: name one in models, or say mine = false")
    serves = any(backend.is_own for backend in backends)
    if settings.serve and "serve" in given and not serves:
        raise UsageError(f"{given['serve'].where}: a {MESH} backend has no model to serve: add another [[backend]]")
    return settings.model_copy(update={"backends": backends, "serve": settings.serve and serves})


def _check(given: dict[str, Given]) -> None:
    for one, other in (("genesis", "story"), ("key_file", "private_key")):
        if one in given and other in given:
            raise UsageError(f"{given[one].where} and {given[other].where} say the same thing twice: give one of them")


def _short_form(settings: Settings, given: dict[str, Given]) -> BackendSettings:
    names = settings.models
    if settings.backend in ("openai", MESH) and not names:
        if DEFAULT_MODEL not in settings.model_aliases:
            raise UsageError(
                f"{given['backend'].where}: the {settings.backend} backend needs --model NAME, or an alias "
                f"{DEFAULT_MODEL}"
            )
        names = (DEFAULT_MODEL,)
    if settings.base_url is not None and "backend" not in given:
        raise UsageError(f"{given['base_url'].where}: is for the openai backend: add --backend openai")
    return short_backend(
        settings.backend,
        models=tuple(settings.model_aliases.get(name, name) for name in names) if settings.backend != "builtin" else (),
        url=settings.base_url,
        key=settings.api_key,
        max_tokens_per_day=settings.max_tokens_per_day,
        latency=settings.latency,
    )
