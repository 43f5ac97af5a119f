"""Several executors in one process: what each `[[executor]]` table of a file becomes."""

from pathlib import Path

import pytest

from loremesh.config import load_executors
from loremesh.errors import UsageError

TWO = """
data_dir = "data"
work_share = 0.1

[[executor]]
name = "ann"
model = ["small"]
backend = "openai"

[[executor]]
name = "bob"
work_share = 0.9
data_dir = "elsewhere"
"""


def flags(tmp_path: Path, text: str) -> dict[str, object]:
    """Write a configuration file and give the flag that names it."""
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {"config": str(file)}


def test_without_tables_there_is_one_executor() -> None:
    (only,) = load_executors({"work_share": "0.5"}, {})
    assert (only.name, only.work_share) == ("executor", 0.5)


def test_a_table_overrides_the_top_of_its_file_for_its_executor_only(tmp_path: Path) -> None:
    ann, bob = load_executors(flags(tmp_path, TWO), {})
    assert (ann.name, ann.backend, ann.work_share) == ("ann", "openai", 0.1)
    assert (bob.name, bob.backend, bob.work_share) == ("bob", "builtin", 0.9)


def test_each_executor_has_a_folder_of_its_own(tmp_path: Path) -> None:
    ann, bob = load_executors(flags(tmp_path, TWO), {})
    assert ann.data_dir == tmp_path / "data" / "ann"
    assert bob.data_dir == tmp_path / "elsewhere"
    ann, bob = load_executors({**flags(tmp_path, TWO), "data_dir": "given"}, {})
    assert (ann.data_dir, bob.data_dir) == (Path("given/ann"), Path("given/bob"))


def test_flags_and_the_environment_win_over_tables(tmp_path: Path) -> None:
    ann, bob = load_executors({**flags(tmp_path, TWO), "work_share": "0.4"}, {"LOREMESH_DRAIN": "9"})
    assert (ann.work_share, bob.work_share, ann.drain, bob.drain) == (0.4, 0.4, 9, 9)


def test_executors_without_a_name_are_numbered(tmp_path: Path) -> None:
    names = [one.name for one in load_executors(flags(tmp_path, "[[executor]]\n[[executor]]"), {})]
    assert names == ["executor-1", "executor-2"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("key_file = 'a.key'\n[[executor]]\n[[executor]]", "give key_file in each table"),
        ("[[executor]]\nkey_file = 'a.key'\n[[executor]]\nkey_file = 'a.key'", "both use"),
        ("[[executor]]\nname = 'ann'\n[[executor]]\nname = 'ann'", "both use ann"),
        ("listen_address = '/ip4/0.0.0.0/tcp/4001'\n[[executor]]\n[[executor]]", "both use /ip4/0.0.0.0/tcp/4001"),
        ("[[executor]]\nname = '../escape'", "name in [[executor]] 1 of"),
        ("[[executor]]\njson = true", "unknown key 'json'"),
        ("name = 'ann'", "unknown key 'name'"),
    ],
)
def test_executors_that_would_get_in_each_others_way_are_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_executors(flags(tmp_path, text), {})
    assert reason in str(caught.value)


def test_a_key_given_on_the_command_line_is_one_nodes(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_executors({**flags(tmp_path, TWO), "private_key": "11" * 32}, {})
    assert str(caught.value).startswith("--private-key: is one node's, and there are 2 [[executor]] tables")


def test_executors_may_share_an_address_whose_port_is_free_to_choose(tmp_path: Path) -> None:
    text = "listen_address = '/ip4/127.0.0.1/tcp/0'\n[[executor]]\n[[executor]]"
    ann, bob = load_executors(flags(tmp_path, text), {})
    assert ann.listen_addresses == bob.listen_addresses == ("/ip4/127.0.0.1/tcp/0",)
