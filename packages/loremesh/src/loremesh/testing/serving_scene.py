"""An executor that serves calls with a scripted backend, and clients beside it, on a network in memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Self

import trio

from loremesh.backends.budget import DailyCap
from loremesh.network.events import CallServed
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import MIB, Hash
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import (
    LLM_PROTOCOL,
    LlmError,
    LlmRequest,
)
from loremesh.services.call_terms import Offered
from loremesh.services.counting import Counting
from loremesh.services.llm_server import LlmServer
from loremesh.services.slots import Slots
from loremesh.testing.caller import Caller
from loremesh.testing.calls import CLIENT, EXECUTOR, PRICE, count_words
from loremesh.testing.happened import Happened
from loremesh.testing.memory_journal import MemoryJournal
from loremesh.testing.memory_network import MemoryNetwork
from loremesh.testing.memory_node import MemoryNode
from loremesh.testing.scripted_chat import ScriptedChat
from loremesh.testing.virtual_time import virtual_clock

MODEL: Final = "small-model"


@dataclass(slots=True)
class Scene:
    """One executor with a scripted backend, and clients that are connected to it.

    Attributes:
        journal: The executor's; a server that is made later finds it as it was.
        ended: Streams that the executor served to their end, and whose fault that was.
    """

    network: MemoryNetwork
    executor: MemoryNode
    nursery: trio.Nursery
    chat: ScriptedChat = field(default_factory=ScriptedChat)
    journal: MemoryJournal = field(default_factory=MemoryJournal)
    happened: Happened = field(default_factory=Happened)
    clock: Callable[[], int] = field(default_factory=virtual_clock)
    slots: Slots = field(default_factory=lambda: Slots(4))
    cap: DailyCap | None = None
    context: int = 512
    price: int = PRICE
    clients: dict[bytes, MemoryNode] = field(default_factory=dict)
    ended: list[CallServed] = field(default_factory=list)
    more: trio.Event = field(default_factory=trio.Event)

    @classmethod
    async def set(cls, nursery: trio.Nursery) -> Self:
        """Let an executor run in a nursery, and serve."""
        network = MemoryNetwork()
        executor = network.node(EXECUTOR, NetworkSettings())
        await nursery.start(executor.run)
        scene = cls(network, executor, nursery)
        scene.server()
        nursery.start_soon(scene.watch)
        return scene

    def server(self, **changes: int) -> LlmServer:
        """Make a server, as a process makes one when it starts, and let it serve."""
        server = LlmServer(
            identity=EXECUTOR,
            models=lambda: {
                MODEL: Offered(
                    ModelOffer(MODEL, self.context, self.price), "real-name", self.chat, self.slots, self.cap
                )
            },
            journal=self.journal,
            clock=self.clock,
            tell=self.happened,
            counting=Counting(count_words, short=MIB),
            **changes,
        )
        self.executor.serve(LLM_PROTOCOL, server.serve)
        return server

    async def client(self, identity: Identity) -> MemoryNode:
        """Give a client's node, connected to the executor."""
        if identity.peer_id not in self.clients:
            node = self.clients[identity.peer_id] = self.network.node(identity, NetworkSettings())
            await self.nursery.start(node.run)
            await node.connect(self.executor.place)
        return self.clients[identity.peer_id]

    @asynccontextmanager
    async def call(self, identity: Identity = CLIENT, session: Hash | None = None) -> AsyncIterator[Caller]:
        """Open a stream of a client."""
        node = await self.client(identity)
        async with node.open(EXECUTOR.peer_id, LLM_PROTOCOL) as stream:
            caller = Caller(identity, EXECUTOR.peer_id, stream, self.clock)
            caller.session = session or caller.session
            yield caller

    async def watch(self) -> None:
        """Take in what the executor's network tells, until cancelled."""
        async for event in self.executor.events:
            if isinstance(event, CallServed):
                self.ended.append(event)
                self.more.set()
                self.more = trio.Event()

    async def wait_ended(self, count: int = 1) -> list[CallServed]:
        """Wait until so many streams have ended."""
        with trio.fail_after(1000):
            while len(self.ended) < count:
                await self.more.wait()
        return self.ended


async def refusal(caller: Caller, request: LlmRequest | None = None) -> LlmError:
    """Ask, and take the error that comes at once.

    Raises:
        AssertionError: Something else comes.
    """
    await caller.ask(request)
    return await caller.expect(LlmError)
