"""How a table of a configuration file is read, and what each of its `[[backend]]` tables can say.

A backend answers prompts: of an executor's own mining, and of whoever calls its models.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from loremesh.errors import UsageError
from loremesh.protocol.llm import MAX_PRICE

BUILTIN_MODEL: Final = "builtin"
LOCAL_MODEL: Final = "smollm2"
MESH: Final = "mesh"
PATHS: Final = frozenset({"data_dir", "genesis", "key_file", "weights"})
"""Keys whose values are paths, relative to the file that they stand in."""

_SECRETS: Final = frozenset({"private_key", "api_key"})
_SHOWN: Final = 80
_LONGEST_NAME: Final = 128
_OWN_KEY: Final = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True, repr=False)
class Given:
    """A value somebody gave, and where: a flag, a variable, or a key of a file."""

    value: object
    where: str


def base_url(text: str) -> str:
    """Check that a URL is one of HTTP."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("should be a URL such as http://127.0.0.1:11434/v1")
    return text


def _numbers(value: object) -> object:
    numbers = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
    if isinstance(numbers, list | tuple) and len(numbers) != 2:  # noqa: PLR2004 - two ends of a span
        raise ValueError("should be MIN,MAX such as 0.5,2")
    return numbers


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError("should be MIN,MAX with MIN not above MAX")
    return span


def _model_name(text: str) -> str:
    if not 1 <= len(text.encode("utf-8", "replace")) <= _LONGEST_NAME:
        raise ValueError(f"should be the name of a model, of at most {_LONGEST_NAME} bytes")
    return text


def _as_models(value: object) -> object:
    """Take `["real"]` for `{real = "real"}`."""
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return {one: one for one in value}
    return value


BaseUrl = Annotated[str, AfterValidator(base_url)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]
_Thinking = Annotated[Seconds, Field(ge=0, le=5)]
Latency = Annotated[tuple[_Thinking, _Thinking], BeforeValidator(_numbers), AfterValidator(_ordered)]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")]
ModelName = Annotated[str, AfterValidator(_model_name)]
BackendKind = Literal["builtin", "openai", "local", "mesh"]


class BackendSettings(BaseModel):
    """What one `[[backend]]` table says; the short form (`--backend` and its companions) makes one as well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: NodeName
    """What logs call it."""
    kind: BackendKind
    models: Annotated[dict[ModelName, ModelName], BeforeValidator(_as_models)]
    """What is served: names that clients ask for, and the backend's own names for the same."""
    list_models: bool = False
    """openai: also serve whatever the server lists."""
    base_url: BaseUrl | None = None
    """openai: where the API begins; None: OpenAI's own."""
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    """openai: the variable that holds the key, for files that others may read."""
    continue_final_message: bool = False
    """openai: say to the server, in vLLM's words, that an answer begun is to be continued."""
    context: Annotated[int, Field(ge=256, le=2**32 - 1)] = 4096
    """Tokens that prompt and answer may have together, as the backend counts."""
    price: Annotated[int, Field(ge=0, le=MAX_PRICE)] = 0
    """Gwei per 1,000 tokens of `o200k_base`, prompt and answer alike."""
    concurrency: Annotated[int, Field(ge=1, le=256)]
    """Most calls at once."""
    max_tokens_per_day: Annotated[int | None, Field(ge=1)] = None
    """Tokens between midnights UTC, mining and serving together; None: any number."""
    requests_per_minute: Annotated[int | None, Field(ge=1)] = None
    """Most calls of one client; None: any number."""
    concurrency_per_client: Annotated[int | None, Field(ge=1, le=256)] = None
    """Most calls of one client at once; None: as many as there are."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    """builtin: two with different seeds tell different things."""
    latency: Latency = (0.0, 0.0)
    """builtin: seconds, least and most, that it pretends to think."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """local: more than the cores that are free makes it slower, not faster."""
    weights: Path | None = None
    """local: a GGUF file; None: what `model pull` fetched."""
    max_price: Annotated[int, Field(ge=0, le=MAX_PRICE)] = MAX_PRICE
    """mesh: gwei per 1,000 tokens that the node agrees to pay."""

    @property
    def is_own(self) -> bool:
        """Whether it answers here, so that others can be served with it."""
        return self.kind != MESH


BACKEND_KEYS: Final = frozenset(BackendSettings.model_fields)
_OF_ONE_KIND: Final = {
    "list_models": "openai",
    "base_url": "openai",
    "api_key": "openai",
    "api_key_env": "openai",
    "continue_final_message": "openai",
    "seed": "builtin",
    "latency": "builtin",
    "threads": "local",
    "weights": "local",
    "max_price": MESH,
}
_FOR_CLIENTS: Final = ("price", "concurrency", "concurrency_per_client", "requests_per_minute")
_CONCURRENCY: Final = {"builtin": 16, "openai": 4, "local": 1, MESH: 1}
_MODELS: Final = {"builtin": [BUILTIN_MODEL], "local": [LOCAL_MODEL]}


def take_keys(table: Mapping[str, Any], known: frozenset[str], path: Path, where: str) -> dict[str, Given]:
    """Note what a table says, and where.

    Raises:
        UsageError: A key that is not known, with those that are nearest to it.
    """
    given = dict[str, Given]()
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key.replace("-", "_"), known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known here: {', '.join(sorted(known))}"
            raise UsageError(f"{where}: unknown key {key!r}; {hint}")
        if key == "backend" and isinstance(value, list):
            value = _take_tables(value, path, where)  # noqa: PLW2901 - tables in a table
        # A path in a file is relative to the file: it means the same from whichever folder the program is started.
        beside = path.parent / Path(value).expanduser() if key in PATHS and isinstance(value, str) else value
        given[key] = Given(beside, f"{key} in {where}")
    return given


def plain_reason(message: str) -> str:
    """Take what only a programmer wants to know out of what pydantic says of a value."""
    shorter = message.removeprefix("Value error, ").replace("Input should", "should", 1)
    return re.sub(r", unable to parse string as an? \w+", "", shorter)


def refuse(details: ErrorDetails, given: Mapping[str, Given]) -> NoReturn:
    """Turn pydantic's first complaint into our one line."""
    key = str(details["loc"][0])
    where = given[key].where if key in given else key
    reason = plain_reason(details["msg"])
    if key not in _SECRETS:
        shown = repr(details["input"])
        reason += f", not {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + '…'}"
    # The cause would repeat what was given, and that may be a secret.
    raise UsageError(f"{where}: {reason}") from None


