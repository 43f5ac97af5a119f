"""A client and scripted executors on a network in memory: what becomes of its calls."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from loremesh.network.settings import NetworkSettings
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.identity import Identity
from loremesh.protocol.journal import EntryKind
from loremesh.roles.mesh import Mesh, entered
from loremesh.services.counting import Counting
from loremesh.services.router import Answer, Chat
from loremesh.testing.builders import ANN, BOB, CAT, DAN
from loremesh.testing.calls import ASKED, PRICE, count_words
from loremesh.testing.memory_journal import MemoryJournal
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.scripted_executor import (
    MODEL,
    Script,
    ScriptedExecutor,
)
from loremesh.testing.virtual_time import virtual_clock

CHAT = Chat(MODEL, ASKED, max_tokens=200)
TEXT = "Nobody keeps the lamp — it keeps itself. 🐉"


class Level(random.Random):
    """Prefers nobody: strangers are asked in the order of their prices."""

    def random(self) -> float:
        """Draw the middle, every time."""
        return 0.5


@dataclass(slots=True)
class CallingScene:
    """A client and the executors that it is connected to."""

    mesh: Mesh
    journal: MemoryJournal
    executors: dict[Identity, ScriptedExecutor]
    delivered: list[str] = field(default_factory=list)

    async def deliver(self, text: str) -> None:
        """Take a piece."""
        self.delivered.append(text)

    async def call(self, chat: Chat = CHAT, **changes: Any) -> Answer:  # noqa: ANN401 - as `replace` takes them
        """Have a chat answered.

        Raises:
            AssertionError: The pieces are not the answer.
            LoremeshError: As `Mesh.call`.
        """
        self.delivered.clear()
        answer = await self.mesh.call(replace(chat, **changes), self.deliver)
        if "".join(self.delivered) != answer.text:
            raise AssertionError("the pieces are not the answer")
        return answer

    async def settled(self) -> None:
        """Wait until all bills are settled."""
        await self.mesh.settle(60)

    def kinds(self) -> list[EntryKind]:
        """Name what the client has written down, in order."""
        return [entry.kind for entry in self.journal.entries]


@asynccontextmanager
async def world(*scripts: list[Script], patience: float = 10, **changes: Any) -> AsyncIterator[CallingScene]:  # noqa: ANN401 - as ScriptedExecutor takes them
    """Start executors, one for each list of scripts; the earlier ones are cheaper and so are asked first."""
    clock, between = virtual_clock(), MemoryNetwork()
    journal = MemoryJournal()
    async with trio.open_nursery() as nursery:
        client = between.node(ANN, NetworkSettings(listen_addresses=(), dht_server=False))
        await nursery.start(client.run)
        executors = {}
        for number, (identity, script) in enumerate(zip((BOB, CAT, DAN), scripts, strict=False)):
            offer = ModelOffer(MODEL, 8192, PRICE + 100 * number)
            executor = ScriptedExecutor(identity, clock, list(script), offer=offer, **changes)
            node = executor.attach(between.node(identity))
            await nursery.start(node.run)
            await client.connect(node.place)
            executors[identity] = executor
        async with entered(
            ANN, client, journal, clock, counting=Counting(count_words), patience=patience, chance=Level()
        ) as mesh:
            yield CallingScene(mesh, journal, executors)
        nursery.cancel_scope.cancel()
