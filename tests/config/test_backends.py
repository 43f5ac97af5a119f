"""What `[[backend]]` tables become, and what is said about one that cannot be used."""

import re
from pathlib import Path

import pytest

from loremesh.config import Program, Settings, load_executors, load_settings
from loremesh.errors import UsageError
from loremesh.protocol.llm import MAX_PRICE

EXAMPLE = Path(__file__).parents[2] / "config.toml.example"
OLLAMA = '[[backend]]\nkind = "openai"\nbase_url = "http://127.0.0.1:11434/v1"\n'


def loaded(tmp_path: Path, text: str, environment: dict[str, str] | None = None, **flags: object) -> Settings:
    """What one executor makes of a configuration file."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    (settings,) = load_executors({"config": str(file), **flags}, environment or {})
    return settings


def test_without_tables_there_is_the_builtin_backend(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, "latency = [1, 2]").backends
    assert (only.name, only.kind, only.models, only.price) == ("builtin", "builtin", {"builtin": "builtin"}, 0)
    assert only.latency == (1, 2)


def test_flags_describe_one_backend(tmp_path: Path) -> None:
    flags = {"backend": "openai", "base_url": "http://127.0.0.1:1/v1", "model": ["a", "b"], "max_tokens_per_day": "9"}
    (only,) = loaded(tmp_path, "", {"OPENAI_API_KEY": "k"}, **flags).backends
    assert (only.kind, only.base_url, list(only.models)) == ("openai", "http://127.0.0.1:1/v1", ["a", "b"])
    assert only.max_tokens_per_day == 9
    assert only.api_key is not None
    assert only.api_key.get_secret_value() == "k"


def test_a_small_model_needs_no_more_than_its_kind(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, "", backend="local").backends
    assert (only.kind, only.models, only.threads, only.concurrency) == ("local", {"smollm2": "smollm2"}, 1, 1)


def test_the_mesh_is_a_backend_that_serves_nobody(tmp_path: Path) -> None:
    settings = loaded(tmp_path, "", backend="mesh", model=["small"], max_tokens_per_day="9")
    (only,) = settings.backends
    assert (only.kind, only.models, only.max_price, only.is_own) == ("mesh", {"small": "small"}, MAX_PRICE, False)
    assert only.max_tokens_per_day == 9
    assert not settings.serve
    beside = loaded(tmp_path, "[[backend]]\nkind = 'mesh'\nmodels = ['small']\nmax_price = 300\n[[backend]]")
    assert ([one.is_own for one in beside.backends], beside.backends[0].max_price) == ([False, True], 300)
    assert beside.serve


def test_each_table_is_a_backend_with_its_models_limits_and_price(tmp_path: Path) -> None:
    text = f"""
{OLLAMA}name = "mine"
models = {{ small = "llama3.2" }}
price = 200
context = 8192
concurrency = 2
requests_per_minute = 30
max_tokens_per_day = 1000

[[backend]]
kind = "builtin"
seed = 7

