"""Sync: pulls what this node lacks from peers, headers first, then bodies from several at once. Needs no gossip.

A peer that lies costs at most a batch: headers are checked as a chain before any body is asked for, and each body must
be a block that was asked for. Branches that lost are pulled as well: forks are kept.

Source: docs/protocol/sync.md.
"""

import logging
from collections.abc import Container, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from loremesh.errors import DeadlinePassed, Fault, InvalidBlock, InvalidMessage, ProtocolError, ServiceError
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId, StoryId
from loremesh.protocol.block import Block, SignedHeader, header_hash
from loremesh.protocol.fork_choice import Store, is_one_too_many, missing_parents
from loremesh.protocol.genesis import Genesis, genesis_from_bytes
from loremesh.protocol.identity import Identity
from loremesh.protocol.transaction import Transaction
from loremesh.protocol.validation import Link, check_header_alone, check_header_link, link_of
from loremesh.protocol.wire import (
    SYNC_PROTOCOL,
    Account,
    AccountRequest,
    BlocksRequest,
    GenesisAnswer,
    GenesisRequest,
    Headers,
    HeadersRequest,
    MessageType,
    Nothing,
    Status,
    TransactionAccepted,
    expect,
    seal,
)
from loremesh.services.chain import Penalize
from loremesh.services.download import BATCH, MOST_SOURCES, Download
from loremesh.services.happenings import Clock
from loremesh.services.hedging import Failure, first_answer

T = TypeVar("T")
logger = logging.getLogger("loremesh.sync")

ANSWER_TIMEOUT: Final = 10.0
_BATCH_TIMEOUT: Final = 30.0
"""Seconds for all the bodies of one request: a peer that sends one now and then holds nobody up."""
_HEADERS: Final = 256
_CHECKED_AT_ONCE: Final = 2
"""A tenth of a millisecond: a peer that waits for an answer meanwhile waits for dozens of these turns."""
_DENSE_LOCATOR: Final = 10
_ASKED_AT_ONCE: Final = 8
_ASKED_WHEN_BEHIND: Final = 3
_GENERATIONS: Final = 4
"""How often parents are asked for by name, each time those of the last; deeper gaps are for headers."""
_REMEMBERED_SURPLUS: Final = 1024
_LONGEST_COOLING: Final = 32.0
"""Seconds that a peer which failed is left alone while others are there; 1 at first, twice as long each time."""


