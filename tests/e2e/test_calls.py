"""Calls as people make them: terminals on one machine, models of any server, and executors that are lost."""

import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.chat import ChatRequest
from loremesh.backends.tokens import load_counter
from loremesh.cli.ask import NOTICE
from loremesh.protocol.llm import ChatMessage
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI
from loremesh.testing.node_processes import (
    PATIENCE,
    Ended,
    NodeProcess,
    StartNode,
    program,
    run_node_process,
    run_program,
)

PROMPT = "Who keeps the lamp?"
TEXT = "On evening 1 the keeper climbed the stair with a lantern in one hand and the map in the other."
LOST = TEXT + " And the stair went on, and on." * 4
StartExecutor = Callable[..., Awaitable[NodeProcess]]


@pytest.fixture
async def start_executor(start: StartNode, tmp_path: Path) -> StartExecutor:
    """Start an executor that is told everything but its nodes by a file."""

    async def start_one(name: str, backends: str, *bootstrap: str) -> NodeProcess:
        file = tmp_path / f"{name}.toml"
        file.write_text(f"mine = false\n{backends}", encoding="utf-8")
        nodes = [word for address in bootstrap for word in ("--bootstrap-nodes", address)]
        executor = await start(name, "--config", str(file), *nodes)
        await executor.wait_address()
        return executor

    return start_one


def openai_table(fake: FakeOpenAI, models: str, **more: int) -> str:
    """Write the table of a server as Ollama is one."""
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[backend]]\nkind = "openai"\nbase_url = "{fake.base_url}"\nmodels = {models}\n{keys}'


def builtin_table(seed: int, **more: int) -> str:
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[[backend]]\nkind = "builtin"\nseed = {seed}\n{keys}'


async def loremesh(command: str, address: str, home: Path, *arguments: str) -> Ended:
    return await run_program("loremesh", command, "--bootstrap-nodes", address, "--data-dir", str(home), *arguments)


async def served(address: str, home: Path) -> dict[str, list[str]]:
    """Say who serves what, as a client sees it."""
    ended = await loremesh("models", address, home, "--json")
    assert ended.code == 0, ended.err
    return {model["id"]: model["executors"] for model in ended.json()["models"]}


async def test_a_model_of_an_ollama_like_server_answers_and_its_executor_is_forgotten_when_it_dies(
    start: StartNode, start_executor: StartExecutor, nursery: trio.Nursery, tmp_path: Path
) -> None:
    fake = FakeOpenAI(content=TEXT)
    await nursery.start(fake.serve)
    validator = await start("validator", role="validator")
    address = await validator.wait_address()
    executor = await start_executor("ann", openai_table(fake, '{ small = "llama3.2" }'), address)
    home = tmp_path / "home"

    asked = await loremesh("ask", address, home, "--model", "small", "--prompt", PROMPT)
    assert (asked.code, asked.err.strip()) == (0, NOTICE)
    assert asked.out.rstrip() == TEXT
    assert [call.body["model"] for call in fake.calls] == ["llama3.2"]
    assert fake.calls[0].body["messages"] == [{"role": "user", "content": PROMPT}]

    name = (await executor.wait("ready"))["peer_id"]
    assert await served(address, home) == {"small": [name]}
    executor.process.kill()
    await validator.wait("peer", change="dead")
    assert await served(address, home) == {}
    gone = await loremesh("ask", address, home, "--model", "small", "--prompt", PROMPT, "--discovery", "1")
    assert (gone.code, gone.out) == (3, "")
    assert "knows 0 executors" in gone.err


async def test_two_three_and_four_nodes_are_a_mesh(
    start: StartNode, start_executor: StartExecutor, tmp_path: Path
) -> None:
    home = tmp_path / "home"

    async def answer(address: str, model: str) -> str:
        ended = await loremesh("ask", address, home, "--model", model, "--prompt", PROMPT)
        assert ended.code == 0, ended.err
        return ended.out

    ann = await start_executor("ann", builtin_table(1))
    alone = await answer(await ann.wait_address(), "builtin")  # a client and an executor

    validator = await start("validator", "--bootstrap-nodes", await ann.wait_address(), role="validator")
    address = await validator.wait_address()
    assert await answer(address, "builtin") == alone

    bob = await start_executor("bob", builtin_table(2, price=7).replace("seed", 'models = ["other"]\nseed'), address)
    names = [(await node.wait("ready"))["peer_id"] for node in (ann, bob)]
    assert await answer(address, "other") != alone
    assert await answer(address, "builtin") == alone
    assert await served(address, home) == {"builtin": names[:1], "other": names[1:]}


