"""Every example runs as its first lines say, and ends by itself; every configuration loads."""

import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from loremesh.config import Program, Settings, load_executors, load_settings
from loremesh.protocol.genesis import Genesis, genesis_to_toml
from loremesh.roles.node import VALIDATOR, Node, run_node
from loremesh.testing.bad_blocks import BAD_BLOCKS
from loremesh.testing.bad_messages import BAD_MESSAGES
from loremesh.testing.builders import ANN, BOB, block_on, parent_of, small_genesis

PATIENCE = 90
CONFIGS = ["validator", "executor-ollama", "executor-openai", "several-executors"]
Example = Callable[..., Awaitable[str]]


@pytest.fixture
def example(pytestconfig: pytest.Config) -> Example:
    """Run an example; give what it printed. It must succeed, and say nothing on stderr."""

    async def run(name: str, *arguments: str) -> str:
        with trio.fail_after(PATIENCE):
            ended = await trio.run_process(
                [sys.executable, str(pytestconfig.rootpath / "examples" / name), *arguments],
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        said = ended.stdout.decode()
        assert ended.returncode == 0, said
        return said

    return run


async def test_a_story_is_verified_with_no_network(example: Example) -> None:
    said = await example("verify_offline.py")
    assert "6 blocks verified" in said
    assert said.endswith("one word changed in block 3: refused, content does not match its root\n")


async def test_two_embedded_nodes_write_one_story(example: Example) -> None:
    said = await example("embed_node.py")
    assert [line.split(" ")[0] for line in said.splitlines()[-3:]] == ["1", "2", "3"]
    assert all(" won by " in line for line in said.splitlines()[-3:])


async def test_a_backend_of_ones_own_writes(example: Example) -> None:
    said = await example("own_backend.py")
    assert said.count("haiku-dice") == 3


async def test_a_malicious_miner_is_refused_in_everything(example: Example) -> None:
    said = await example("malicious_miner.py")
    last = re.fullmatch(r"(\d+) lies refused, (\d+) names shut out; the node goes on", said.splitlines()[-1])
    assert last is not None, said
    assert int(last[1]) >= len(BAD_BLOCKS) + len(BAD_MESSAGES)
    assert int(last[2]) > 0
    assert "came back" not in said


async def test_a_canon_is_read_by_a_program_of_ones_own(
    example: Example, nursery: trio.Nursery, tmp_path: Path
) -> None:
    genesis = small_genesis()
    node = await start_validator(nursery, tmp_path, genesis)
    story = node.services.story
    assert story is not None
    for author in (ANN, BOB):
        await story.chain.submit(block_on(genesis, parent_of(story.chain.store), author), None)
    said = await example("read_canon.py", node.network.addresses()[0])
    assert said.startswith("Lanterns: 2 blocks from ")
    assert said.count("At dusk the keeper wrote") == 2


async def test_two_halves_of_a_simulated_network_end_with_one_head(example: Example) -> None:
    said = await example("simulate.py", "--nodes", "10", "--miners", "5")
    assert [line.split()[-1] for line in said.splitlines()[1:3]] == ["partition", "heal"]
    assert "all agree on one head at height " in said
    assert "digest " in said.splitlines()[-1]


async def start_validator(nursery: trio.Nursery, directory: Path, genesis: Genesis) -> Node:
    (directory / "genesis.toml").write_text(genesis_to_toml(genesis), encoding="utf-8")
    flags = {
        "data_dir": str(directory),
        "genesis": str(directory / "genesis.toml"),
        "listen_address": "/ip4/127.0.0.1/tcp/0",
    }

    async def run(task_status: trio.TaskStatus[Node]) -> None:
        settings = load_settings(Program.VALIDATOR, flags, {})
        await run_node(settings, VALIDATOR, lambda _: None, task_status=task_status)

    node: Node = await nursery.start(run)
    return node


def config(pytestconfig: pytest.Config, name: str) -> dict[str, object]:
    return {"config": str(pytestconfig.rootpath / "examples" / "configs" / f"{name}.toml")}


def test_every_configuration_is_tested(pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.rootpath / "examples" / "configs"
    assert {path.stem for path in folder.glob("*.toml")} == set(CONFIGS)


def test_the_validators_configuration_loads(pytestconfig: pytest.Config) -> None:
    settings = load_settings(Program.VALIDATOR, config(pytestconfig, "validator"), {})
    assert settings.listen_addresses == ("/ip4/0.0.0.0/tcp/4001",)
    assert settings.genesis is not None


@pytest.mark.parametrize("name", ["executor-ollama", "executor-openai"])
def test_an_executors_configuration_loads(name: str, pytestconfig: pytest.Config) -> None:
    (settings,) = load_executors(config(pytestconfig, name), {"OPENAI_API_KEY": "key"})
    assert settings.backend == "openai"
    assert settings.models or settings.model_aliases


def test_the_configuration_of_several_executors_loads(pytestconfig: pytest.Config) -> None:
    executors: tuple[Settings, ...] = load_executors(config(pytestconfig, "several-executors"), {})
    assert [one.name for one in executors] == ["ann", "bob", "cat"]
    assert [one.mine for one in executors] == [True, True, False]
    assert len({one.data_dir for one in executors}) == 3


def test_the_index_of_examples_is_complete(pytestconfig: pytest.Config) -> None:
    folder = pytestconfig.rootpath / "examples"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in folder.glob("*.py") if f"`{path.name}`" not in index]