class Network(Protocol):
    """What sync needs of the network."""

    def connected(self) -> tuple[PeerId, ...]:
        """Give the peers we have a connection to."""

    def open(
        self,
        peer_id: PeerId,
        protocol: str,
        timeout: float = 5,
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a stream."""


class Puller:
    """The asking side of the sync protocol, towards any peer.

    Every method raises `ProtocolError` when the peer breaks a rule and `ServiceError` when it is slow or gone.
    """

    def __init__(self, network: Network, identity: Identity, clock: Clock) -> None:
        self._network = network
        self._identity = identity
        self._clock = clock

    async def status(self, peer: PeerId) -> Status:
        """Ask where a peer stands."""
        return await self._ask(peer, MessageType.STATUS_REQUEST, Nothing(), MessageType.STATUS, Status)

    async def genesis(self, peer: PeerId, story: StoryId) -> Genesis:
        """Fetch a genesis and check that it begins `story`."""
        request = GenesisRequest(story)
        answer = await self._ask(peer, MessageType.GENESIS_REQUEST, request, MessageType.GENESIS, GenesisAnswer)
        return genesis_from_bytes(answer.data, story)

    async def headers(self, peer: PeerId, request: HeadersRequest) -> tuple[SignedHeader, ...]:
        """Ask for headers; no more than asked for come back."""
        answer = await self._ask(peer, MessageType.HEADERS_REQUEST, request, MessageType.HEADERS, Headers)
        if len(answer.headers) > request.limit:
            raise InvalidMessage(Fault.NOT_AS_ASKED, "more headers than asked for")
        return answer.headers

    async def blocks(self, peer: PeerId, story: StoryId, names: Sequence[Hash]) -> list[Block]:
        """Fetch blocks by hash; those the peer lacks are missing from the answer, the others come in this order."""
        blocks: list[Block] = []
        await self.receive_blocks(peer, story, names, blocks)
        return blocks

    async def receive_blocks(self, peer: PeerId, story: StoryId, names: Sequence[Hash], into: list[Block]) -> None:
        """Fetch blocks as `blocks` does; when the peer goes away in the middle, `into` holds what has come."""
        with trio.move_on_after(_BATCH_TIMEOUT):
            await self._receive_blocks(peer, story, list(names), into)
            return
        raise DeadlinePassed(f"{len(into)} of {len(names)} blocks came within {_BATCH_TIMEOUT:g} s")

    async def _receive_blocks(self, peer: PeerId, story: StoryId, wanted: list[Hash], into: list[Block]) -> None:
        names = tuple(wanted)
        async with self._network.open(peer, SYNC_PROTOCOL) as stream:
            request = BlocksRequest(story, names)
            await stream.send(self._seal(peer, MessageType.BLOCKS_REQUEST, request))
            await stream.finish()
            while (frame := await stream.receive(ANSWER_TIMEOUT)) is not None:
                block = expect(frame, peer, MessageType.BLOCK, Block)
                name = header_hash(block.header)
                if name not in wanted:
                    raise InvalidMessage(Fault.NOT_AS_ASKED, f"block {name.hex()[:8]} was not asked for, or not next")
                del wanted[: wanted.index(name) + 1]
                into.append(block)

    async def next_nonce(self, peer: PeerId, story: StoryId, sender: PeerId) -> int:
        """Ask which nonce a sender's next transaction carries, counting what waits at `peer`."""
        request = AccountRequest(story, sender)
        answer = await self._ask(peer, MessageType.ACCOUNT_REQUEST, request, MessageType.ACCOUNT, Account)
        return answer.nonce

    async def hand_in(self, peer: PeerId, transaction: Transaction) -> Hash:
        """Hand a transaction to a peer; gives its hash. A refusal is NOT_AS_ASKED, with the peer's reason."""
        kinds = MessageType.TRANSACTION, MessageType.ACCEPTED
        answer = await self._ask(peer, kinds[0], transaction, kinds[1], TransactionAccepted)
        return answer.hash

    async def ask(self, peer: PeerId, protocol: str, frame: bytes) -> bytes:
        """Send one frame and give the one that answers it."""
        async with self._network.open(peer, protocol) as stream:
            await stream.send(frame)
            await stream.finish()
            answer = await stream.receive(ANSWER_TIMEOUT)
        if answer is None:
            raise InvalidMessage(Fault.UNFINISHED, "no answer")
        return answer

    async def _ask(self, peer: PeerId, kind: MessageType, request: object, answer: MessageType, cls: type[T]) -> T:
        frame = await self.ask(peer, SYNC_PROTOCOL, self._seal(peer, kind, request))
        return expect(frame, peer, answer, cls)

    def _seal(self, peer: PeerId, kind: MessageType, request: object) -> bytes:
        return seal(self._identity, kind, request, self._clock(), peer)


class Chain(Protocol):
    """What sync needs of a chain: the node's service, or a client's own store."""

    @property
    def store(self) -> Store:
        """The store as it is now."""

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:
        """Take in blocks, parents first, or raise InvalidBlock."""


@dataclass(slots=True)
class Pull:
    """One attempt to bring `chain` up to all that `peer` has, its bodies fetched from `others` as well."""

    puller: Puller
    chain: Chain
    peer: PeerId
    others: tuple[PeerId, ...] = ()
    usual: float = 0.0
    """Seconds that an answer takes, as far as is known."""
    surplus: dict[Hash, None] = field(default_factory=dict)
    """Tips left where they are: their producers have two headers on their parents here, and nobody builds on these."""
    came: int = 0
    failed: dict[PeerId, Failure] = field(default_factory=dict)
    """Who broke which rule, or was slow or gone."""
    gave: set[PeerId] = field(default_factory=set)
    """Whose blocks were taken in, whatever happened then."""
    _download: Download | None = None

    def join(self, other: PeerId) -> None:
        """Let one peer more help, from now on."""
        if other not in (self.peer, *self.others):
            self.others += (other,)
        if self._download is not None:
            self._download.add_source(other)

    async def run(self, status: Status) -> None:
        """Pull the head's chain first, then the other branches."""
        for tip in (*status.head, *status.tips):
            if _is_lacking(self.chain.store, tip, self.surplus) and self.peer not in self.failed:
                await self._pull_branch(tip)

    async def _pull_branch(self, tip: Hash) -> None:
        story = self.chain.store.story
        sources = [self.peer, *(other for other in self.others if other not in self.failed)]
        self._download = download = Download(partial(self._fetch, story), self.chain, sources)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._name_missing, tip, download)
            if not await download.run():
                logger.debug("headers were announced whose bodies nobody sent")
            nursery.cancel_scope.cancel()
        self.came += download.came
        self.gave |= download.gave
        for peer, failure in download.failed.items():
            self.failed.setdefault(peer, failure)

    async def _fetch(self, story: StoryId, peer: PeerId, names: Sequence[Hash], into: list[Block]) -> None:
        await self.puller.receive_blocks(peer, story, names, into)

    async def _name_missing(self, tip: Hash, download: Download) -> None:
        """Tell the download what to fetch: headers towards `tip`, each answer beginning where the last ended."""
        reached: Link | None = None
        teller = self.peer
        while reached is None or reached.hash != tip:
            began = trio.current_time()
            ask = partial(self._next_headers, tip, reached)
            found = await first_answer(ask, teller, partial(self._other_than, teller), self.usual, self.failed)
            if found is None:
                break
            teller, (names, reached) = found
            self.usual = trio.current_time() - began
            if names and not await download.add(names):
                break
        download.finish()

    def _other_than(self, teller: PeerId) -> PeerId | None:
        able = (peer for peer in (self.peer, *self.others) if peer != teller and peer not in self.failed)
        return next(able, None)

    async def _next_headers(self, tip: Hash, reached: Link | None, peer: PeerId) -> tuple[list[Hash], Link] | None:
        """Ask a peer for headers; None when they do not lead further, as those of a peer that lacks `tip`."""
        store = self.chain.store
        names = (*(() if reached is None else (reached.hash,)), *locator(store))
        headers = await self.puller.headers(peer, HeadersRequest(store.story, names, (tip,), _HEADERS))
        try:
            lacking, link = await _check_headers(store, headers, reached)
        except InvalidBlock as error:  # no block came: this is about the answer, and about who gave it
            raise InvalidMessage(error.fault, error.detail) from error
        # Blocks known before bring a long branch nearer too; but each answer must lead further than the last.
        if link is None or (reached is not None and link.height <= reached.height):
            return None
        if link.hash == tip and is_one_too_many(store, headers[-1].header):
            self.surplus[tip] = None
            lacking.remove(tip)
        return lacking, link


