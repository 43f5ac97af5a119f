"""The gateway as its users meet it: processes over libp2p, the official SDK and curl in front, a server behind."""

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import trio

from loremesh.testing.fake_openai import Behaviour, FakeOpenAI
from loremesh.testing.node_processes import NodeProcess, StartNode, run_node_process, run_program

PATIENCE = 90
ASK: list[Any] = [{"role": "user", "content": "Who keeps the lamp?"}]
Gateway = tuple[NodeProcess, str]
StartGateway = Callable[..., Awaitable[Gateway]]
SCRIPT = """
from openai import OpenAI
with OpenAI() as client:
    [model] = [one.id for one in client.models.list() if one.id != "builtin"]
    with client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Who?"}], stream=True
    ) as stream:
        for chunk in stream:
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="")
"""


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeOpenAI:
    fake = FakeOpenAI(models=("small",))
    await nursery.start(fake.serve)
    return fake


@pytest.fixture
async def executor(start: StartNode, fake: FakeOpenAI, tmp_path: Path) -> NodeProcess:
    file = tmp_path / "executor.toml"
    backend = f'kind = "openai"\nbase_url = "{fake.base_url}"\nmodels = ["small"]\nconcurrency = 100\nprice = 250\n'
    file.write_text(f"mine = false\n[[backend]]\n{backend}")
    node = await start("ann", "--config", str(file))
    await node.wait_address()
    return node


@pytest.fixture
async def start_gateway(nursery: trio.Nursery, tmp_path: Path, executor: NodeProcess) -> StartGateway:
    async def start_one(*arguments: str, **extra: str) -> Gateway:
        where = ["--bootstrap-nodes", await executor.wait_address(), "--data-dir", str(tmp_path / "gateway")]
        listen = [] if "--listen" in arguments else ["--listen", "127.0.0.1:0"]
        command = ["gateway", *where, *listen, *arguments]
        run = partial(run_node_process, "loremesh", tmp_path / "gateway.log", *command, extra=extra)
        gateway: NodeProcess = await nursery.start(run)
        return gateway, (await gateway.wait("ready", role="gateway"))["base_url"]

    return start_one


def sdk(url: str, key: str = "any") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE)


async def test_a_stock_script_streams_an_answer_that_came_over_libp2p(
    start_gateway: StartGateway, executor: NodeProcess, tmp_path: Path
) -> None:
    _, url = await start_gateway()
    environment = {**os.environ, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any"}
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [sys.executable, "-c", SCRIPT], env=environment, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.stdout.decode().startswith("On evening 1 the keeper climbed the stair"), done.stderr.decode()
    served = await executor.wait("served", model="small")
    kept = await run_program("loremesh", "receipts", "--json", "--data-dir", str(tmp_path / "gateway"))
    [session] = kept.json()["sessions"]
    assert [one["receipt"]["request"] for one in session["receipts"]] == [served["receipt"]]
    (tmp_path / "kept.json").write_text(kept.out)
    assert (await run_program("loremesh", "verify", str(tmp_path / "kept.json"))).code == 0


async def test_the_asynchronous_sdk_gets_answers_streams_and_failures(
    start_gateway: StartGateway, fake: FakeOpenAI, executor: NodeProcess
) -> None:
    _, url = await start_gateway()
    name = (await executor.wait("ready"))["peer_id"]
    async with sdk(url) as client:
        whole = await client.chat.completions.create(model="small", messages=ASK, seed=5, max_tokens=70)
        async with await client.chat.completions.create(
            model="small", messages=ASK, stream=True, stream_options={"include_usage": True}
        ) as stream:
            chunks = [chunk async for chunk in stream]
        with pytest.raises(openai.NotFoundError, match="served: small"):
            await client.chat.completions.create(model="large", messages=ASK)
        fake.otherwise = Behaviour.BAD_REQUEST
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="small", messages=ASK)
        fake.otherwise = Behaviour.FAILED
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="small", messages=ASK)
    assert whole.usage is not None
    extension = (whole.model_extra or {})["loremesh"]
    assert (extension["executors"], len(extension["receipts"]), extension["warnings"]) == ([name], 1, [])
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.startswith("On evening 2 the keeper climbed the stair")
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert (fake.calls[0].body["seed"], fake.calls[0].body["max_tokens"]) == (5, 70)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
async def test_curl_gets_an_answer_and_a_stream(start_gateway: StartGateway) -> None:
    _, url = await start_gateway("--api-key-env", "MY_KEY", MY_KEY="correct-horse")
    answers = []
    for body in ({"model": "small", "messages": ASK}, {"model": "small", "messages": ASK, "stream": True}):
        request = ["-H", "Authorization: Bearer correct-horse", "-H", "Content-Type: application/json"]
        command = ["curl", "-sS", "-N", f"{url}/chat/completions", *request, "-d", json.dumps(body)]
        with trio.fail_after(PATIENCE):
            answers.append((await trio.run_process(command, capture_stdout=True)).stdout.decode())
    assert json.loads(answers[0])["choices"][0]["message"]["content"].startswith("On evening 1")
    assert answers[1].endswith("data: [DONE]\n\n")
    with trio.fail_after(PATIENCE):
        refused = await trio.run_process(["curl", "-sS", f"{url}/models"], capture_stdout=True)
    assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"


