"""An executor whose paragraphs come from an OpenAI-compatible server."""

import sys
from collections.abc import Callable
from pathlib import Path

import trio

from loremesh.protocol.identity import Identity
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI
from loremesh.testing.node_processes import StartNode, ask, children_of


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").removesuffix("\0").split("\0")


async def test_an_executor_writes_what_an_openai_compatible_server_answers(
    start: StartNode, write_genesis: Callable[..., Path], nursery: trio.Nursery
) -> None:
    fake = FakeOpenAI()
    base_url = await nursery.start(fake.serve)
    where = ["--backend", "openai", "--base-url", base_url, "--model", "fake-4"]
    executor = await start("ann", "--genesis", str(write_genesis()), *where, LOREMESH_API_KEY="not a real key")
    await executor.wait("head", min_height=3)
    canon = await ask("canon", await executor.wait_address())
    assert {block["model"] for block in canon["blocks"]} == {"fake-4"}
    assert all(block["text"].startswith("On evening ") for block in canon["blocks"])
    assert fake.calls[0].headers["authorization"] == "Bearer not a real key"
    assert "not a real key" not in executor.log()


async def test_an_executor_outlives_a_server_that_misbehaves(
    start: StartNode, write_genesis: Callable[..., Path], nursery: trio.Nursery
) -> None:
    fake = FakeOpenAI()
    fake.script.extend([Behaviour.FAILED, Behaviour.GARBAGE])
    base_url = await nursery.start(fake.serve)
    where = ["--backend", "openai", "--base-url", base_url, "--model", "fake-4"]
    executor = await start("ann", "--genesis", str(write_genesis()), *where)
    await executor.wait("head", min_height=1)
    assert "the backend failed" in executor.log()
    assert await executor.end() == 0


async def test_an_executor_whose_server_is_not_there_keeps_and_serves_the_story(
    start: StartNode, write_genesis: Callable[..., Path]
) -> None:
    writer = await start("ann", "--genesis", str(write_genesis()))
    where = ["--backend", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "fake-4"]
    silent = await start("bob", "--bootstrap-nodes", await writer.wait_address(), *where)
    await silent.wait("head", min_height=3)
    canon = await ask("canon", await silent.wait_address())
    assert {block["model"] for block in canon["blocks"]} == {"builtin"}


async def test_a_key_nodes_and_a_configuration_with_backends_are_all_an_executor_is_told(
    start: StartNode, write_genesis: Callable[..., Path], tmp_path: Path, nursery: trio.Nursery
) -> None:
    fake = FakeOpenAI()
    base_url = await nursery.start(fake.serve)
    file = tmp_path / "config.toml"
    file.write_text(
        'work_share = 0.35\nannounce_address = ["/dns4/ann.example.org/tcp/4001"]\n'
        f'[[backend]]\nkind = "openai"\nbase_url = "{base_url}"\napi_key_env = "FAKE_KEY"\n'
        'models = { small = "fake-4" }\n[[backend]]\nkind = "builtin"\n'
    )
    anchor = await start("anchor", "--genesis", str(write_genesis()), role="validator")
    told = ["--private-key", "5e" * 32, "--bootstrap-nodes", await anchor.wait_address(), "--config", str(file)]
    executor = await start("ann", *told, FAKE_KEY="not a real key")
    name = str(Identity.from_str("5e" * 32))
    assert (await executor.wait("ready"))["addresses"] == [f"/dns4/ann.example.org/tcp/4001/p2p/{name}"]
    await anchor.wait("head", min_height=2)
    canon = await ask("canon", await anchor.wait_address())
    assert {block["model"] for block in canon["blocks"]} == {"fake-4"}
    assert {block["producer"] for block in canon["blocks"]} == {name}
    assert fake.calls[0].headers["authorization"] == "Bearer not a real key"
    if sys.platform == "linux":
        assert [command_of(child)[-1] for child in children_of(executor.process.pid)] == ["0.35"]