def _is_lacking(store: Store, tip: Hash, surplus: Container[Hash]) -> bool:
    return not (tip in store.entries or tip in store.held or tip in store.surplus or tip in surplus)


async def pull(puller: Puller, chain: Chain, peer: PeerId, status: Status) -> int:
    """Bring `chain` up to all that `peer` has, from `peer` alone.

    Returns:
        How many blocks came.

    Raises:
        ProtocolError: The peer sent something wrong.
        ServiceError: The peer is slow or gone.
    """
    attempt = Pull(puller, chain, peer)
    await attempt.run(status)
    for failure in attempt.failed.values():
        raise failure
    return attempt.came


async def _check_headers(
    store: Store, headers: Sequence[SignedHeader], reached: Link | None
) -> tuple[list[Hash], Link | None]:
    """Check headers as a chain that starts at `reached` or at a block of ours; name those we lack, link the last."""
    names: list[Hash] = []
    link: Link | None = None
    for number, signed in enumerate(headers):
        header = signed.header
        name = check_header_alone(store.genesis, store.story, signed)
        if link is None:
            if reached is not None and header.parent == reached.hash:
                link = reached
            elif header.parent in store.entries:
                link = store.entries[header.parent].link
            else:
                raise InvalidMessage(Fault.NOT_AS_ASKED, "headers that do not start at a block we named")
        elif header.parent != link.hash:
            raise InvalidMessage(Fault.NOT_AS_ASKED, "headers that are not consecutive")
        check_header_link(store.genesis, header, link, name)
        link = link_of(header, link, name)
        if name not in store.entries and name not in store.held:  # an orphan may have to make room before its turn
            names.append(name)
        if number % _CHECKED_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return names, link


