"""`--http` on the real programs: processes on loopback, asked as a supervisor and Prometheus would ask them."""

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from loremesh.config import Program, load_executors, load_settings
from loremesh.errors import Unreachable, UsageError
from loremesh.protocol.wire import SYNC_PROTOCOL
from loremesh.testing.loopback import make_node
from loremesh.testing.node_processes import NodeProcess, running, write_story

Ask = Callable[..., Awaitable[Any]]
PATIENCE = 90


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def genesis(tmp_path: Path) -> Path:
    return write_story(tmp_path / "genesis.toml")


def validator(directory: Path, *flags: str) -> AbstractAsyncContextManager[NodeProcess]:
    return running("loremesh-validator", "--data-dir", str(directory), *flags)


def changed(peer_id: str, change: str) -> Callable[[dict[str, Any]], bool]:
    return lambda event: (event["peer_id"], event["change"]) == (peer_id, change)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_node_is_unready_while_its_only_peer_is_gone(genesis: Path, tmp_path: Path, ask: Ask) -> None:
    fixed = ("--genesis", str(genesis), "--listen-address", f"/ip4/127.0.0.1/tcp/{free_port()}")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(validator(tmp_path / "first", *fixed))
        there = await first.wait("ready")
        assert there["http"] is None
        bootstrap = ("--bootstrap-nodes", there["addresses"][0])
        second = await stack.enter_async_context(validator(tmp_path / "second", *bootstrap, "--http", "127.0.0.1:0"))
        address = (await second.wait("ready"))["http"]
        await second.wait("peer", changed(there["peer_id"], "joined"))
        for path in ("/healthz", "/readyz"):
            assert (await ask(address, path)).status == 200, path

        first.process.kill()
        await second.wait("peer", changed(there["peer_id"], "dead"))
        answer = await ask(address, "/readyz")
        assert (answer.status, answer.json["reasons"]) == (503, ["no peer is connected"])
        assert (await ask(address, "/healthz")).status == 200

        before = len(second.told("peer"))
        again = await stack.enter_async_context(validator(tmp_path / "first", *fixed))
        await again.wait("ready")
        is_back = changed(there["peer_id"], "joined")
        await second.wait("peer", lambda event: is_back(event) and event in second.told("peer")[before:])
        assert (await ask(address, "/readyz")).status == 200


async def test_what_a_stranger_does_wrong_is_counted(
    genesis: Path, tmp_path: Path, ask: Ask, nursery: trio.Nursery
) -> None:
    async with validator(tmp_path / "node", "--genesis", str(genesis), "--http", "127.0.0.1:0") as node:
        ready = await node.wait("ready")
        before = samples((await ask(ready["http"], "/metrics")).body)
        assert not [name for name, _ in before if name == "loremesh_rejected_total"]
        stranger = make_node()
        await nursery.start(stranger.run)
        peer = await stranger.connect(ready["addresses"][0], PATIENCE)
        for _ in range(2):
            with pytest.raises(Unreachable):  # it hangs up on us
                await stranger.call(peer, SYNC_PROTOCOL, b"no message at all", PATIENCE)
        rejected = await node.wait("rejected", lambda _: len(node.told("rejected")) > 1)
        after = samples((await ask(ready["http"], "/metrics")).body)
        labels = frozenset({("what", rejected["what"]), ("fault", rejected["fault"])})
        assert after["loremesh_rejected_total", labels] == 2
        nothing: frozenset[tuple[str, str]] = frozenset()
        assert after["loremesh_calls_served_total", nothing] >= before["loremesh_calls_served_total", nothing] + 2
        assert after["loremesh_connected_peers", nothing] == 1
        assert after["process_open_fds", nothing] > 0
        nursery.cancel_scope.cancel()


