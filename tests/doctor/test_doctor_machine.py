"""What the doctor says of this machine and of a backend, and how it says it."""

import json
import os
import socket
from pathlib import Path

import pytest
import trio

from loremesh.backends.openai import OpenAIBackend
from loremesh.cli import main
from loremesh.cli.doctor_machine import check_backend, check_listening, check_machine
from loremesh.cli.errors import ExitCode, execute
from loremesh.cli.findings import Check
from loremesh.config import Program, Settings, load_settings
from loremesh.errors import BackendGarbage, BackendTimeout
from loremesh.protocol.identity import peer_id_text
from loremesh.storage.keys import write_key
from loremesh.storage.lock import locked, owner_of
from loremesh.testing.builders import ANN
from loremesh.testing.fake_openai import Behaviour, FakeOpenAI


def settings_of(data_dir: Path, **flags: object) -> Settings:
    return load_settings(Program.CLIENT, {"data_dir": str(data_dir), **flags}, {})


def found(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def test_a_machine_fit_for_a_node_passes_and_nothing_is_made_on_it(tmp_path: Path) -> None:
    checks = check_machine(settings_of(tmp_path / "node"))
    assert all(check.ok for check in checks)
    assert not (tmp_path / "node").exists()


def test_a_directory_that_is_there_is_told_from_one_that_will_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("node").mkdir()
    assert found(check_machine(settings_of(Path("node"))), "data directory").detail == "node"
    assert found(check_machine(settings_of(Path("new"))), "data directory").detail == "new (will be made)"


def test_the_key_is_shown_by_its_peer_id_only(tmp_path: Path) -> None:
    write_key(tmp_path / "key", ANN)
    check = found(check_machine(settings_of(tmp_path)), "key")
    assert check.ok
    assert peer_id_text(ANN.peer_id) in check.detail
    assert "0600" in check.detail
    assert ANN.secret.hex() not in check.detail


def test_a_key_that_others_may_read_is_a_setting_to_mend(tmp_path: Path) -> None:
    write_key(tmp_path / "key", ANN)
    (tmp_path / "key").chmod(0o644)
    check = found(check_machine(settings_of(tmp_path)), "key")
    assert (check.ok, check.code) == (False, ExitCode.USAGE)
    assert "chmod 600" in check.detail


def test_the_process_that_holds_the_directory_is_named(tmp_path: Path) -> None:
    assert owner_of(tmp_path / "nowhere") is None
    with locked(tmp_path):
        assert owner_of(tmp_path) == str(os.getpid())
        assert str(os.getpid()) in found(check_machine(settings_of(tmp_path)), "lock").detail
    assert owner_of(tmp_path) is None
    assert "free" in found(check_machine(settings_of(tmp_path)), "lock").detail


def test_a_file_where_the_directory_should_be_is_this_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "node").touch()
    check = found(check_machine(settings_of(tmp_path / "node")), "data directory")
    assert (check.ok, check.code) == (False, ExitCode.MACHINE)


async def test_a_port_that_is_taken_is_named_and_a_free_one_given_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        (check,) = await check_listening((address,))
        assert (check.ok, check.code) == (False, ExitCode.MACHINE)
        assert check.name == f"listen at {address}"
        assert check.remedy
    for _ in range(2):
        (check,) = await check_listening((address,))
        assert check.ok


async def test_an_address_of_another_machine_is_one_to_announce() -> None:
    (check,) = await check_listening(("/ip4/203.0.113.1/tcp/4001",))
    assert (check.ok, check.code) == (False, ExitCode.MACHINE)
    assert "listen at 0.0.0.0, and --announce-address" in check.remedy


async def test_a_udp_port_that_is_taken_is_named_and_a_free_one_given_back() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"/ip4/127.0.0.1/udp/{taken.getsockname()[1]}/quic-v1"
        (check,) = await check_listening((address,))
        assert (check.ok, check.code) == (False, ExitCode.MACHINE)
    for _ in range(2):
        (check,) = await check_listening((address,))
        assert check.ok


