"""Announcements: tells the network of new blocks and transactions, and takes in what others tell.

Gossip is a hint: whatever it carries can be pulled. What is malformed or badly signed is refused before it is
relayed; a block whose parent is unknown is relayed and waits as an orphan.

Source: docs/protocol/gossip.md.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from loremesh.errors import Fault, InvalidBlock, InvalidMessage, InvalidTransaction
from loremesh.network.events import GossipReceived
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block, Header, SignedHeader, header_hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import MAX_HEADERS_PER_PARENT, is_one_too_many
from loremesh.protocol.identity import Identity
from loremesh.protocol.transaction import Transaction, check_transaction
from loremesh.protocol.validation import check_block_alone, check_header_alone
from loremesh.protocol.wire import (
    INLINE_BODY,
    BlockAnnouncement,
    MessageType,
    expect,
    seal,
    topic,
)
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Clock

logger = logging.getLogger("loremesh.announcements")

_PUBLISH_TIMEOUT: Final = 10.0
_REMEMBERED_NAMES: Final = 1024
"""Producers on parents whose blocks were announced without bodies lately; each has cost somebody work."""


class Network(Protocol):
    """What announcing needs of the network."""

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip."""

    async def subscribe(self, topic: str, accept: Callable[[PeerId, bytes], object]) -> None:
        """Listen to a topic; `accept` refuses by raising, and what it returns comes with the message."""


@dataclass(frozen=True, slots=True)
class _Announced:
    """A block that was told of; its body if that came along, checked as far as it can be alone."""

    name: Hash
    block: Block | None


class Announcer:
    """The gossip of one story.

    Args:
        identity: Ours.
        chain: Takes what comes.
        network: Carries it.
        ask: Lets sync ask a peer soon, for what it announced and did not inline.
        clock: For the envelopes' log timestamps.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        chain: ChainService,
        network: Network,
        ask: Callable[[PeerId], None],
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._chain = chain
        self._network = network
        self._ask = ask
        self._clock = clock
        story = chain.store.story
        self._named = OrderedDict[tuple[Hash, PeerId], dict[Hash, None]]()
        self._blocks, self._transactions = (topic(story, name) for name in ("blocks", "txs"))

    async def subscribe(self) -> None:
        """Listen to the story's topics."""
        await self._network.subscribe(self._blocks, self._check_announcement)
        await self._network.subscribe(self._transactions, self._check_transaction)

    async def announce(self, block: Block) -> None:
        """Tell the network of a block that is ours and durable."""
        body = encode(block)
        header = block.header
        announcement = BlockAnnouncement(
            height=header.height,
            hash=header_hash(header),
            producer=header.producer,
            timestamp=header.time,
            body=body if len(body) <= INLINE_BODY else b"",
            header=() if len(body) <= INLINE_BODY else (SignedHeader(header, block.signature),),
        )
        await self._publish(self._blocks, MessageType.BLOCK_ANNOUNCEMENT, announcement)

    async def relay(self, transaction: Transaction) -> None:
        """Tell the network of a transaction that came to us directly."""
        await self._publish(self._transactions, MessageType.TRANSACTION, transaction)

    async def on_gossip(self, received: GossipReceived) -> None:
        """Take in a message that passed its topic's check."""
        match received.value:
            case _Announced(name, block) if not self._chain.knows(name):
                if block is not None:
                    await self._chain.offer(block, received.forwarder)
                else:  # sync asks in its own time: a forwarder that has no such block holds up no gossip
                    self._ask(received.forwarder)
            case Transaction() as transaction:
                try:
                    await self._chain.add_transaction(transaction)
                except InvalidTransaction as error:  # most likely overtaken by a block: not the forwarder's fault
                    logger.debug("a gossiped transaction is not wanted: %s", error)
            case _:  # known already, or of a topic that is not ours
                pass

    def _check_announcement(self, signer: PeerId, data: bytes) -> _Announced:
        announcement = expect(data, signer, MessageType.BLOCK_ANNOUNCEMENT, BlockAnnouncement)
        if announcement.producer != signer:
            raise InvalidMessage(Fault.WRONG_SENDER, "a block announced by somebody else")
        if len(announcement.header) != (not announcement.body):
            raise InvalidMessage(Fault.NOT_AS_ASKED, "an announcement with neither body nor header, or with both")
        store = self._chain.store
        if announcement.body:
            block = decode(Block, announcement.body)
            name, header = check_block_alone(store.genesis, store.story, block), block.header
        else:
            block, [signed] = None, announcement.header
            name, header = check_header_alone(store.genesis, store.story, signed), signed.header
        said = (announcement.hash, announcement.height, announcement.producer, announcement.timestamp)
        if said != (name, header.height, header.producer, header.time):
            raise InvalidMessage(Fault.NOT_AS_ASKED, "the announcement is not of the block inside")
        # Two are relayed, as evidence. What is announced by its header alone the store does not know yet.
        if is_one_too_many(store, header) or (block is None and self._is_named_too_often(header, name)):
            raise InvalidBlock(Fault.EQUIVOCATION, name)
        return _Announced(name, block)

    def _is_named_too_often(self, header: Header, name: Hash) -> bool:
        said = header.parent, header.producer
        names = self._named.setdefault(said, {})
        self._named.move_to_end(said)
        while len(self._named) > _REMEMBERED_NAMES:
            self._named.popitem(last=False)
        if name not in names and len(names) >= MAX_HEADERS_PER_PARENT:
            return True
        names[name] = None
        return False

    def _check_transaction(self, signer: PeerId, data: bytes) -> Transaction:
        transaction = expect(data, signer, MessageType.TRANSACTION, Transaction)
        check_transaction(self._chain.store.story, transaction)
        return transaction

    async def _publish(self, name: str, kind: MessageType, payload: object) -> None:
        with trio.move_on_after(_PUBLISH_TIMEOUT) as deadline:
            await self._network.publish(name, seal(self._identity, kind, payload, self._clock()))
        if deadline.cancelled_caught:
            logger.warning("a %s was not taken by the network in time; peers will pull it", kind)