[[backend]]
kind = "local"
weights = "w/other.gguf"
"""
    mine, builtin, local = loaded(tmp_path, text).backends
    assert (mine.name, mine.models, mine.price, mine.context) == ("mine", {"small": "llama3.2"}, 200, 8192)
    assert (mine.concurrency, mine.requests_per_minute, mine.max_tokens_per_day) == (2, 30, 1000)
    assert (builtin.name, builtin.seed, builtin.concurrency) == ("builtin", 7, 16)
    assert local.weights == tmp_path / "w" / "other.gguf"


def test_a_flag_for_one_backend_replaces_all_tables(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, f"{OLLAMA}models = ['m']", backend="builtin").backends
    assert only.kind == "builtin"


def test_an_executor_of_several_may_have_backends_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        f"{OLLAMA}models = ['m']\n[[executor]]\nname = 'ann'\n[[executor]]\nname = 'bob'\n"
        "[[executor.backend]]\nkind = 'builtin'\nseed = 3\n[[executor]]\nname = 'cat'\nbackend = 'builtin'\n"
    )
    ann, bob, cat = load_executors({"config": str(file)}, {})
    assert [one.backends[0].kind for one in (ann, bob, cat)] == ["openai", "builtin", "builtin"]
    assert bob.backends[0].seed == 3


def test_a_key_comes_from_the_variable_that_is_named(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, f"{OLLAMA}models = ['m']\napi_key_env = 'MY_KEY'", {"MY_KEY": "secret"}).backends
    assert only.api_key is not None
    assert only.api_key.get_secret_value() == "secret"
    assert "secret" not in repr(only)


def test_openais_own_key_goes_to_openais_own_server_alone(tmp_path: Path) -> None:
    text = f"{OLLAMA}models = ['m']\n[[backend]]\nname = 'paid'\nkind = 'openai'\nmodels = ['n']"
    ollama, paid = loaded(tmp_path, text, {"OPENAI_API_KEY": "k"}).backends
    assert ollama.api_key is None
    assert paid.api_key is not None


def test_a_model_that_the_server_lists_need_not_be_named_where_nobody_mines(tmp_path: Path) -> None:
    (only,) = loaded(tmp_path, f"mine = false\n{OLLAMA}list_models = true").backends
    assert (only.models, only.list_models) == ({}, True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[backend]]\nbase-url = 'x'", "unknown key 'base-url'; did you mean base_url?"),
        ("[[backend]]\ntemperature = 1", "unknown key 'temperature'; known here: api_key, "),
        ("[[backend]]\nkind = 'vllm'", "kind in [[backend]] 1 of "),
        ("[[backend]]\nprice = -1", "price in [[backend]] 1 of "),
        (
            "[[backend]]\n[[backend]]\nname = 'b'\nmodels = {m = 'builtin'}\nlatency = [2, 1]",
            "latency in [[backend]] 2 of ",
        ),
        ("[[backend]]\nthreads = 2", "is for backends of the kind local, this one is builtin"),
        ("[[backend]]\nbase_url = 'http://h/v1'", "is for backends of the kind openai, this one is builtin"),
        ("[[backend]]\nmodels = []", "has no model: name some in models"),
        ("[[backend]]\nkind = 'openai'", "has no model: name some in models, or say list_models = true"),
        ("[[backend]]\nkind = 'mesh'", "the backend mesh: has no model: name some in models"),
        (
            "[[backend]]\nkind = 'mesh'\nmodels = ['m']\nprice = 1",
            "is for backends that serve clients, this one is mesh",
        ),
        ("[[backend]]\nmax_price = 1", "is for backends of the kind mesh, this one is builtin"),
        ("serve = true\n[[backend]]\nkind = 'mesh'\nmodels = ['m']", "a mesh backend has no model to serve"),
        ("[[backend]]\n[[backend]]", "two [[backend]] tables have the name builtin"),
        ("[[backend]]\n[[backend]]\nname = 'other'", "two [[backend]] tables have the model builtin"),
        (f"{OLLAMA}models = ['{'m' * 129}']", "models in [[backend]] 1 of "),
        (f"{OLLAMA}models = ['m']\napi_key_env = 'MY_KEY'", "the variable MY_KEY is not set"),
        (f"{OLLAMA}models = ['m']\napi_key_env = 'MY_KEY'\napi_key = 'k'", "there is an api_key too"),
        (f"{OLLAMA}list_models = true", "names a model to write with"),
        ("model = ['m']\n[[backend]]", "there are [[backend]] tables: write it into one of them"),
        ("backend = []", "backends are written as [[backend]] tables"),
        ("backend = ['builtin']", "backends are written as [[backend]] tables"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_one_line(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, text)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        loaded(tmp_path, f"{OLLAMA}models = ['m']\napi_key = 123456789")
    assert "123456789" not in str(caught.value)


@pytest.mark.parametrize("program", [Program.CLIENT, Program.VALIDATOR])
def test_tables_are_for_executors_alone(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"{OLLAMA}models = ['m']\napi_key_env = 'MISSING'")
    assert load_settings(program, {"config": str(file)}, {}).backends == ()


def test_the_example_configuration_is_one_as_it_stands_and_with_everything_switched_on(tmp_path: Path) -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    ollama, builtin = loaded(tmp_path, text).backends
    assert (ollama.models, ollama.price, builtin.kind) == ({"small": "llama3.2"}, 200, "builtin")
    everything = re.sub(r"(?m)^# (?=\[\[backend\]\]$|[a-z_]+ = )", "", text)
    settings = loaded(tmp_path, everything, {"OPENAI_API_KEY": "k"})
    assert [one.name for one in settings.backends] == ["ollama", "openai", "vllm", "local", "mesh", "builtin"]
    assert settings.http == "127.0.0.1:9464"


def test_the_configuration_that_the_page_about_executors_shows_is_one(tmp_path: Path) -> None:
    page = (EXAMPLE.parent / "docs" / "executor.md").read_text(encoding="utf-8")
    ollama, builtin = loaded(tmp_path, page.partition("```toml\n")[2].partition("```")[0]).backends
    assert (ollama.models, ollama.concurrency, builtin.kind) == ({"small": "llama3.2"}, 2, "builtin")
