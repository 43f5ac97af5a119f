"""The guide for a cloud machine: its unit is one, its commands exist, and those that can run here are run."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import typer.main
from typer.testing import CliRunner

from loremesh.cli import main, validator
from loremesh.config import KEYS, Program, load_settings

PATIENCE = 120
SNIPPET = re.compile(r"<!-- (run|root|elsewhere) -->\n```sh\n(.*?)```", re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
MUST_BE_SET = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "StateDirectory": "loremesh",
    "StateDirectoryMode": "0700",
    "Restart": "on-failure",
    "ExecReload": "/bin/kill -HUP $MAINPID",
    "CapabilityBoundingSet": "",
    "User": "loremesh",
}


@pytest.fixture
def checkout(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath


@pytest.fixture
def guide(checkout: Path) -> str:
    return (checkout / "docs" / "deploy-validator.md").read_text(encoding="utf-8")


@pytest.fixture
def unit_file(checkout: Path) -> Path:
    return checkout / "examples" / "systemd" / "loremesh-validator.service"


@pytest.fixture
def unit(unit_file: Path) -> dict[str, list[str]]:
    """The settings of the unit; those that may be repeated have several values."""
    settings = dict[str, list[str]]()
    for line in unit_file.read_text(encoding="utf-8").splitlines():
        if re.match(r"[A-Za-z]+=", line):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def test_the_unit_is_hardened_and_can_stop_and_start_again(unit: dict[str, list[str]]) -> None:
    assert {key: unit.get(key) for key in MUST_BE_SET} == {key: [value] for key, value in MUST_BE_SET.items()}
    assert int(unit["LimitNOFILE"][0]) >= 4096
    assert int(unit["TimeoutStopSec"][0].removesuffix("s")) > 3
    assert "2" in unit["RestartPreventExitStatus"][0].split()


def test_the_flags_of_the_unit_are_flags_of_the_program(unit: dict[str, list[str]]) -> None:
    (command,) = unit["ExecStart"]
    program, *arguments = shlex.split(command)
    assert program == "/opt/loremesh/.venv/bin/loremesh-validator"
    command_line = typer.main.get_command(validator.app)
    command_line.make_context("loremesh-validator", arguments)  # raises on what it does not know


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_takes_the_unit_as_it_stands(unit_file: Path, tmp_path: Path) -> None:
    # The program is not installed where the unit will find it, so another that is stands in for it.
    text = unit_file.read_text(encoding="utf-8").replace("/opt/loremesh/.venv/bin/loremesh-validator", sys.executable)
    copy = tmp_path / unit_file.name
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def environment_text(checkout: Path) -> str:
    return (checkout / "examples" / "systemd" / "validator.env").read_text(encoding="utf-8")


def environment_of(checkout: Path) -> dict[str, str]:
    """What validator.env sets, the lines that are commented out too."""
    return dict(re.findall(r"^#?(LOREMESH_\w+)=(.*)$", environment_text(checkout), re.MULTILINE))


def test_every_variable_of_the_unit_and_the_guide_is_one(
    checkout: Path, guide: str, unit: dict[str, list[str]]
) -> None:
    known = {f"LOREMESH_{key.upper()}" for key in KEYS}
    named = {*environment_of(checkout), *re.findall(r"LOREMESH_[A-Z_]+", guide)}
    named |= {setting.partition("=")[0] for setting in unit["Environment"]}
    assert len(named) >= 5
    assert named <= known
    settings = load_settings(Program.VALIDATOR, {}, environment_of(checkout))
    assert settings.announce_addresses == ("/dns4/lore.example.org/tcp/4001",)


def test_every_command_of_the_guide_says_whether_it_is_run(guide: str) -> None:
    assert guide.count("```sh\n") == len(SNIPPET.findall(guide))
    assert {kind for kind, _ in SNIPPET.findall(guide)} == {"run", "root", "elsewhere"}


@pytest.mark.parametrize("kind", ["root", "elsewhere"])
def test_what_cannot_be_run_here_is_well_formed_and_names_what_there_is(kind: str, guide: str, checkout: Path) -> None:
    for body in (body for found, body in SNIPPET.findall(guide) if found == kind):
        subprocess.run(["sh", "-n", "-c", body], check=True, timeout=60)
        for path in re.findall(r"/opt/loremesh/(examples/\S+|packages|bin)", body):
            assert (checkout / path).exists(), path
        for line in body.splitlines():
            if found := re.search(r"loremesh (doctor|peers|key show)\b(.*)", line):
                help_ = CliRunner().invoke(main.app, [*found[1].split(), "--help"], env={"COLUMNS": "200"}).output
                assert all(flag in help_ for flag in FLAG.findall(found[2])), line


def test_the_alarms_ask_for_figures_that_there_are(guide: str, checkout: Path) -> None:
    page = (checkout / "docs" / "metrics.md").read_text(encoding="utf-8")
    alarms = re.findall(r"expr: (.+)", guide)
    assert len(alarms) >= 8
    named = {name for alarm in alarms for name in re.findall(r"(?:loremesh|process)_\w+", alarm)}
    assert not {name for name in named if f"`{name}`" not in page}
    assert re.findall(r"- alert: (\w+)", guide) == list(dict.fromkeys(re.findall(r"- alert: (\w+)", guide)))


@dataclass
class Machine:
    """A folder that looks, to the guide's commands, like the machine it speaks of."""

    root: Path
    ports: dict[str, str]

    def adapted(self, text: str) -> str:
        text = text.replace("sudo -u loremesh ", "").replace("sudo ", "")
        text = re.sub(r"/(opt|etc|var/lib)/loremesh", rf"{self.root}/\1/loremesh", text)
        for written, free in self.ports.items():
            text = text.replace(written, free)
        return text

    def run(self, body: str) -> str:
        """Run commands to their end; give what they printed."""
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", self.adapted(body)],
            env={**os.environ, "no_proxy": "*"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{body}\n{done.stdout}{done.stderr}"
        return done.stdout


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    for folder in ("opt/loremesh", "etc/loremesh", "var/lib/loremesh"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "var/lib/loremesh").chmod(0o700)
    (tmp_path / "opt/loremesh/.venv").symlink_to(sys.prefix)
    return Machine(tmp_path, {"127.0.0.1:9464": f"127.0.0.1:{free_port()}", "tcp/4001": f"tcp/{free_port()}"})


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide installs curl, this machine has none")
async def test_the_guide_leads_to_a_validator_that_is_watched_and_backed_up(
    guide: str, checkout: Path, unit: dict[str, list[str]], machine: Machine
) -> None:
    begin, *rest = [body for kind, body in SNIPPET.findall(guide) if kind == "run"]
    assert "# Story " in machine.run(begin)
    environment = dict(setting.split("=", 1) for setting in unit["Environment"])
    environment |= dict(re.findall(r"^(LOREMESH_\w+)=(.*)$", environment_text(checkout), re.MULTILINE))
    adapted = {name: machine.adapted(value) for name, value in environment.items()}
    # The default is every address of the machine; a test listens on loopback.
    adapted["LOREMESH_LISTEN_ADDRESS"] = machine.adapted("/ip4/127.0.0.1/tcp/4001")
    command = machine.adapted(unit["ExecStart"][0]).replace("${STATE_DIRECTORY}", f"{machine.root}/var/lib/loremesh")
    process = await trio.lowlevel.open_process(
        shlex.split(command), env={**os.environ, **adapted}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said = [bytearray(), bytearray()]

    async def listen(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
        async for piece in stream:
            into += piece

    try:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                assert process.stdout is not None
                assert process.stderr is not None
                nursery.start_soon(listen, process.stdout, said[0])
                nursery.start_soon(listen, process.stderr, said[1])
                printed = [await trio.to_thread.run_sync(machine.run, body) for body in rest]
                process.send_signal(signal.SIGHUP)
                await trio.to_thread.run_sync(machine.run, rest[0])  # it lives on, and has read the list
                process.send_signal(signal.SIGTERM)
                assert await process.wait() == 0, said
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
    ready = said[0].decode()
    assert '"event": "ready"' in ready
    assert "lore.example.org" in ready
    assert "all is well" in printed[0]
    peer_id = re.findall(r"16Uiu2\w+", ready)[0]
    assert peer_id in printed[0], "key show names the node that runs"
    assert "loremesh_ready 1.0" in "".join(printed)
    assert "deny file is not used" not in said[1].decode()
