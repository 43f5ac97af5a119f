"""The mesh as its users see it: models that somebody serves now, and answers to chats."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from loremesh.backends.chat import Deliver
from loremesh.config import Settings
from loremesh.errors import UsageError
from loremesh.network.events import PeerDisconnected
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import PeerId
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import MAX_PRICE
from loremesh.roles.joining import Lookout
from loremesh.roles.networking import running_network, wall_clock
from loremesh.roles.node import identity_of
from loremesh.services import discovery, lanes
from loremesh.services.counting import Counting
from loremesh.services.discovery import PATIENCE, SURE, Discovery
from loremesh.services.happenings import Clock
from loremesh.services.lanes import Lanes
from loremesh.services.paying import Journal, Paying
from loremesh.services.router import Answer, Chat, Router
from loremesh.services.sync import Puller
from loremesh.storage.files import make_directory
from loremesh.storage.journal import Journal as JournalFile

_PARTING: Final = 3.0
"""Seconds for bills to be settled when the mesh is left; the others are handed in at the next contact."""
_LOOK_AGAIN: Final = 0.3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked now."""

    id: str
    executors: tuple[PeerId, ...]
    """Who serves it; not empty."""
    context: int
    """Tokens that prompt and answer may have together, at whoever allows most."""
    price: int
    """Gwei per 1,000 tokens of `o200k_base`, at whoever asks least."""


class Network(discovery.Network, lanes.Network, Protocol):
    """What a mesh needs of the network."""


class Mesh:
    """Who can answer, and how to ask them. `entered` makes one.

    Args:
        found: Knows executors.
        router: Asks them.
    """

    def __init__(self, found: Discovery, router: Router) -> None:
        self._discovery = found
        self._router = router

    @property
    def tried(self) -> tuple[str, ...]:
        """Say whom we asked for executors, and what came of it: a line each."""
        return self._discovery.tried

    async def models(self, max_price: int = MAX_PRICE) -> tuple[ServedModel, ...]:
        """Give what is served now, by name; only what executors have said of themselves in the last 90 s.

        Args:
            max_price: Gwei per 1,000 tokens: offers that cost more are left out.
        """
        found, began = self._discovery, trio.current_time()
        if found.looked is None or not found.fresh():
            await found.look()
            while not found.fresh() and trio.current_time() < began + SURE:
                await trio.sleep(_LOOK_AGAIN)
                await found.look()
        cards = [card for card in found.fresh() if card.slots]
        offers = [(offer, card.peer_id) for card in cards for offer in card.models if offer.price <= max_price]
        return tuple(
            ServedModel(
                name,
                tuple(peer for offer, peer in offers if offer.id == name),
                max(offer.context for offer, _ in offers if offer.id == name),
                min(offer.price for offer, _ in offers if offer.id == name),
            )
            for name in sorted({offer.id for offer, _ in offers})
        )

    async def call(self, chat: Chat, deliver: Deliver) -> Answer:
        """Have a chat answered; cancelling gives the call up, on the executor too.

        Args:
            chat: What is asked.
            deliver: Takes each piece of the answer as it comes, whoever it is from; none comes twice.

        Raises:
            UnsupportedModel: There are executors, and none serves this model; `served` names those that are.
            NoExecutor: Nobody could serve it; `tried` says who was asked, and what came of it.
            ExecutorBusy: All who serve it are busy; `retry_after` says for how long, in seconds.
            CallFailed: All who serve it refuse the request itself; `kind` says why.
            DeadlinePassed: The chat's deadline.
        """
        return await self._router.call(chat, deliver)

    async def settle(self, seconds: float) -> None:
        """Wait until bills are settled, at most so long."""
        await self._router.settle(seconds)


@asynccontextmanager
async def entered(
    identity: Identity,
    network: Network,
    journal: Journal,
    clock: Clock,
    *,
    bootstrap: tuple[str, ...] = (),
    patience: float = PATIENCE,
    counting: Counting | None = None,
    keep: bool = False,
    gone: trio.MemoryReceiveChannel[PeerId] | None = None,
    chance: random.Random | None = None,
    parting: float = _PARTING,
) -> AsyncIterator[Mesh]:
    """Be in the mesh with a network that runs already.

    Args:
        identity: The network's.
        network: Somebody else reads its events.
        journal: Keeps bills.
        clock: Unix milliseconds.
        bootstrap: Addresses to dial whenever nobody is connected.
        patience: Seconds to look for an executor before there is none.
        counting: Counts tokens.
        keep: Whether requests and answers are kept in the journal as well.
        gone: Tells whose connection has ended.
        chance: Which strangers get a turn.
        parting: Seconds for bills to be settled at the end; the others are handed in at the next contact.
    """
    counting = counting or Counting()
    found = Discovery(identity, network, clock, bootstrap=bootstrap, patience=patience)
    streams = Lanes(network, found.reach)
    paying = Paying(identity, journal, counting, clock, keep=keep)
    router = Router(
        identity=identity, finder=found, lanes=streams, paying=paying, counting=counting, clock=clock, chance=chance
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(streams.run)
        await nursery.start(router.run)
        nursery.start_soon(found.run)
        if gone is not None:
            nursery.start_soon(_forget, gone, streams)
        try:
            yield Mesh(found, router)
        finally:
            with trio.CancelScope(shield=True):
                await router.settle(parting)
            nursery.cancel_scope.cancel()


async def _forget(gone: trio.MemoryReceiveChannel[PeerId], streams: Lanes) -> None:
    async for peer in gone:
        streams.forget(peer)


@asynccontextmanager
async def joined(
    settings: Settings, identity: Identity | None = None, *, patience: float = PATIENCE, keep: bool = False
) -> AsyncIterator[Mesh]:
    """Join the mesh through the bootstrap nodes, for as long as the block lasts.

    Args:
        settings: `bootstrap_nodes` says whom to ask, `data_dir` where key and journal are; others may use it too.
        identity: Ours; None: the settings'.
        patience: Seconds to look for an executor before there is none.
        keep: Whether requests and answers are kept in the journal as well.

    Raises:
        UsageError: No bootstrap nodes were given.
        Unreachable: None of them answers.
        MachineError: The data directory cannot be used.
    """
    if not settings.bootstrap_nodes:
        raise UsageError("whom to ask? give --bootstrap-nodes MULTIADDR, as a node prints when it is ready")
    make_directory(settings.data_dir)
    identity = identity or identity_of(settings)
    async with (
        JournalFile.open(settings.data_dir) as journal,
        running_network(identity, NetworkSettings(listen_addresses=(), dht_server=False)) as network,
        trio.open_nursery() as nursery,
    ):
        lost, gone = trio.open_memory_channel[PeerId](64)

        async def read_events() -> None:
            async for event in network.events:
                if isinstance(event, PeerDisconnected):
                    await lost.send(event.peer_id)

        nursery.start_soon(read_events)
        lookout = Lookout(identity, network, Puller(network, identity, wall_clock), wall_clock)
        await lookout.connect_any(settings.bootstrap_nodes)
        async with entered(
            identity,
            network,
            journal,
            wall_clock,
            bootstrap=settings.bootstrap_nodes,
            patience=patience,
            keep=keep,
            gone=gone,
        ) as mesh:
            yield mesh
        nursery.cancel_scope.cancel()