def locator(store: Store) -> tuple[Hash, ...]:
    """Name canonical blocks from the head backwards: ten in a row, then each twice as far, the genesis last."""
    names = []
    height, step = int(store.tip.link.height), 1
    while height > 0:
        names.append(store.canon[height])
        if len(names) >= _DENSE_LOCATOR:
            step *= 2
        height -= step
    return (*names, store.story)


@dataclass(frozen=True, slots=True)
class _Cooling:
    failures: int
    """Since blocks of this peer were last taken in."""
    until: float


class SyncService:
    """Asks peers where they stand, and pulls what is missing here.

    Several peers are asked at once, so that a silent one holds nobody up; one long pull runs at a time, and takes its
    bodies from all who are known to keep the story.

    Args:
        puller: Towards the network.
        chain: Takes the blocks.
        network: Who is connected.
        wakeups: Peers to ask now: just connected, or the sender of an orphan.
        penalize: Hears which peer broke which rule.
        interval: Seconds between two rounds; each asks one peer, or several while something is known to be missing.
    """

    def __init__(
        self,
        *,
        puller: Puller,
        chain: Chain,
        network: Network,
        wakeups: trio.MemoryReceiveChannel[PeerId],
        penalize: Penalize,
        interval: float = 2.0,
    ) -> None:
        self._puller = puller
        self._chain = chain
        self._network = network
        self._wakeups = wakeups
        self._penalize = penalize
        self._interval = interval
        self._turn = 0
        self._pulling = trio.Lock()
        self._current: Pull | None = None
        self._being_asked: dict[PeerId, bool] = {}
        """Who is being asked, and whether to ask again after that."""
        self._keepers: dict[PeerId, None] = {}
        """Who said that it keeps this story."""
        self._cooling: dict[PeerId, _Cooling] = {}
        self._surplus: dict[Hash, None] = {}
        """Tips known to be left where they are."""
        self._incomplete = False
        self.rounds = 0
        self.pulled = 0
        """Blocks that came by asking."""
        self.failures = 0

    async def run(self) -> None:
        """Serve until cancelled."""
        next_round = trio.current_time() + self._interval
        async with trio.open_nursery() as nursery:
            while True:
                peers: list[PeerId] = []
                with trio.move_on_at(next_round):
                    peers = [await self._wakeups.receive()]
                    if self._is_cooling(peers[0]):
                        continue  # its turn comes: orphans by the thousand are no reason to ask a thousand times
                if not peers:
                    next_round = trio.current_time() + self._interval
                    peers = self._next_peers()
                for peer in peers:
                    if peer in self._being_asked:
                        self._being_asked[peer] = True
                    elif len(self._being_asked) < _ASKED_AT_ONCE:  # else its turn comes
                        self._being_asked[peer] = False
                        nursery.start_soon(self._ask, peer)

    async def _ask(self, peer: PeerId) -> None:
        again = True
        while again and peer in self._network.connected():
            self._being_asked[peer] = False
            await self.sync_with(peer)
            again = self._being_asked[peer] and not self._is_cooling(peer)
        del self._being_asked[peer]

    async def sync_with(self, peer: PeerId) -> None:
        """Pull from one peer; whatever goes wrong is that peer's, and never ours."""
        self.rounds += 1
        try:
            await self._fetch_parents(peer)
            asked = trio.current_time()
            status = await self._puller.status(peer)
            took = trio.current_time() - asked
        except (ProtocolError, ServiceError) as error:
            self._on_failure(peer, error)
            return
        if status.story != (self._chain.store.story,):
            self._keepers.pop(peer, None)
            return
        self._keepers[peer] = None
        if self._current is not None:
            self._current.join(peer)
        if self._lacks_any_of(status):
            async with self._pulling:
                await self._pull(peer, status, took)

    def _lacks_any_of(self, status: Status) -> bool:
        store = self._chain.store
        return any(_is_lacking(store, tip, self._surplus) for tip in (*status.head, *status.tips))

    async def _pull(self, peer: PeerId, status: Status, usual: float) -> None:
        self._current = attempt = Pull(self._puller, self._chain, peer, self._other_keepers(peer), usual, self._surplus)
        await attempt.run(status)
        self._current = None
        while len(self._surplus) > _REMEMBERED_SURPLUS:
            del self._surplus[next(iter(self._surplus))]
        self.pulled += attempt.came
        self._incomplete = self._lacks_any_of(status)
        for other in attempt.gave:
            self._cooling.pop(other, None)
        for other, failure in attempt.failed.items():
            self._on_failure(other, failure)
        if attempt.came:
            logger.info("%d blocks came by sync", attempt.came)

    def _other_keepers(self, peer: PeerId) -> tuple[PeerId, ...]:
        connected = set(self._network.connected())
        self._keepers = {one: None for one in self._keepers if one in connected}
        able = [one for one in self._keepers if one != peer and not self._is_cooling(one)]
        start = self._turn % max(1, len(able))
        return tuple((able[start:] + able[:start])[: MOST_SOURCES - 1])

    async def _fetch_parents(self, peer: PeerId) -> None:
        """Ask for the parents of orphans by name: after a lost message, or a burst with gaps, that is all it takes."""
        for _ in range(_GENERATIONS):
            store = self._chain.store
            names = missing_parents(store)
            # Of many, parents would be orphans themselves and drive others out: then headers come first.
            if not 0 < len(names) <= len(store.orphans) <= BATCH or self._pulling.locked():
                return
            blocks = await self._puller.blocks(peer, store.story, names)
            if not blocks:
                return
            try:
                await self._chain.submit_all(blocks, peer)
            except InvalidBlock as error:  # the chain has named whoever sent it
                logger.info("a peer sent an invalid parent: %s", error)
                return
            self.pulled += len(blocks)

    def _on_failure(self, peer: PeerId, failure: Failure) -> None:
        self.failures += 1
        times = self._cooling[peer].failures if peer in self._cooling else 0
        self._cooling[peer] = _Cooling(times + 1, trio.current_time() + min(2.0 ** min(times, 10), _LONGEST_COOLING))
        if isinstance(failure, ProtocolError) and not isinstance(failure, InvalidBlock):
            self._penalize(peer, "sync", failure)
        else:  # slow or gone; or an invalid block, whose sender the chain has named
            logger.debug("sync with a peer ended: %s", failure)

    def _is_cooling(self, peer: PeerId) -> bool:
        return peer in self._cooling and trio.current_time() < self._cooling[peer].until

    def _next_peers(self) -> list[PeerId]:
        """Choose whose turn it is; those that failed lately only when there is nobody else."""
        connected = sorted(self._network.connected())
        self._cooling = {peer: cooling for peer, cooling in self._cooling.items() if peer in connected}
        peers = [peer for peer in connected if not self._is_cooling(peer)] or connected
        wanted = _ASKED_WHEN_BEHIND if self._incomplete or self._chain.store.orphans else 1
        chosen = [peers[(self._turn + number) % len(peers)] for number in range(min(wanted, len(peers)))]
        self._turn += len(chosen)
        return chosen
