"""The client role: joins for a moment, fetches a story, and believes nothing that it has not recomputed."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import trio

from loremesh.config import Settings
from loremesh.errors import DeadlinePassed, ProtocolError, ServiceError, Unreachable, UsageError
from loremesh.network.behaviour import Behaviour
from loremesh.network.settings import NetworkSettings
from loremesh.primitives import Hash, Height, PeerId
from loremesh.protocol.block import Block
from loremesh.protocol.changes import Accepted
from loremesh.protocol.fork_choice import StateMissing, Store, new_store, on_block, on_replay, on_tick
from loremesh.protocol.genesis import Genesis, story_id
from loremesh.protocol.identity import Identity
from loremesh.protocol.transaction import (
    SUGGEST,
    Suggest,
    Transaction,
    check_transaction,
    sign_transaction,
    transaction_hash,
)
from loremesh.protocol.wire import PeerCard, check_record
from loremesh.roles.joining import Lookout
from loremesh.roles.networking import running_network, wall_clock
from loremesh.services.sync import Puller, pull


class Copy:
    """A client's own copy of a story, in memory; every block in it has passed every rule.

    Args:
        genesis: Checked against the story id by whoever fetched it.
    """

    def __init__(self, genesis: Genesis) -> None:
        self._store = new_store(genesis, wall_clock())
        self._blocks: dict[Hash, Block] = {}

    @property
    def store(self) -> Store:
        """The store as it is now."""
        return self._store

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:
        """Take in blocks, parents first.

        Raises:
            InvalidBlock: One breaks a rule; whatever served it is not to be trusted.
        """
        del sender
        self._store = on_tick(self._store, wall_clock())
        for block in blocks:
            self._take(block)

    def block(self, name: Hash) -> Block:
        """Give a block of the tree, an orphan or a held one."""
        waiting = self._store.orphans.get(name) or self._store.held.get(name)
        return waiting if waiting is not None else self._blocks[name]

    def canon(self) -> list[Block]:
        """Give the canonical blocks, oldest first."""
        heights = range(1, self._store.tip.link.height + 1)
        return [self._blocks[self._store.canon[height]] for height in heights]

    def _take(self, block: Block) -> None:
        while True:
            try:
                self._store = on_block(self._store, block)
            except StateMissing as missing:
                path = tuple(self._blocks[name] for name in missing.path)
                self._store = on_replay(self._store, path)
            else:
                break
        for change in self._store.changes:
            if isinstance(change, Accepted):
                self._blocks[change.hash] = change.block


@dataclass(frozen=True, slots=True)
class Found:
    """A peer somebody listed."""

    card: PeerCard
    addresses: tuple[str, ...]
    """Where somebody who lists it has met it."""
    latency: float | None
    """Seconds there and back; None: it did not answer."""


@dataclass(frozen=True, slots=True)
class Survey:
    """Who is here."""

    peers: tuple[Found, ...]
    tracker: PeerId | None


@dataclass(frozen=True, slots=True)
class Visit:
    """A client among nodes: connected, with nothing fetched yet."""

    identity: Identity
    network: Behaviour
    puller: Puller
    lookout: Lookout
    settings: Settings

    async def fetch_story(self) -> Genesis:
        """Fetch the genesis of the story that the settings name, or of the only one there is.

        Raises:
            UsageError: There are several, and none was named.
            Unreachable: There is none, or nobody reachable keeps it.
        """
        genesis = await self.lookout.find_genesis(self.settings.story)
        if genesis is None:
            raise Unreachable("the bootstrap nodes keep no story, and know nobody who does")
        return genesis

    async def fetch(self, copy: Copy, *, branches: bool = False) -> PeerId:
        """Bring a copy up to date from the first node that can: its chain, and with `branches` its forks too.

        Returns:
            Who gave it.

        Raises:
            ProtocolError: A node served something wrong: nothing it says is believed.
            Unreachable: No node keeps the story, or those that do went away.
        """
        for peer in self.network.connected():
            try:
                status = await self.puller.status(peer)
                if status.story != (copy.store.story,):
                    continue
                wanted = status if branches else replace(status, tips=())
                await pull(self.puller, copy, peer, wanted)
            except ServiceError:
                continue
            return peer
        raise Unreachable("no connected node keeps this story any more")

    async def suggest(self, genesis: Genesis, text: str) -> Transaction:
        """Sign a suggestion and hand it to a node that keeps the story, where it then waits for a block.

        Raises:
            ProtocolError: The text breaks a rule, or the node refused it; the message says why.
            Unreachable: No connected node keeps the story.
        """
        story = story_id(genesis)
        for peer in self.network.connected():
            try:
                if (await self.puller.status(peer)).story != (story,):
                    continue
                nonce = await self.puller.next_nonce(peer, story, self.identity.peer_id)
                transaction = sign_transaction(self.identity, story, nonce, SUGGEST, Suggest(text))
                check_transaction(story, transaction)
                await self.puller.hand_in(peer, transaction)
            except ServiceError:
                continue
            return transaction
        raise Unreachable("no connected node keeps this story")

    async def wait_included(self, genesis: Genesis, name: Hash, patience: float) -> Height:
        """Wait until a canonical block has taken a transaction in; give its height.

        Args:
            genesis: Of the story.
            name: The transaction's hash.
            patience: Seconds.

        Raises:
            DeadlinePassed: No block took it in; it may still happen.
        """
        copy, seen = Copy(genesis), 0
        with trio.move_on_after(patience):
            while True:
                await self.fetch(copy)
                for block in copy.canon()[seen:]:
                    if any(transaction_hash(copy.store.story, one.body) == name for one in block.transactions):
                        return block.header.height
                await trio.sleep(genesis.parameters.spacing / 3000)
        raise DeadlinePassed(f"no block took it in within {patience:g} s; it waits on, loremesh canon will show it")

    async def survey(self) -> Survey:
        """Ask the bootstrap nodes who is here, then everybody for an answer.

        Raises:
            ProtocolError: A node lied about another.
            Unreachable: None gave a list.
        """
        cards: dict[PeerId, PeerCard] = {}
        reached: dict[PeerId, set[str]] = {}
        tracker: PeerId | None = None
        for peer in self.network.connected():
            try:
                answer = await self.lookout.peer_list(peer)
            except ServiceError:
                continue
            tracker = answer.tracker[0] if answer.tracker else tracker
            for listed in answer.peers:
                card = check_record(listed.record)
                reached.setdefault(card.peer_id, set()).update(listed.reached)
                if card.peer_id not in cards or card.time > cards[card.peer_id].time:
                    cards[card.peer_id] = card
        if not cards:
            raise Unreachable("no node gave its list of peers")
        found: list[Found] = []
        async with trio.open_nursery() as nursery:
            for card in cards.values():
                addresses = tuple(address for address in card.addresses if address in reached[card.peer_id])
                nursery.start_soon(self._measure, card, addresses, found)
        found.sort(key=lambda one: (one.card.roles, one.card.peer_id))
        return Survey(tuple(found), tracker)

    async def _measure(self, card: PeerCard, addresses: tuple[str, ...], found: list[Found]) -> None:
        latency = None
        for address in addresses:
            with suppress(ServiceError, ProtocolError, UsageError):
                await self.network.connect(address)
                latency = await self.network.ping(card.peer_id)
                break
        found.append(Found(card, addresses, latency))


@asynccontextmanager
async def visit(settings: Settings, identity: Identity | None = None) -> AsyncIterator[Visit]:
    """Connect to the bootstrap nodes for as long as the block lasts.

    Args:
        settings: `bootstrap_nodes` says whom to ask.
        identity: Ours; None: a throw-away one, readers need no name.

    Raises:
        UsageError: No bootstrap nodes were given.
        Unreachable: None of them answers.
    """
    if not settings.bootstrap_nodes:
        raise UsageError("whom to ask? give --bootstrap-nodes MULTIADDR, as a node prints when it is ready")
    identity = identity or Identity.generate(secrets.token_bytes(32))
    async with running_network(identity, NetworkSettings(listen_addresses=(), dht_server=False)) as network:
        puller = Puller(network, identity, wall_clock)
        lookout = Lookout(identity, network, puller, wall_clock)
        await lookout.connect_any(settings.bootstrap_nodes)
        yield Visit(identity, network, puller, lookout, settings)
