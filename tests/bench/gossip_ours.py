"""Our nodes for `gossip_graph`: each a `Behaviour`, which is what our programs run, and a reader of its events."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gossip_graph import TOPIC, Check, Heard, Node, main
from loremesh.network.behaviour import Behaviour
from loremesh.network.events import GossipReceived
from loremesh.network.settings import NetworkSettings
from loremesh.protocol.identity import Identity

_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Ours:
    """One of our nodes."""

    behaviour: Behaviour

    def address(self) -> str:
        """Tell where it can be dialled."""
        return self.behaviour.addresses()[0]

    async def connect(self, address: str) -> None:
        """Dial another node."""
        await self.behaviour.connect(address, _PATIENCE)

    async def publish(self, data: bytes) -> None:
        """Send a block to everybody."""
        await self.behaviour.publish(TOPIC, data)


@asynccontextmanager
async def start(secret: bytes, check: Check, heard: Heard) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts."""
    behaviour = Behaviour(Identity.new(secret), NetworkSettings())

    async def read() -> None:
        async for event in behaviour.events:
            if isinstance(event, GossipReceived):
                heard(event.data)

    async with trio.open_nursery() as nursery:
        await nursery.start(behaviour.run)
        await behaviour.subscribe(TOPIC, check)
        nursery.start_soon(read)
        yield Ours(behaviour)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main(start)