@pytest.fixture
async def fake(nursery: trio.Nursery) -> FakeOpenAI:
    fake = FakeOpenAI()
    await nursery.start(fake.serve)
    return fake


async def test_a_backend_is_asked_for_its_models_and_for_no_text(fake: FakeOpenAI, tmp_path: Path) -> None:
    check = await check_backend(settings_of(tmp_path), fake.base_url)
    assert check.ok
    assert "fake" in check.detail
    assert [call.path for call in fake.calls] == ["/v1/models"]


async def test_a_model_that_the_backend_lacks_is_named(fake: FakeOpenAI, tmp_path: Path) -> None:
    check = await check_backend(settings_of(tmp_path, model="llama3.2"), fake.base_url)
    assert (check.ok, check.code) == (False, ExitCode.USAGE)
    assert "llama3.2" in check.remedy


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Behaviour.UNAUTHORISED, ExitCode.USAGE),
        (Behaviour.FAILED, ExitCode.UNREACHABLE),
        (Behaviour.GARBAGE, ExitCode.UNREACHABLE),
        (Behaviour.REFUSE, ExitCode.UNREACHABLE),
    ],
)
async def test_a_backend_that_does_not_answer_well_says_how_to_mend_it(
    behaviour: Behaviour, code: ExitCode, fake: FakeOpenAI, tmp_path: Path
) -> None:
    fake.otherwise = behaviour
    check = await check_backend(settings_of(tmp_path), fake.base_url)
    assert (check.ok, check.code) == (False, code)
    assert check.remedy


async def test_a_backend_url_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    check = await check_backend(settings_of(tmp_path), "localhost:11434")
    assert (check.ok, check.code) == (False, ExitCode.USAGE)


async def test_a_list_of_models_comes_in_time_or_not_at_all(fake: FakeOpenAI) -> None:
    fake.otherwise = Behaviour.HANG
    backend = OpenAIBackend(base_url=fake.base_url, patience=0.2)
    with pytest.raises(BackendTimeout):
        await backend.served_models()
    await backend.aclose()


@pytest.mark.parametrize("answer", ['{"data": null}', '{"data": [1]}', "[]", "x" * (2 << 20)])
async def test_a_list_of_models_that_is_none_is_garbage(answer: str, nursery: trio.Nursery) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(65_536)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\nConnection: close\r\n\r\n"
            try:
                await stream.send_all((head + answer).encode())
            except trio.BrokenResourceError:
                return  # it read as much as it wanted

    listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, serve, 0)
    backend = OpenAIBackend(base_url=f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1")
    with pytest.raises(BackendGarbage):
        await backend.served_models()
    await backend.aclose()


def doctor(*arguments: str) -> int:
    return execute(main.app, "loremesh", ["doctor", *arguments])


def test_a_script_gets_every_check_with_its_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--data-dir", str(tmp_path), "--json", "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/1") == 3
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert all(set(check) == {"name", "ok", "detail", "remedy"} for check in checks)
    assert [check["name"] for check in checks if not check["ok"]] == ["tcp 127.0.0.1:1"]
    assert all(bool(check["remedy"]) is not check["ok"] for check in checks)


def test_the_first_check_that_fails_decides_how_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_key(tmp_path / "key", ANN)
    (tmp_path / "key").chmod(0o640)
    assert doctor("--data-dir", str(tmp_path), "--bootstrap-nodes", "/ip4/127.0.0.1/tcp/1") == ExitCode.USAGE
    said = capsys.readouterr().out
    assert said.endswith("2 of 7 checks failed\n")
    assert said.count("→") == 2


def test_a_healthy_machine_ends_with_nothing_to_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--data-dir", str(tmp_path)) == ExitCode.DONE
    assert capsys.readouterr().out.endswith("all is well\n")
