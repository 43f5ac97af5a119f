"""What a soak does to its nodes: clients all the time, and one trouble after the other."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import trio

from loremesh.testing.node_processes import run_program
from soak_nodes import Nodes, SoakNode

_PAUSE: Final = 3.0
"""Seconds between two clients."""
_SHORT, _LONG = 10.0, 40.0
"""Seconds that a node is frozen: too short to be noticed, and long enough to be taken for dead."""
_CUT: Final = 12.0
_DEAD: Final = 4.0
_STAY: Final = 5.0


@dataclass(slots=True)
class Load:
    """Clients and troubles, and what came of them.

    Args:
        nodes: That suffer it.
        chance: Chooses.
        long: Freeze nodes for so long, too, that the others take them for dead.
    """

    nodes: Nodes
    chance: random.Random
    long: bool
    clients: Counter[str] = field(default_factory=Counter)
    """Commands that did what they were asked."""
    failures: list[str] = field(default_factory=list)
    """What went otherwise than it must."""
    done: Counter[str] = field(default_factory=Counter)
    """Troubles that were got over."""
    now: str = ""
    """What is going on."""
    strangers: set[str] = field(default_factory=set)
    """Peer ids of those who lied."""
    lies: int = 0
    quiet: trio.Lock = field(default_factory=trio.Lock)
    """Held by a client that runs, and by whoever wants none to."""

    @property
    def troubles(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Everything that is done to the nodes, in the order in which it comes round."""
        return {
            "kill": self.kill,
            "late joiner": self.join_late,
            "freeze": self.freeze,
            "partition": self.part,
            "stranger": self.be_lied_to,
        }

    async def ask_all_the_time(self) -> None:
        """Read and suggest, one client after the other, for ever."""
        for number in count():
            wish = ["suggest", f"A lamp is lit for ship {number}.", "--no-wait"]
            reader = ["--data-dir", str(self.nodes.directory / "reader")]
            command = (["canon"], ["peers"], [*wish, *reader], ["tree"])[number % 4]
            where = ["--bootstrap-nodes", self.nodes.addresses(self.chance), "--json"]
            async with self.quiet:
                try:
                    ended = await run_program("loremesh", *command, *where)
                except trio.TooSlowError:
                    self.failures.append(f"loremesh {command[0]} did not end while: {self.now}")
                    continue
            if ended.code == 0:
                self.clients[command[0]] += 1
            else:
                self.failures.append(f"loremesh {command[0]} ended with {ended.code} while {self.now}: {ended.err}")
            await trio.sleep(_PAUSE)

    async def kill(self) -> None:
        """Kill a node without warning, leave it dead for a while, and start it again."""
        victim = self.nodes.all[-1]
        await victim.process.end(signal.SIGKILL)
        await trio.sleep(_DEAD)
        await self.nodes.start(victim)
        await self.nodes.wait_all(self.nodes.height(), [victim])

    async def join_late(self) -> None:
        """Let somebody new join, catch up, stay a little and go: politely, or killed."""
        number = self.done["late joiner"]
        guest = self.nodes.make(f"guest-{number}", "--no-mine")
        height = self.nodes.height()
        await self.nodes.start(guest)
        await self.nodes.wait_all(height, [guest])
        await trio.sleep(_STAY)
        how = (signal.SIGTERM, signal.SIGKILL)[number % 2]
        code = await guest.process.end(how)
        if code != (0 if how is signal.SIGTERM else -signal.SIGKILL):
            self.failures.append(f"a guest ended with {code}: {guest.process.log()[-500:]}")
        lost = {head["hash"] for head in guest.told("head")} - await guest.kept()
        if lost:
            self.failures.append(f"a guest lost {len(lost)} blocks that it had told of")
        shutil.rmtree(guest.directory)

    async def freeze(self) -> None:
        """Stop a node in its tracks, and let it go on."""
        victim = self.nodes.all[-2]
        victim.frozen = True
        victim.process.send(signal.SIGSTOP)
        try:
            await trio.sleep(_LONG if self.long and self.done["freeze"] % 2 else _SHORT)
        finally:
            victim.process.send(signal.SIGCONT)
            victim.frozen = False

    async def part(self) -> None:
        """Cut the network in two until both sides have gone on alone, and mend it."""
        here, there = self.nodes.all[:3], self.nodes.all[3:]
        for side, other in ((here, there), (there, here)):
            for node in side:
                node.deny(other)
        await trio.sleep(_CUT)
        for node in self.nodes.all:
            node.deny([])

    async def be_lied_to(self) -> None:
        """Let a stranger break every rule there is towards the validator."""
        victim: SoakNode = self.nodes.all[0]
        ended = await trio.run_process(
            [sys.executable, "-m", "loremesh.testing.malicious", victim.address, "--json"],
            capture_stdout=True,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        said = [json.loads(line) for line in ended.stdout.splitlines()]
        lies = [one for one in said if one["event"] == "lie"]
        self.strangers |= {one["as"] for one in lies}
        self.lies += len(lies)
        if ended.returncode:
            self.failures.append(f"the stranger ended with {ended.returncode}")
        if any(one["event"] == "shut_out" and one["came_back"] for one in said):
            self.failures.append("a stranger who was shut out came back at once")
