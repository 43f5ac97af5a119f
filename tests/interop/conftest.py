"""js-libp2p nodes, as npm has them, in processes of their own."""

import json
import subprocess
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio

from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.testing.loopback import PATIENCE, make_node

JS = Path(__file__).parents[1] / "js"


class JsError(Exception):
    """What a command to a js node came to."""


class JsNode:
    """Talks to one `tests/js/node.js`."""

    def __init__(self, program: str, options: dict[str, Any]) -> None:
        self.peer_id = ""
        self.addresses: list[str] = []
        self._command = [program, str(JS / "node.js"), json.dumps(options)]
        self._ids = count()
        self._answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._heard, self.gossip = trio.open_memory_channel[dict[str, Any]](1000)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        process = await trio.lowlevel.open_process(self._command, stdin=PIPE, stdout=PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        unread = b""
        try:
            async for piece in process.stdout:
                *lines, unread = (unread + piece).split(b"\n")
                for line in map(json.loads, lines):
                    await self._take(line, task_status)
            pytest.fail(f"the js node ended by itself: exit code {await process.wait()}")
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.stdin.aclose()
                await process.stdout.aclose()

    async def _take(self, line: dict[str, Any], task_status: trio.TaskStatus[None]) -> None:
        match line:
            case {"id": int(number)}:
                await self._answers.pop(number).send(line)
            case {"event": "ready"}:
                self.peer_id, self.addresses = line["peer"], line["addresses"]
                task_status.started()
            case {"event": "gossip"}:
                self._heard.send_nowait(line)

    async def do(self, name: str, **arguments: object) -> Any:
        number = next(self._ids)
        self._answers[number], answers = trio.open_memory_channel[dict[str, Any]](1)
        line = json.dumps({"id": number, "do": name, **arguments})
        with trio.fail_after(PATIENCE):
            await self._stdin.send_all(line.encode() + b"\n")
            answer = await answers.receive()
        if "error" in answer:
            raise JsError(answer["error"])
        return answer["value"]


StartJs = Callable[..., Awaitable[JsNode]]
StartNode = Callable[..., Awaitable[Behaviour]]


@pytest.fixture(scope="session")
def node_program() -> str:
    """Have js-libp2p installed; without npm there is nothing to meet, and the test fails rather than pass unseen."""
    done = subprocess.run([JS / "set-up.sh"], stdout=PIPE, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.fail("js-libp2p could not be installed: see the standard error above")
    return done.stdout.strip()


@pytest.fixture
async def start_js(node_program: str, nursery: trio.Nursery) -> StartJs:
    """Start a js-libp2p node, which runs until the test ends; keyword arguments go to `tests/js/node.js`."""

    async def start(**options: object) -> JsNode:
        if "quic" in options and not list(JS.glob("node_modules/@chainsafe/libp2p-quic-*")):
            pytest.skip("npm has no build of js-libp2p's QUIC for this machine")
        node = JsNode(node_program, options)
        with trio.fail_after(PATIENCE):
            await nursery.start(node.run)
        return node

    return start


@pytest.fixture
async def start_node(nursery: trio.Nursery) -> StartNode:
    """Start a node of ours, which runs until the test ends."""

    async def start(settings: NetworkSettings | None = None) -> Behaviour:
        node = make_node(settings)
        await nursery.start(node.run)
        return node

    return start
