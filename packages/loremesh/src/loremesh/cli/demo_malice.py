"""The demo's stranger: a process that lies to the validator in every way there is, and a count of what was refused."""

import json
import subprocess
import sys
from collections import Counter, deque
from typing import Any, Final

import trio

from loremesh.cli.demo_nodes import DemoNode
from loremesh.cli.demo_show import Show
from loremesh.errors import DeadlinePassed, ServiceError

_PROGRAM: Final = "loremesh.testing.malicious"
_LONGEST: Final = 300.0
_LAST_REFUSAL: Final = 15.0


class Stranger:
    """Lies to one node, and hears what that node makes of it.

    Args:
        victim: Who is lied to.
        show: Presents lies, refusals and bans.
    """

    def __init__(self, victim: DemoNode, show: Show) -> None:
        self.names: set[str] = set()
        """Peer ids under which it came."""
        self._victim = victim
        self._show = show
        self._due = Counter[tuple[str, str]]()
        """Lies told and not refused yet: by whom, and what for."""
        self._called: dict[tuple[str, str], deque[str]] = {}
        self._told = 0
        self._banned = 0
        self._news = trio.Event()

    async def lie(self) -> None:
        """Tell every lie there is, and wait until the last one is refused.

        Raises:
            DeadlinePassed: A lie was not refused.
            ServiceError: The stranger ended by itself.
        """
        began = self._victim.height
        self._show.stranger_comes()
        with trio.move_on_after(_LONGEST) as deadline:
            while True:
                await self._victim.ready.wait()
                life = self._victim.lives
                try:
                    await self._tell_all()
                except ServiceError:
                    if self._victim.has_lived_on(life):
                        raise
                else:
                    if self._victim.has_lived_on(life):
                        break
                # Who was lied to was killed meanwhile: what it had refused by then is not known.
                self._due.clear()
                self._called.clear()
                self._told = self._banned = 0
        if deadline.cancelled_caught:
            raise DeadlinePassed(f"the stranger was not done within {_LONGEST:.0f} s")
        self._show.stranger_is_done(self._told, self._banned, began, self._victim.height)

    async def _tell_all(self) -> None:
        command = [sys.executable, "-m", _PROGRAM, self._victim.address, "--json"]
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_start, command)
            await self._listen(process)
            code = await process.wait()
            nursery.cancel_scope.cancel()
        if code:
            raise ServiceError(f"the stranger ended with code {code}")
        with trio.move_on_after(_LAST_REFUSAL):
            while self._missing():
                await self._news.wait()
        if missing := self._missing():
            raise DeadlinePassed(f"{len(missing)} kinds of lies were not refused: {', '.join(missing)}")

    async def _listen(self, process: trio.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - opened with a pipe
        unread = b""
        async for piece in process.stdout:
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if said["event"] == "lie":
                    self._told += 1
                    self._due[said["as"], said["fault"]] += 1
                    self._called.setdefault((said["as"], said["fault"]), deque()).append(said["name"])
                    self.names.add(said["as"])

    def take(self, node: DemoNode, event: dict[str, Any]) -> None:
        """Take in what a node of the demo says."""
        if node is not self._victim:
            return
        if event["event"] == "rejected":
            key = event["peer_id"], event["fault"]
            self._due[key] -= 1
            name = self._called[key].popleft() if self._called.get(key) else event["what"]
            self._show.refused(node, event, name)
        elif event["event"] == "banned":
            self._banned += 1
            self._show.shut_out(node, event)
        self._news.set()
        self._news = trio.Event()

    def _missing(self) -> list[str]:
        """Name what should have been refused and was not; a refusal may be heard before its lie."""
        return sorted({fault for (_, fault), count in self._due.items() if count > 0})


async def _start(command: list[str], *, task_status: trio.TaskStatus[trio.Process]) -> None:
    """Run a process; it is gone when this is cancelled."""
    await trio.run_process(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, task_status=task_status
    )