async def test_a_client_that_leaves_ends_the_work_of_the_backend(start_gateway: StartGateway, fake: FakeOpenAI) -> None:
    _, url = await start_gateway()
    fake.otherwise = Behaviour.ENDLESS
    async with sdk(url) as client:
        async with await client.chat.completions.create(
            model="small", messages=ASK, stream=True, max_tokens=100_000
        ) as stream:
            await anext(stream)
        with trio.fail_after(PATIENCE):
            await fake.disconnected.wait()
        fake.otherwise = Behaviour.OK
        answer = await client.chat.completions.create(model="small", messages=ASK)
    assert answer.choices[0].message.content


async def test_a_hundred_streams_at_once_come_whole(start_gateway: StartGateway) -> None:
    _, url = await start_gateway()
    texts = []
    async with sdk(url) as client:

        async def one() -> None:
            async with await client.chat.completions.create(model="small", messages=ASK, stream=True) as stream:
                pieces = [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
            texts.append("".join(pieces))

        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(one)
    assert len(texts) == 100
    assert all(text.endswith("and blew out the light. ") for text in texts)


async def test_a_gateway_that_is_told_to_stop_lets_calls_finish_and_ends_well(
    start_gateway: StartGateway, fake: FakeOpenAI
) -> None:
    gateway, url = await start_gateway("--drain", "60")
    fake.otherwise, fake.pause = Behaviour.SLOW, 0.05
    async with (
        sdk(url) as client,
        await client.chat.completions.create(model="small", messages=ASK, stream=True) as stream,
    ):
        await anext(stream)
        gateway.send(signal.SIGTERM)
        text = "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])
    assert text.endswith("blew out the light. ")
    assert await gateway.wait_end() == 0


async def test_a_gateway_does_not_wait_for_a_call_longer_than_it_was_told(
    start_gateway: StartGateway, fake: FakeOpenAI
) -> None:
    gateway, url = await start_gateway("--drain", "0.1")
    fake.otherwise = Behaviour.ENDLESS
    async with (
        sdk(url) as client,
        await client.chat.completions.create(model="small", messages=ASK, stream=True, max_tokens=100_000) as stream,
    ):
        await anext(stream)
        assert await gateway.end(signal.SIGINT) == 0


async def test_a_gateway_says_what_is_wrong_and_how_it_ends(
    start_gateway: StartGateway, executor: NodeProcess, tmp_path: Path
) -> None:
    address = await executor.wait_address()
    (tmp_path / "empty").write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cases = [
            (6, ["--listen", f"127.0.0.1:{port}"], f"cannot serve HTTP at 127.0.0.1:{port}"),
            (2, ["--listen", "0.0.0.0:0"], "set an API key"),
            (2, ["--listen", "8080"], "--listen 8080: should be HOST:PORT"),
            (2, ["--api-key", "a b"], "--api-key: a key is visible ASCII"),
            (2, ["--api-key", "a", "--api-key-file", "b"], "give one of them"),
            (2, ["--api-key-file", str(tmp_path / "none")], "no such file"),
            (2, ["--api-key-file", str(tmp_path / "empty")], "a key is visible ASCII"),
            (2, ["--api-key-env", "NO_SUCH"], "there is no such variable"),
            (3, ["--bootstrap-nodes", "/ip4/127.0.0.1/tcp/1"], "no bootstrap node can be reached"),
        ]
        for code, arguments, said in cases:
            usual = ["--listen", "127.0.0.1:0", "--bootstrap-nodes", address, "--data-dir", str(tmp_path / "d")]
            ended = await run_program("loremesh", "gateway", *usual, *arguments)
            assert (ended.code, said in ended.err) == (code, True), (arguments, ended.err)


async def test_a_gateway_agrees_to_no_more_than_it_was_told_and_waits_no_longer(
    start_gateway: StartGateway, fake: FakeOpenAI
) -> None:
    _, url = await start_gateway("--max-price", "249")
    async with sdk(url) as client:
        assert (await client.models.list()).data == []
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model="small", messages=ASK)
    assert (refused.value.status_code, refused.value.code) == (503, "too_expensive")
    assert fake.calls == []
    fake.otherwise = Behaviour.HANG
    _, url = await start_gateway("--max-price", "250", "--timeout", "1")
    async with sdk(url) as client:
        assert [model.id for model in (await client.models.list()).data] == ["small"]
        with pytest.raises(openai.InternalServerError) as late:
            await client.chat.completions.create(model="small", messages=ASK)
    assert (late.value.status_code, late.value.code) == (504, "deadline_passed")


async def test_with_a_key_it_may_listen_anywhere_and_a_key_on_the_command_line_is_warned_about(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway, url = await start_gateway("--listen", "0.0.0.0:0", "--api-key", "correct-horse")
    assert gateway.log().count("prefer --api-key-file") == 1
    local = url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - as it was told to listen
    async with sdk(local, "wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    async with sdk(local, "correct-horse") as client:
        assert [model.id for model in (await client.models.list()).data] == ["small"]
    assert "correct-horse" not in gateway.log()
