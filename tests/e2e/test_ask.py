"""Asking the mesh from the command line: real nodes, one address known."""

import json
from pathlib import Path

import pytest
import trio

from loremesh.cli.ask import NOTICE
from loremesh.testing.node_processes import Ended, StartNode, run_program

PROMPT = "Who keeps the lamp?"


async def ask(address: str, directory: Path, *arguments: str, model: str = "builtin") -> Ended:
    where = ("--bootstrap-nodes", address, "--data-dir", str(directory))
    return await run_program("loremesh", "ask", "--model", model, "--prompt", PROMPT, *where, *arguments)


async def test_a_client_that_knows_the_validator_alone_gets_the_answer_of_an_executor(
    start: StartNode, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    validator = await start("validator", role="validator")
    address = await validator.wait_address()
    executor = await start("ann", "--bootstrap-nodes", address)
    await executor.wait_address()

    first = await ask(address, home)
    assert (first.code, first.err.strip()) == (0, NOTICE)
    assert len(first.out.split()) > 20

    async with trio.open_nursery() as nursery:  # two processes, one directory and one name
        nursery.start_soon(_streams_the_same, address, home, first.out)
        nursery.start_soon(_explains_the_same, address, home, first.out)

    served = await run_program("loremesh", "models", "--json", "--bootstrap-nodes", address, "--data-dir", str(home))
    (model,) = served.json()["models"]
    name = (await executor.wait("ready"))["peer_id"]
    assert (model["id"], model["executors"], model["unit"]) == ("builtin", [name], "o200k_base")

    unknown = await ask(address, home, model="large-model")
    assert (unknown.code, unknown.out) == (4, "")
    assert "served: builtin" in unknown.err

    kept = await run_program("loremesh", "receipts", "--json", "--data-dir", str(home))
    assert len(kept.json()["sessions"]) == 3
    (home / "kept.json").write_text(kept.out)
    assert (await run_program("loremesh", "verify", str(home / "kept.json"))).code == 0
    assert [path.stat().st_mode & 0o077 for path in home.iterdir() if path.name in {"key", "journal.sqlite"}] == [0, 0]


async def _streams_the_same(address: str, home: Path, text: str) -> None:
    ended = await ask(address, home, "--stream", "--verbose")
    assert (ended.code, ended.out) == (0, text)
    assert "score" in ended.err
    assert "answered, first piece after" in ended.err
    assert NOTICE not in ended.err


async def _explains_the_same(address: str, home: Path, text: str) -> None:
    ended = await ask(address, home, "--json")
    assert (ended.code, ended.err) == (0, "")
    answer = ended.json()
    assert answer["content"] == text.removesuffix("\n")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 20
    receipt = answer["receipt"]["receipt"]
    assert (receipt["executor"], receipt["model"]) == (answer["executor"], "builtin")
    assert receipt["completion_tokens"] == usage["completion_tokens"]
    (home / "one.json").write_text(json.dumps(answer["receipt"]))
    assert (await run_program("loremesh", "verify", str(home / "one.json"))).code == 0


async def test_where_nobody_serves_anything_the_client_says_whom_it_asked(start: StartNode, tmp_path: Path) -> None:
    validator = await start("validator", role="validator")
    address = await validator.wait_address()
    ended = await ask(address, tmp_path / "home", "--discovery", "12")
    assert (ended.code, ended.out) == (3, "")
    assert f"…{(await validator.wait('ready'))['peer_id'][-8:]}: knows 0 executors" in ended.err
    assert "the DHT" in ended.err
    served = await run_program("loremesh", "models", "--bootstrap-nodes", address, "--data-dir", str(tmp_path / "home"))
    assert served.code == 0
    assert "nobody serves a model now" in served.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--prompt", "x"), 2, "--bootstrap-nodes"),
        (("--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9"), 2, "--prompt"),
        (("--prompt", "x", "--messages", "-", "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9"), 2, "not both"),
        (("--prompt", "x", "--temperature", "9"), 2, "'--temperature': should be less than or equal to 2"),
        (("--prompt", "x", "--max-tokens", "0"), 2, "'--max-tokens': should be greater than or equal to 1"),
        (("--messages", "/nowhere", "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9"), 2, "no such file"),
        (("--prompt", "x", "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9"), 3, "no bootstrap node can be reached"),
    ],
)
async def test_what_a_client_lacks_is_named_on_one_line(
    arguments: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    ended = await run_program("loremesh", "ask", "--model", "m", "--data-dir", str(tmp_path / "home"), *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert ended.err.count("/ip4/127.0.0.1/tcp/9") <= 1


async def test_messages_must_be_a_chat(tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    for text in ("[]", "{}", "nonsense", '[{"role": "user"}]', "[" * 100_000):
        file.write_text(text)
        where = ("--bootstrap-nodes", "/ip4/127.0.0.1/tcp/9", "--data-dir", str(tmp_path / "home"))
        ended = await run_program("loremesh", "ask", "--model", "m", "--messages", str(file), *where)
        assert ended.code == 2, text