def read_backends(
    tables: Sequence[Mapping[str, Given]], environment: Mapping[str, str], keys: Mapping[str, Given]
) -> tuple[BackendSettings, ...]:
    """Give what a file's `[[backend]]` tables say.

    Args:
        tables: As `take_keys` noted them.
        environment: Where `api_key_env` looks.
        keys: Everything else that was given, of which the short form of a backend is refused.

    Raises:
        UsageError: The first thing that is wrong, where it stands, and what would do.
    """
    for key in ("base_url", "model", "model_aliases", "api_key", "max_tokens_per_day", "latency"):
        if key in keys and keys[key].where != _OWN_KEY:
            raise UsageError(f"{keys[key].where}: there are [[backend]] tables: write it into one of them")
    backends = tuple(_read_backend(table, environment) for table in tables)
    seen = set[str]()
    for backend in backends:
        for thing in (f"the name {backend.name}", *(f"the model {model}" for model in backend.models)):
            if thing in seen:
                raise UsageError(f"two [[backend]] tables have {thing}")
            seen.add(thing)
    return backends


def _take_tables(tables: list[Any], path: Path, where: str) -> tuple[dict[str, Given], ...]:
    if not tables or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{where}: backends are written as [[backend]] tables")
    return tuple(
        take_keys(one, BACKEND_KEYS, path, f"[[backend]] {number} of {where}") for number, one in enumerate(tables, 1)
    )


def _read_backend(given: Mapping[str, Given], environment: Mapping[str, str]) -> BackendSettings:
    kind = given["kind"].value if "kind" in given else BUILTIN_MODEL
    for key, owner in _OF_ONE_KIND.items():
        if key in given and kind in _CONCURRENCY and owner != kind:
            raise UsageError(f"{given[key].where}: is for backends of the kind {owner}, this one is {kind}")
    for key in _FOR_CLIENTS:
        if key in given and kind == MESH:
            raise UsageError(f"{given[key].where}: is for backends that serve clients, this one is {MESH}")
    values: dict[str, object] = {
        "kind": kind,
        "name": kind,
        "models": _MODELS.get(str(kind), []),
        "concurrency": _CONCURRENCY.get(str(kind), 1),
        **{key: one.value for key, one in given.items()},
    }
    try:
        backend = BackendSettings.model_validate(values)
    except ValidationError as error:
        refuse(error.errors(include_url=False, include_context=False)[0], given)
    if not backend.models and not backend.list_models:
        otherwise = ", or say list_models = true" if backend.kind == "openai" else ""
        raise UsageError(f"the backend {backend.name}: has no model: name some in models{otherwise}")
    return _with_key(backend, given, environment)


def _with_key(backend: BackendSettings, given: Mapping[str, Given], environment: Mapping[str, str]) -> BackendSettings:
    """Fetch the key from the variable that is named; OpenAI's own variable is for OpenAI's own server alone."""
    variable = backend.api_key_env
    if variable is not None and backend.api_key is not None:
        raise UsageError(f"{given['api_key_env'].where}: there is an api_key too: give one of them")
    if variable is not None and not environment.get(variable):
        raise UsageError(f"{given['api_key_env'].where}: the variable {variable} is not set")
    if variable is None and backend.kind == "openai" and backend.base_url is None and backend.api_key is None:
        variable = _OWN_KEY
    key = environment.get(variable or "")
    return backend.model_copy(update={"api_key": SecretStr(key)}) if key else backend


def short_backend(
    kind: BackendKind,
    *,
    models: tuple[str, ...],
    url: str | None,
    key: SecretStr | None,
    max_tokens_per_day: int | None,
    latency: tuple[float, float],
) -> BackendSettings:
    """Make the one backend that flags describe."""
    return BackendSettings(
        name=kind,
        kind=kind,
        models={one: one for one in models or _MODELS[kind]},
        base_url=url if kind == "openai" else None,
        api_key=key if kind == "openai" else None,
        concurrency=_CONCURRENCY[kind],
        max_tokens_per_day=max_tokens_per_day,
        latency=latency,
    )
