"""The README's commands, run as they stand: real processes on loopback, with ports that are free instead of its own."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from loremesh.config import load_executors
from loremesh.testing.fake_openai import FakeOpenAI

PATIENCE = 300
BLOCK = re.compile(
    r"(?:<!-- (?P<kind>[a-z ]+)(?:: (?P<name>[^>]+))? -->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL
)
KINDS = {"make", "once", "node", "client", "not run"}
CALLS = "## Ask a model through the mesh\n"


@dataclass(frozen=True)
class Snippet:
    language: str
    kind: str
    name: str
    body: str


def sections(checkout: Path) -> tuple[str, str]:
    """Cut the README in two: all but the section about calls, and that section."""
    before, _, rest = (checkout / "README.md").read_text(encoding="utf-8").partition(CALLS)
    calls, heading, after = rest.partition("\n## ")
    return before + heading + after, calls


def snippets(text: str) -> Iterator[Snippet]:
    for found in BLOCK.finditer(text):
        yield Snippet(found["language"], found["kind"] or "", found["name"] or "", found["body"])


@dataclass
class Terminal:
    """A shell in a fresh folder that looks like the checkout, and the nodes that were started in it."""

    folder: Path
    nursery: trio.Nursery
    ports: dict[str, str]
    nodes: dict[str, trio.Process] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def adapted(self, body: str) -> str:
        for written, free in self.ports.items():
            body = body.replace(written, free)
        return body

    async def run(self, body: str) -> str:
        """Run commands to their end, stopping at the first that fails; give what they printed."""
        ended = await trio.run_process(
            ["sh", "-eu", "-c", self.adapted(body)],
            cwd=self.folder,
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
        said = ended.stdout.decode()
        assert ended.returncode == 0, f"{body}\n{said}"
        return said

    async def start(self, name: str, body: str) -> None:
        """Start a node and wait until it says that it is ready."""
        command = ["sh", "-c", f"exec {self.adapted(body)}"]
        process = await trio.lowlevel.open_process(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self.nodes[name] = process
        self.said[name] = ""
        ready = trio.Event()

        async def listen() -> None:
            assert process.stdout is not None
            async for piece in process.stdout:
                self.said[name] += piece.decode(errors="replace")
                if " is ready" in self.said[name]:
                    ready.set()
            assert ready.is_set(), self.said[name]

        self.nursery.start_soon(listen)
        await ready.wait()

    async def stop(self) -> None:
        for process in self.nodes.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.nodes.items():
            assert await process.wait() == 0, self.said[name]

    def kill(self) -> None:
        for process in self.nodes.values():
            if process.returncode is None:
                process.kill()


@pytest.fixture
def checkout(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.rootpath


@pytest.fixture
def folder(checkout: Path, tmp_path: Path) -> Path:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(checkout / "examples")
    return tmp_path


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


def test_every_shell_snippet_says_how_it_is_tested(checkout: Path) -> None:
    found = [one for text in sections(checkout) for one in snippets(text) if one.language == "sh"]
    assert {one.kind for one in found} == KINDS


def test_the_two_commands_of_the_quickstart_are_targets(checkout: Path) -> None:
    (quickstart,) = [one.body for one in snippets(sections(checkout)[0]) if one.kind == "make"]
    assert quickstart == "make demo\nmake test\n"
    makefile = (checkout / "Makefile").read_text(encoding="utf-8")
    assert all(f"\n{line.partition(' ')[2]}:" in makefile for line in quickstart.splitlines())


def test_the_command_that_costs_money_has_a_configuration_that_loads(checkout: Path) -> None:
    (body,) = [one.body for one in snippets(sections(checkout)[0]) if one.kind == "not run"]
    path = checkout / body.split("--config ")[1].strip()
    assert load_executors({"config": str(path)}, {"OPENAI_API_KEY": "key"})[0].backend == "openai"


async def follow(text: str, terminal: Terminal) -> str:
    """Do what a part of the README says, from top to bottom, and end its nodes; give what was printed."""
    printed = ""
    try:
        with trio.fail_after(PATIENCE):
            for snippet in snippets(text):
                match snippet.language, snippet.kind:
                    case "sh", "node":
                        await terminal.start(snippet.name, snippet.body)
                    case "sh", "once" | "client":
                        printed += await terminal.run(snippet.body)
                    case "python", _:
                        (terminal.folder / "read.py").write_text(terminal.adapted(snippet.body), encoding="utf-8")
                        printed += await terminal.run(".venv/bin/python read.py")
            await terminal.stop()
    finally:
        terminal.kill()
    return printed


async def test_the_commands_of_the_readme_make_a_network_and_read_its_story(
    checkout: Path, folder: Path, nursery: trio.Nursery
) -> None:
    fake = FakeOpenAI()
    await nursery.start(fake.serve)
    ports = {"tcp/4001": f"tcp/{free_port()}", "http://127.0.0.1:11434/v1": fake.base_url}
    terminal = Terminal(folder, nursery, ports)
    printed = await follow(sections(checkout)[0], terminal)
    assert set(terminal.nodes) == {"validator", "ann", "bob", "cat"}
    assert "suggested: transaction" in printed
    assert "is in block" in printed
    assert printed.count("all is well") == 2
    assert "block 1 (" in terminal.said["validator"]


async def test_the_terminals_of_the_readme_ask_models_through_the_mesh(
    checkout: Path, folder: Path, nursery: trio.Nursery
) -> None:
    fake = FakeOpenAI(content="Nobody does. It keeps itself.")
    await nursery.start(fake.serve)
    ports = {
        "tcp/4002": f"tcp/{free_port()}",
        "127.0.0.1:8080": f"127.0.0.1:{free_port()}",
        "http://127.0.0.1:11434/v1": fake.base_url,
    }
    terminal = Terminal(folder, nursery, ports)
    printed = await follow(sections(checkout)[1], terminal)
    assert set(terminal.nodes) == {"anchor", "dan", "gateway"}
    assert printed.count("Nobody does. It keeps itself.") == 1
    assert printed.count("1 receipt: signatures hold and sums add up") == 2
    assert "all of it is right" in printed
    _, _, streamed = printed.partition("all of it is right")
    assert len(streamed.split()) > 20
