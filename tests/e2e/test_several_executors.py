"""Several executors in one process, each with a configuration, a directory and a fate of its own."""

import socket
from collections.abc import Callable
from pathlib import Path

import trio

from loremesh.testing.fake_openai import Behaviour, FakeOpenAI
from loremesh.testing.node_processes import NodeProcess, StartNode, ask, run_node_process, run_program

WriteGenesis = Callable[..., Path]


async def start_all(nursery: trio.Nursery, tmp_path: Path, config: str) -> NodeProcess:
    file = tmp_path / "executors.toml"
    file.write_text(config, encoding="utf-8")
    log = tmp_path / "executors.log"
    node: NodeProcess = await nursery.start(run_node_process, "loremesh-executor", log, "--config", str(file))
    return node


async def test_executors_of_one_file_race_and_one_that_fails_stops_no_other(
    start: StartNode, write_genesis: WriteGenesis, tmp_path: Path, nursery: trio.Nursery
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    address = await validator.wait_address()
    fake = FakeOpenAI(otherwise=Behaviour.UNAUTHORISED)
    base_url = await nursery.start(fake.serve)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        executors = await start_all(
            nursery,
            tmp_path,
            f"""
bootstrap_nodes = ["{address}"]
data_dir = "together"
listen_address = ["/ip4/127.0.0.1/tcp/0"]
latency = [0.1, 0.5]

[[executor]]
name = "ann"

[[executor]]
name = "bob"

[[executor]]
name = "broken"
backend = "openai"
base_url = "{base_url}"
model = ["fake"]

[[executor]]
name = "late"
listen_address = ["/ip4/127.0.0.1/tcp/{port}"]
""",
        )
        for name in ("ann", "bob", "broken"):
            await executors.wait("ready", node=name)
        for name in ("ann", "bob"):
            peer_id = executors.told("ready", node=name)[0]["peer_id"]
            await validator.wait("head", producer=peer_id)
        await executors.wait("head", node="broken", min_height=3)
    assert not executors.told("ready", node="late")
    assert "one of the nodes ended, the others go on" in executors.log()
    assert str(port) in executors.log()
    assert "Traceback" not in executors.log()
    assert (tmp_path / "together" / "ann" / "key").stat().st_mode & 0o777 == 0o600
    canon = await ask("canon", address)
    assert {block["model"] for block in canon["blocks"]} == {"builtin"}
    assert await executors.end() == 0


async def test_when_every_executor_of_a_file_fails_the_program_says_why(tmp_path: Path) -> None:
    file = tmp_path / "executors.toml"
    file.write_text('data_dir = "together"\n[[executor]]\nname = "ann"\n[[executor]]\nname = "bob"\n', encoding="utf-8")
    ended = await run_program("loremesh-executor", "--no-serve", "--config", str(file))
    assert ended.code == 2
    assert "no story to write" in ended.err
    assert "Traceback" not in ended.err
