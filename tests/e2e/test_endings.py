"""How programs end when something is wrong: one clear line on stderr, the documented exit code, no traceback."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loremesh.storage.keys import write_key
from loremesh.testing.builders import ANN, BOB
from loremesh.testing.node_processes import Ended, StartNode, run_program

WriteGenesis = Callable[..., Path]
NOBODY = "/ip4/127.0.0.1/tcp/9/p2p/16Uiu2HAmGrbcEGtAbHku6eKUhPbe6nhsHQDdxQYoCTtLpnn8iBV9"
LOOPBACK = ["--listen-address", "/ip4/127.0.0.1/tcp/0"]


def is_one_line(ended: Ended, *words: str) -> None:
    assert ended.out == ""
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert "bug of ours" not in ended.err
    for word in words:
        assert word in ended.err, ended.err


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("loremesh-validator", ["--listen-address", "localhost:4001"], ["--listen-address", "multiaddr"]),
        ("loremesh-validator", ["--listen-address", "/ip4/1.2.3.4/udp/1"], ["--listen-address", "TCP"]),
        ("loremesh-validator", ["--bootstrap-nodes", "nonsense"], ["--bootstrap-nodes"]),
        ("loremesh-validator", ["--story", "05"], ["--story", "64"]),
        ("loremesh-validator", ["--story", "05" * 32], ["--bootstrap-nodes"]),
        ("loremesh-validator", ["--private-key", "12"], ["private key"]),
        ("loremesh-validator", ["--private-key", "00" * 32], ["private key"]),
        ("loremesh-validator", ["--genesis", "{dir}/none.toml"], ["none.toml", "no such file"]),
        ("loremesh-validator", ["--genesis", "{dir}"], ["directory"]),
        ("loremesh-validator", ["--config", "{dir}/none.toml"], ["none.toml"]),
        ("loremesh-validator", ["--max-reorg", "deep"], ["--max-reorg"]),
        ("loremesh-validator", ["--nope"], ["--nope"]),
        ("loremesh-executor", ["--no-serve"], ["--genesis", "--bootstrap-nodes"]),
        ("loremesh-executor", ["--backend", "openai"], ["--model"]),
        ("loremesh-executor", ["--backend", "magic"], ["--backend"]),
        ("loremesh-executor", ["--base-url", "http://127.0.0.1:1/v1"], ["--backend openai"]),
        ("loremesh-executor", ["--work-share", "2"], ["--work-share"]),
        ("loremesh canon", [], ["--bootstrap-nodes"]),
        ("loremesh canon", ["--bootstrap-nodes", "/ip4/127.0.0.1/tcp/0"], ["names no one place"]),
        ("loremesh suggest", ["--bootstrap-nodes", NOBODY], ["TEXT"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else value,
)
async def test_wrong_usage_is_2(program: str, arguments: list[str], words: list[str], tmp_path: Path) -> None:
    name, *command = program.split()
    given = [argument.replace("{dir}", str(tmp_path)) for argument in arguments]
    directory = ["--data-dir", str(tmp_path / "data")]
    ended = await run_program(name, *command, *given, *directory)
    assert ended.code == 2, ended.err
    lines = ended.err.splitlines()
    # A key on the command line is warned about first.
    assert len(lines) == (2 if "--private-key" in arguments else 1), ended.err
    assert "Traceback" not in ended.err
    for word in words:
        assert word in lines[-1]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "title"),
        ("title = 3", "title"),
        ("nonsense", "not TOML"),
        ("title = 'A'\npremise = 'B'\ntime = -1", "time"),
        ("title = 'A'\npremise = 'B'\ntime = 1\ncolour = 'red'", "colour"),
        ("title = 'A'\npremise = 'B'\ntime = 1\n[parameters]\nspacing = 0", "spacing"),
        ('title = "A\\u202E"\npremise = "B"\ntime = 1', "forbidden character"),
        ("a = " + "[" * 10_000, "not TOML"),
    ],
)
async def test_a_bad_genesis_is_2_and_names_what_is_wrong(text: str, word: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, encoding="utf-8")
    where = ["--genesis", str(file), "--data-dir", str(tmp_path / "data"), *LOOPBACK]
    ended = await run_program("loremesh-validator", *where)
    assert ended.code == 2, ended.err
    is_one_line(ended, "bad.toml", word)


async def test_a_key_file_that_others_can_read_is_2(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(ANN.secret.hex())
    file.chmod(0o644)
    ended = await run_program(
        "loremesh-validator", "--key-file", str(file), "--data-dir", str(tmp_path / "data"), *LOOPBACK
    )
    assert ended.code == 2
    is_one_line(ended, str(file))
    assert ANN.secret.hex() not in ended.err


async def test_a_data_directory_stays_with_its_key(start: StartNode, tmp_path: Path) -> None:
    own = tmp_path / "own.key"
    write_key(own, ANN)
    anchor = await start("anchor", "--key-file", str(own), role="validator")
    await anchor.wait("ready")
    anchor.process.terminate()
    assert await anchor.process.wait() == 0
    data = tmp_path / "anchor"
    forgotten = await run_program("loremesh-validator", "--data-dir", str(data), *LOOPBACK)
    assert forgotten.code == 2
    is_one_line(forgotten, str(ANN), "--key-file")
    assert not (data / "key").exists()
    write_key(data / "key", BOB)
    other = await run_program("loremesh-validator", "--data-dir", str(data), *LOOPBACK)
    assert other.code == 2
    is_one_line(other, str(ANN), str(BOB))


async def test_an_executor_waits_for_a_bootstrap_node_that_starts_with_it(
    start: StartNode, write_genesis: WriteGenesis, free_port: int
) -> None:
    address = f"/ip4/127.0.0.1/tcp/{free_port}"
    executor = await start("executor", "--no-mine", "--bootstrap-nodes", address, role="executor")
    await start("late", "--genesis", str(write_genesis()), "--listen-address", address, role="validator")
    await executor.wait("ready")


async def test_a_half_written_key_is_2_and_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text(ANN.secret.hex()[:31])
    ended = await run_program(
        "loremesh-validator", "--key-file", str(file), "--data-dir", str(tmp_path / "data"), *LOOPBACK
    )
    assert ended.code == 2
    is_one_line(ended, str(file))
    assert ANN.secret.hex()[:31] not in ended.err


@pytest.mark.parametrize(
    "program", ["loremesh canon", "loremesh tree", "loremesh peers", "loremesh suggest hello", "loremesh-executor"]
)
async def test_nobody_reachable_is_3(program: str, tmp_path: Path) -> None:
    name, *command = program.split()
    ended = await run_program(name, *command, "--bootstrap-nodes", NOBODY, "--data-dir", str(tmp_path / "data"))
    assert ended.code == 3
    is_one_line(ended, "127.0.0.1/tcp/9")


async def test_a_reader_who_is_led_nowhere_is_3(start: StartNode) -> None:
    anchor = await start("anchor", role="validator")
    ended = await run_program("loremesh", "canon", "--bootstrap-nodes", await anchor.wait_address())
    assert ended.code == 3
    is_one_line(ended, "no story")


async def test_a_suggestion_that_no_block_takes_in_is_5(
    start: StartNode, write_genesis: WriteGenesis, tmp_path: Path
) -> None:
    validator = await start("validator", "--genesis", str(write_genesis(spacing=200)), role="validator")
    ended = await run_program(
        "loremesh",
        "suggest",
        "Somebody writes.",
        "--bootstrap-nodes",
        await validator.wait_address(),
        "--data-dir",
        str(tmp_path / "me"),
    )
    assert ended.code == 5
    is_one_line(ended, "no block took it in")


async def test_a_port_in_use_is_6(taken_port: int, write_genesis: WriteGenesis, tmp_path: Path) -> None:
    ended = await run_program(
        "loremesh-validator",
        "--genesis",
        str(write_genesis()),
        "--listen-address",
        f"/ip4/127.0.0.1/tcp/{taken_port}",
        "--data-dir",
        str(tmp_path / "data"),
    )
    assert ended.code == 6
    is_one_line(ended, str(taken_port), "in use")


async def test_a_data_directory_in_use_is_6(start: StartNode, tmp_path: Path) -> None:
    anchor = await start("anchor", role="validator")
    await anchor.wait("ready")
    ended = await run_program("loremesh-validator", "--data-dir", str(tmp_path / "anchor"), *LOOPBACK)
    assert ended.code == 6
    is_one_line(ended, str(tmp_path / "anchor"), "in use", str(anchor.process.pid))


async def test_a_data_directory_that_is_a_file_is_6(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    ended = await run_program("loremesh-validator", "--data-dir", str(tmp_path / "data"), *LOOPBACK)
    assert ended.code == 6
    is_one_line(ended, str(tmp_path / "data"))


async def test_a_damaged_database_is_6(start: StartNode, write_genesis: WriteGenesis, tmp_path: Path) -> None:
    validator = await start("validator", "--genesis", str(write_genesis()), role="validator")
    await validator.wait("ready")
    await validator.end()
    [database] = (tmp_path / "validator").glob("*.sqlite")
    database.write_bytes(b"\x00" * 4096)
    ended = await run_program("loremesh-validator", "--data-dir", str(tmp_path / "validator"), *LOOPBACK)
    assert ended.code == 6, ended.err
    is_one_line(ended, str(database))
