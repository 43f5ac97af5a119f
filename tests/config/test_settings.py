"""Where a setting comes from, and what is said about one that cannot be used."""

from pathlib import Path

import pytest

from loremesh.cli.options import DESCRIPTIONS
from loremesh.config import DEFAULT_MODEL, KEYS, Program, Settings, load_executors, load_settings
from loremesh.errors import UsageError

NODE = "/ip4/127.0.0.1/tcp/4001"
OTHER = "/dns4/example.org/tcp/4002"
PEER = "/p2p/16Uiu2HAkz8naAEX1cAqEzfThgkqBZukgeSzbkFVLzugfCD12fWgX"
SECRET = "5e" * 32


def configured(tmp_path: Path, text: str) -> dict[str, object]:
    """Write a configuration file and give the flag that names it."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {"config": str(file)}


def refusal(flags: dict[str, object], environment: dict[str, str] | None = None) -> str:
    """What an executor says about settings it refuses: always one line."""
    with pytest.raises(UsageError) as caught:
        load_executors(flags, environment or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    flags = configured(tmp_path, "work_share = 0.3\ndrain = 3\nmax_reorg = 3")
    environment = {"LOREMESH_WORK_SHARE": "0.4", "LOREMESH_DRAIN": "4"}
    settings = load_settings(Program.EXECUTOR, {**flags, "work_share": "0.5"}, environment)
    assert (settings.work_share, settings.drain, settings.max_reorg) == (0.5, 4.0, 3)


def test_a_flag_that_was_not_given_decides_nothing(tmp_path: Path) -> None:
    flags = configured(tmp_path, f"mine = false\nlisten_address = {NODE!r}")
    settings = load_settings(Program.EXECUTOR, {**flags, "mine": None, "listen_address": []}, {})
    assert not settings.mine
    assert settings.listen_addresses == (NODE,)


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    flags = configured(tmp_path, "drain = 7")
    assert load_settings(Program.VALIDATOR, {}, {"LOREMESH_CONFIG": str(flags["config"])}).drain == 7


@pytest.mark.parametrize("given", [f"{NODE}{PEER},{OTHER}", f" {NODE}{PEER} , {OTHER},"])
def test_bootstrap_nodes_are_separated_by_commas_wherever_they_stand(given: str, tmp_path: Path) -> None:
    for flags, environment in (
        ({"bootstrap_nodes": given}, {}),
        ({}, {"LOREMESH_BOOTSTRAP_NODES": given}),
        (configured(tmp_path, f"bootstrap_nodes = {given!r}"), {}),
        (configured(tmp_path, f"bootstrap_nodes = ['{NODE}{PEER}', '{OTHER}']"), {}),
    ):
        assert load_settings(Program.CLIENT, flags, environment).bootstrap_nodes == (f"{NODE}{PEER}", OTHER)


def test_a_repeated_flag_gives_several_addresses_and_models() -> None:
    flags = {"listen_address": [NODE, "/ip6/::1/tcp/0"], "model": ["a", "b"]}
    settings = load_settings(Program.EXECUTOR, flags, {})
    assert settings.listen_addresses == (NODE, "/ip6/::1/tcp/0")
    assert settings.models == ("a", "b")


def test_each_program_has_its_own_data_folder_and_listening_address() -> None:
    client, executor, validator = (load_settings(program, {}, {}) for program in Program)
    assert client.listen_addresses == ()
    assert executor.listen_addresses == ("/ip4/0.0.0.0/tcp/0",)
    assert validator.listen_addresses == ("/ip4/0.0.0.0/tcp/4001",)
    assert {one.data_dir.name for one in (client, executor, validator)} == {"client", "executor", "validator"}


def test_paths_in_a_file_are_relative_to_the_file_and_flags_to_where_one_stands(tmp_path: Path) -> None:
    flags = configured(tmp_path, "key_file = 'node.key'\ndata_dir = '~/lore'")
    settings = load_settings(Program.VALIDATOR, {**flags, "genesis": "tale.toml"}, {})
    assert settings.key_file == tmp_path / "node.key"
    assert settings.genesis == Path("tale.toml")
    assert settings.data_dir == Path.home() / "lore"


def test_one_file_serves_all_three_programs(tmp_path: Path) -> None:
    flags = configured(tmp_path, f"backend = 'openai'\nmodel = ['m']\nbootstrap_nodes = '{NODE}'\nmax_reorg = 5")
    assert {load_settings(program, flags, {}).bootstrap_nodes for program in Program} == {(NODE,)}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"work_share": "0"}, "--work-share: should be greater than 0, not '0'"),
        ({"work_share": "1.5"}, "--work-share: should be less than or equal to 1, not '1.5'"),
        ({"work_share": "nan"}, "--work-share: should be a finite number, not 'nan'"),
        ({"drain": "-1"}, "--drain: should be greater than or equal to 0, not '-1'"),
        ({"max_tokens_per_day": "0"}, "--max-tokens-per-day: should be greater than or equal to 1, not '0'"),
        ({"latency": "2,1"}, "--latency: should be MIN,MAX with MIN not above MAX, not '2,1'"),
        ({"latency": "3"}, "--latency: should be MIN,MAX such as 0.5,2, not '3'"),
        ({"work_share": "much"}, "--work-share: should be a valid number, not 'much'"),
        ({"latency": "0,6"}, "--latency: should be less than or equal to 5, not '6'"),
        ({"story": "abc"}, "--story: should be a story id: 64 hexadecimal digits, not 'abc'"),
        ({"backend": "vllm"}, "--backend: should be 'builtin', 'openai', 'local' or 'mesh', not 'vllm'"),
        ({"backend": "openai"}, "--backend: the openai backend needs --model NAME"),
        ({"backend": "mesh"}, "--backend: the mesh backend needs --model NAME"),
        ({"backend": "mesh", "model": ["m"], "serve": True}, "--serve: a mesh backend has no model to serve"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "--base-url: is for the openai backend: add --backend openai"),
        ({"base_url": "localhost:1"}, "--base-url: should be a URL such as http://127.0.0.1:11434/v1"),
        ({"log_level": "loud"}, "--log-level: should be 'debug', 'info', 'warning' or 'error', not 'loud'"),
        ({"listen_address": ["127.0.0.1:4001"]}, "--listen-address: should be a multiaddr such as "),
        ({"listen_address": ["/ip4/1.2.3.4/udp/1"]}, "--listen-address: should name a host and a TCP port"),
        ({"bootstrap_nodes": f"{NODE},/ip4/300.1.1.1/tcp/1"}, "--bootstrap-nodes: should be a multiaddr such as "),
        ({"genesis": "a.toml", "story": "ab" * 32}, "--genesis and --story say the same thing twice"),
        ({"key_file": "a.key", "private_key": SECRET}, "--key-file and --private-key say the same thing twice"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_a_value_that_cannot_be_used_is_refused_with_what_would_do(flags: dict[str, object], reason: str) -> None:
    assert refusal(flags).startswith(reason)


def test_a_udp_port_is_for_quic() -> None:
    address = "/ip4/0.0.0.0/udp/4001/quic-v1"
    assert load_settings(Program.VALIDATOR, {"listen_address": [address]}, {}).listen_addresses == (address,)


@pytest.mark.parametrize("program", [Program.CLIENT, Program.VALIDATOR])
def test_what_only_an_executor_reads_keeps_nobody_else_from_starting(program: Program) -> None:
    environment = {"LOREMESH_BASE_URL": "http://127.0.0.1:1/v1"}
    assert load_settings(program, {}, environment).base_url == "http://127.0.0.1:1/v1"
    with pytest.raises(UsageError):
        load_settings(Program.EXECUTOR, {}, environment)


def test_a_refusal_names_the_variable_or_the_key_and_file_it_is_about(tmp_path: Path) -> None:
    assert refusal({}, {"LOREMESH_WORK_SHARE": "2"}).startswith("LOREMESH_WORK_SHARE: ")
    assert refusal(configured(tmp_path, "work_share = 2")).startswith(f"work_share in {tmp_path / 'config.toml'}: ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workshare = 1", "unknown key 'workshare'; did you mean work_share?"),
        ("work-share = 1", "unknown key 'work-share'; did you mean work_share?"),
        ("zzz = 1", "unknown key 'zzz'; known here: announce_address, "),
        ("[[executor]]\nkeyfile = 'a'", "unknown key 'keyfile'; did you mean key_file?"),
        ("executor = 3", "executors are written as [[executor]] tables"),
        ("drain = ", "is not TOML: "),
    ],
)
def test_a_file_with_an_unknown_key_or_no_toml_is_refused_by_name(text: str, reason: str, tmp_path: Path) -> None:
    said = refusal(configured(tmp_path, text))
    assert reason in said
    assert str(tmp_path / "config.toml") in said


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    assert refusal({"config": str(tmp_path / "none.toml")}) == f"{tmp_path / 'none.toml'}: no such file or directory"
    assert refusal({"config": str(tmp_path)}) == f"{tmp_path}: is a directory"
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert refusal({"config": str(binary)}).startswith(f"{binary}: is not TOML")
    binary.write_bytes(b"#" * (1024 * 1024 + 1))
    assert "at most 1048576 bytes" in refusal({"config": str(binary)})


def test_a_secret_shows_in_no_repr_and_in_no_refusal() -> None:
    settings = load_settings(Program.EXECUTOR, {"private_key": SECRET}, {"LOREMESH_API_KEY": "sk-very-secret"})
    assert settings.private_key is not None
    assert settings.private_key.get_secret_value() == SECRET
    assert SECRET not in repr(settings) + str(settings)
    assert "sk-very-secret" not in repr(settings) + str(settings)
    assert SECRET not in refusal({"private_key": [SECRET]})


def test_the_backends_usual_variable_holds_its_key_unless_ours_does(tmp_path: Path) -> None:
    usual = {"OPENAI_API_KEY": "usual"}
    for flags, environment, expected in (
        ({}, usual, "usual"),
        ({}, {**usual, "LOREMESH_API_KEY": "ours"}, "ours"),
        (configured(tmp_path, "api_key = 'filed'"), usual, "filed"),
    ):
        key = load_settings(Program.EXECUTOR, flags, environment).api_key
        assert key is not None
        assert key.get_secret_value() == expected


def test_the_defaults_that_help_shows_are_the_defaults() -> None:
    fields = {field.alias or name: field for name, field in Settings.model_fields.items()}
    shown = 0
    for key, annotation in DESCRIPTIONS.items():
        option = annotation.__metadata__[0]
        _, marked, default = option.help.partition("[default: ")
        if marked:
            shown += 1
            expected = fields[key].default
            given = {"mine": True, "serve": True}.get(key, default.removesuffix("]"))
            assert str(given) in {str(expected), f"{expected:g}" if isinstance(expected, float) else ""}, key
    assert shown == 8


def test_every_flag_is_a_setting_and_every_setting_but_three_has_a_flag() -> None:
    assert set(DESCRIPTIONS) - set(KEYS) == {"config", "version"}
    assert set(KEYS) - set(DESCRIPTIONS) == {"name", "api_key", "model_aliases"}


def test_a_model_is_named_by_an_alias_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('backend = "openai"\n[model_aliases]\nstory-default = "llama3.2"\n')
    settings = load_settings(Program.EXECUTOR, {"config": str(file)}, {})
    assert settings.model_aliases == {DEFAULT_MODEL: "llama3.2"}
    assert settings.backends[0].models == {"llama3.2": "llama3.2"}
    variable = {"LOREMESH_MODEL_ALIASES": "story-default=phi4, quick=qwen3"}
    settings = load_settings(Program.EXECUTOR, {"backend": "openai"}, variable)
    assert settings.model_aliases == {DEFAULT_MODEL: "phi4", "quick": "qwen3"}


def test_the_openai_backend_without_a_model_or_an_alias_is_refused() -> None:
    with pytest.raises(UsageError, match="needs --model NAME, or an alias story-default"):
        load_settings(Program.EXECUTOR, {"backend": "openai"}, {})
