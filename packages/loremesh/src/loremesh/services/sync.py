"""Sync: pulls what this node lacks from peers, headers first, then bodies in batches. Needs no gossip.

A run against one peer costs it at most a batch when it lies: headers are checked as a chain before any body is asked
for, and each body must be a block that was asked for. Branches that lost are pulled as well: forks are kept.

Source: docs/protocol/sync.md.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, TypeVar

import trio

from loremesh.errors import DeadlinePassed, Fault, InvalidBlock, InvalidMessage, ProtocolError, ServiceError
from loremesh.network.frames import Stream
from loremesh.primitives import Hash, PeerId, StoryId
from loremesh.protocol.block import Block, SignedHeader, header_hash
from loremesh.protocol.fork_choice import Store, is_known
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
from loremesh.services.happenings import Clock

T = TypeVar("T")
logger = logging.getLogger("loremesh.sync")

ANSWER_TIMEOUT: Final = 10.0
_BATCH_TIMEOUT: Final = 30.0
"""Seconds for all the bodies of one request: a peer that sends one now and then holds nobody up."""
_HEADERS: Final = 256
_BODIES: Final = 64
_DENSE_LOCATOR: Final = 10


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
        wanted = list(names)
        blocks: list[Block] = []
        with trio.move_on_after(_BATCH_TIMEOUT):
            await self._receive_blocks(peer, story, wanted, blocks)
            return blocks
        raise DeadlinePassed(f"{len(blocks)} of {len(names)} blocks came within {_BATCH_TIMEOUT:g} s")

    async def _receive_blocks(self, peer: PeerId, story: StoryId, wanted: list[Hash], blocks: list[Block]) -> None:
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
                blocks.append(block)

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


async def pull(puller: Puller, chain: Chain, peer: PeerId, status: Status) -> int:
    """Bring `chain` up to all that `peer` has: its head's chain first, then its other branches.

    Returns:
        How many blocks came.

    Raises:
        ProtocolError: The peer sent something wrong.
        ServiceError: The peer is slow or gone.
    """
    came = 0
    for tip in (*status.head, *status.tips):
        reached: tuple[Link, ...] = ()
        while tip not in chain.store.entries:
            more, last = await _pull_batch(puller, chain, peer, tip, reached)
            came += more
            # Blocks known before bring a long branch nearer too; but each answer must lead further than the last.
            if last is None or last.hash not in chain.store.entries or (reached and last.height <= reached[0].height):
                break
            reached = (last,)
    return came


async def _pull_batch(
    puller: Puller, chain: Chain, peer: PeerId, tip: Hash, reached: tuple[Link, ...]
) -> tuple[int, Link | None]:
    """Pull the next headers towards `tip` after those `reached`, and their bodies.

    Returns:
        How many blocks came, and where the headers ended.
    """
    store = chain.store
    names = (*(link.hash for link in reached), *locator(store))
    headers = await puller.headers(peer, HeadersRequest(store.story, names, (tip,), _HEADERS))
    try:
        missing, last = await _check_headers(store, headers)
    except InvalidBlock as error:  # no block came: this is about the answer, and about who gave it
        raise InvalidMessage(error.fault, error.detail) from error
    came = 0
    for start in range(0, len(missing), _BODIES):
        batch = missing[start : start + _BODIES]
        blocks = await puller.blocks(peer, store.story, batch)
        await chain.submit_all(blocks, peer)
        came += len(blocks)
        if len(blocks) < len(batch):
            logger.info("a peer announced headers whose bodies it did not send")
            break
    return came, last


async def _check_headers(store: Store, headers: Sequence[SignedHeader]) -> tuple[list[Hash], Link | None]:
    """Check headers as a chain that starts at a block we know; name those we lack, and give the last one's link."""
    names: list[Hash] = []
    link: Link | None = None
    for signed in headers:
        header = signed.header
        name = check_header_alone(store.genesis, store.story, signed)
        if link is None:
            if header.parent not in store.entries:
                raise InvalidMessage(Fault.NOT_AS_ASKED, "headers that do not start at a block we named")
            link = store.entries[header.parent].link
        elif header.parent != link.hash:
            raise InvalidMessage(Fault.NOT_AS_ASKED, "headers that are not consecutive")
        check_header_link(store.genesis, header, link, name)
        link = link_of(header, link)
        if not is_known(store, name):
            names.append(name)
        # A batch takes some milliseconds: others run in between.
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


class SyncService:
    """Asks peers where they stand, and pulls what is missing here.

    Args:
        puller: Towards the network.
        chain: Takes the blocks.
        network: Who is connected.
        wakeups: Peers to ask now: just connected, or the sender of an orphan.
        penalize: Hears which peer broke which rule.
        interval: Seconds between two rounds when nothing wakes it; each round asks one peer.
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
        self.rounds = 0
        self.pulled = 0
        """Blocks that came in rounds that ended well."""
        self.failures = 0

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            peer: PeerId | None = None
            with trio.move_on_after(self._interval):
                peer = await self._wakeups.receive()
            if peer is None:
                peer = self._next_peer()
            if peer is not None and peer in self._network.connected():
                await self.sync_with(peer)

    async def sync_with(self, peer: PeerId) -> None:
        """Pull from one peer; whatever goes wrong is that peer's, and never ours."""
        self.rounds += 1
        try:
            status = await self._puller.status(peer)
            if status.story == (self._chain.store.story,):
                came = await pull(self._puller, self._chain, peer, status)
                self.pulled += came
                if came:
                    logger.info("%d blocks came by sync", came)
        except InvalidBlock as error:  # the chain has named whoever sent it
            self.failures += 1
            logger.info("sync with a peer ended: %s", error)
        except ProtocolError as error:
            self.failures += 1
            self._penalize(peer, "sync", error)
        except ServiceError as error:
            self.failures += 1
            logger.debug("sync with a peer ended: %s", error)

    def _next_peer(self) -> PeerId | None:
        peers = sorted(self._network.connected())
        if not peers:
            return None
        self._turn += 1
        return peers[self._turn % len(peers)]