async def test_when_the_serving_executor_is_killed_the_other_carries_the_answer_on_and_both_bills_verify(
    start: StartNode, start_executor: StartExecutor, nursery: trio.Nursery, tmp_path: Path
) -> None:
    fake = FakeOpenAI(otherwise=Behaviour.SLOW, content=LOST, pause=1.0)  # far longer than it takes to kill somebody
    await nursery.start(fake.serve)
    validator = await start("validator", role="validator")
    address = await validator.wait_address()
    first = await start_executor("ann", openai_table(fake, '{ builtin = "small" }'), address)
    # Nobody is known: the far cheaper one is asked first.
    second = await start_executor("bob", builtin_table(7, price=1000), address)
    names = [(await node.wait("ready"))["peer_id"] for node in (first, second)]
    home = tmp_path / "home"
    while len((await served(address, home)).get("builtin", ())) < 2:  # noqa: ASYNC110 - until both cards are there
        await trio.sleep(0.1)

    shown = await stream_and_kill(address, home, first)
    kept = await loremesh_receipts(home)
    partial, whole = [one for name in names for one in receipts_of(kept, name)]
    delivered, rest = partial["answer"], whole["answer"]
    assert delivered
    assert LOST.startswith(delivered.rstrip())
    assert shown == f"{delivered}{rest}\n"
    assert rest == await carried_on(delivered, seed=7)
    assert [one["receipt"]["finish"] for one in (partial, whole)] == ["cut", "stop"]
    count = load_counter()
    assert [one["receipt"]["completion_tokens"] for one in (partial, whole)] == [count(delivered), count(rest)]

    for one in kept["sessions"]:
        assert await verified(tmp_path, json.dumps({"sessions": [one]})) == 0
        digest = one["receipts"][0]["receipt"]["output_digest"]
        other = ("1" if digest[0] == "0" else "0") + digest[1:]
        assert await verified(tmp_path, json.dumps({"sessions": [one]}).replace(digest, other)) == 4


async def stream_and_kill(address: str, home: Path, executor: NodeProcess) -> str:
    """Ask for a stream, and kill an executor as soon as something of its answer is there; give all that was shown."""
    arguments = ["ask", "--model", "builtin", "--prompt", PROMPT, "--stream", "--bootstrap-nodes", address]
    run = partial(trio.lowlevel.open_process, stdout=-1, stderr=-1)
    shown = b""
    with trio.fail_after(PATIENCE):
        client = await run([program("loremesh"), *arguments, "--data-dir", str(home)])
        try:
            assert client.stdout is not None
            async for piece in client.stdout:
                shown += piece
                if executor.process.returncode is None:
                    executor.process.kill()
                    await executor.process.wait()
            assert await client.wait() == 0
        finally:
            if client.returncode is None:
                client.kill()
    return shown.decode()


async def loremesh_receipts(home: Path) -> Any:
    ended = await run_program("loremesh", "receipts", "--json", "--data-dir", str(home))
    assert ended.code == 0, ended.err
    return ended.json()


def receipts_of(kept: Any, executor: str) -> list[Any]:
    return [
        one for session in kept["sessions"] for one in session["receipts"] if one["receipt"]["executor"] == executor
    ]


async def carried_on(begun: str, *, seed: int) -> str:
    """Give what the builtin backend says to an answer that somebody else began."""
    messages = (ChatMessage("user", PROMPT), ChatMessage("assistant", begun))
    pieces: list[str] = []

    async def deliver(piece: str) -> None:
        pieces.append(piece)
        await trio.lowlevel.checkpoint()

    await BuiltinBackend(seed=seed).chat(ChatRequest("builtin", messages, continues=True, max_tokens=1024), deliver)
    return "".join(pieces)


async def verified(folder: Path, export: str) -> int:
    (folder / "export.json").write_text(export, encoding="utf-8")
    return (await run_program("loremesh", "verify", str(folder / "export.json"))).code


async def test_a_gateway_that_nobody_uses_ends_well_at_once(
    start_executor: StartExecutor, nursery: trio.Nursery, tmp_path: Path
) -> None:
    executor = await start_executor("ann", builtin_table(1))
    where = ["--bootstrap-nodes", await executor.wait_address(), "--data-dir", str(tmp_path / "gateway")]
    command = ["gateway", *where, "--listen", "127.0.0.1:0"]
    gateway: NodeProcess = await nursery.start(
        partial(run_node_process, "loremesh", tmp_path / "gateway.log", *command)
    )
    await gateway.wait("ready", role="gateway")
    assert await gateway.end() == 0
    assert "bug" not in gateway.log()