async def test_clients_that_dawdle_stop_neither_the_node_nor_its_end(
    genesis: Path, tmp_path: Path, ask: Ask, nursery: trio.Nursery
) -> None:
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            validator(tmp_path / "node", "--genesis", str(genesis), "--http", "127.0.0.1:0")
        )
        ready = await node.wait("ready")
        host, _, port = ready["http"].partition(":")

        async def dawdle(clients: int) -> list[trio.SocketStream]:
            streams = [await trio.open_tcp_stream(host, int(port)) for _ in range(clients)]
            for stream in streams:
                stack.push_async_callback(trio.aclose_forcefully, stream)
            for stream in streams[:64]:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            return streams

        first, *_ = await dawdle(100)
        stranger = make_node()
        await nursery.start(stranger.run)
        peer = await stranger.connect(ready["addresses"][0], PATIENCE)
        assert await stranger.ping(peer, PATIENCE) < PATIENCE
        with trio.fail_after(PATIENCE):
            assert await first.receive_some() == b""  # cut off
        assert (await first_answer(ask, ready["http"], "/healthz")).status == 200

        await dawdle(30)
        code, _ = await node.stop()
        assert code == 0
        nursery.cancel_scope.cancel()


async def test_a_node_answers_while_it_is_still_looking_for_its_story(tmp_path: Path, ask: Ask) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent, [listener])
        nowhere = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        http = f"127.0.0.1:{free_port()}"
        async with validator(tmp_path / "node", "--bootstrap-nodes", nowhere, "--http", http):
            answer = await first_answer(ask, http, "/readyz")
            assert (answer.status, answer.json["reasons"]) == (503, ["it is starting: its story is not loaded yet"])
        nursery.cancel_scope.cancel()


async def first_answer(ask: Ask, address: str, path: str) -> Any:
    """Ask until somebody answers; a refusal takes no time, so the next try waits a moment."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                return await ask(address, path)
            except OSError:
                await trio.sleep(0.05)


async def ended(*command: str) -> tuple[int, str]:
    """Run a program to its end; give its exit code and what it said on stderr."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(list(command), capture_stdout=True, capture_stderr=True, check=False)
    return done.returncode, done.stderr.decode()


async def test_a_port_in_use_ends_the_node_with_one_line_that_names_it(genesis: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = f"127.0.0.1:{taken.getsockname()[1]}"
        program = str(Path(sys.executable).parent / "loremesh-validator")
        flags = ("--data-dir", str(tmp_path / "node"), "--genesis", str(genesis), "--http", http)
        code, said = await ended(program, *flags)
    assert code == 6
    assert said == f"loremesh-validator: cannot serve HTTP at {http}: Address already in use\n"


async def test_without_the_extra_the_remedy_is_named(genesis: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", str(tmp_path / "node"), "--genesis", str(genesis), "--http", "127.0.0.1:0"]
    script = (
        "import sys; sys.modules['hypercorn'] = None\n"
        "from loremesh_validator.__main__ import main\n"
        f"sys.argv[1:] = {flags!r}; main()"
    )
    code, said = await ended(sys.executable, "-c", script)
    assert code == 2
    assert said.endswith("--http needs hypercorn: pip install 'loremesh[http]'\n")


def test_without_the_flag_no_http_library_is_imported() -> None:
    script = "import sys, loremesh.roles.executor, loremesh.roles.validator; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "loremesh.roles.desk" in done.stdout.split()
    assert not {"hypercorn", "starlette", "loremesh.web.server"} & set(done.stdout.split())


@pytest.mark.parametrize("good", ["127.0.0.1:0", "[::1]:9464", "localhost:65535", "0.0.0.0:80"])
def test_a_host_and_a_port_are_taken(good: str) -> None:
    assert load_settings(Program.VALIDATOR, {"http": good}, {}).http == good


@pytest.mark.parametrize(
    "bad", ["9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "[]:80", "http://x:80/", "h:-1"]
)
def test_anything_else_is_refused_with_what_would_do(bad: str) -> None:
    with pytest.raises(UsageError, match=r"--http: should be HOST:PORT such as 127\.0\.0\.1:9464"):
        load_settings(Program.VALIDATOR, {"http": bad}, {})


def test_two_executors_cannot_answer_at_one_port(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text('http = "127.0.0.1:9464"\n[[executor]]\nname = "ann"\n[[executor]]\nname = "bob"\n')
    with pytest.raises(UsageError, match=r"'ann' and 'bob' both use 127\.0\.0\.1:9464"):
        load_executors({"config": str(file)}, {})
    assert [one.http for one in load_executors({"config": str(file), "http": "127.0.0.1:0"}, {})] == ["127.0.0.1:0"] * 2
