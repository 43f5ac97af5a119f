"""The serving side of sync: answers what others ask about blocks, from the store as it is at that moment.

Source: docs/protocol/sync.md.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from loremesh.errors import Fault, InvalidMessage, InvalidTransaction
from loremesh.network.frames import Stream
from loremesh.primitives import KIB, Hash
from loremesh.protocol.codec import decode, encode
from loremesh.protocol.fork_choice import Store, is_canonical
from loremesh.protocol.genesis import GENESIS_HEIGHT
from loremesh.protocol.identity import Identity
from loremesh.protocol.transaction import Transaction, transaction_hash
from loremesh.protocol.wire import (
    Account,
    AccountRequest,
    BlocksRequest,
    GenesisAnswer,
    GenesisRequest,
    Headers,
    HeadersRequest,
    MessageType,
    Nothing,
    Refusal,
    Status,
    TransactionAccepted,
    seal,
    seal_bytes,
)
from loremesh.services.asked import receive_request
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Clock

_MAX_TIPS: Final = 64
_NEWEST_TIPS: Final = 16
"""Always told; of older ones, where not all fit, others in each answer: whoever asks on hears of every branch."""
_BYTES_IN_MEMORY: Final = 64 * KIB
"""Loaded for one stream at a time, and a block more."""


class SyncServer:
    """Answers one request per stream; with no chain (a pure anchor) it says so.

    Args:
        identity: Ours.
        chain: What to answer from, or None.
        clock: For the envelopes' log timestamps.
        relay: Passes on a transaction that was taken in.
    """

    def __init__(
        self,
        identity: Identity,
        chain: ChainService | None,
        clock: Clock,
        relay: Callable[[Transaction], Awaitable[None]] | None,
    ) -> None:
        self._identity = identity
        self._chain = chain
        self._clock = clock
        self._relay = relay
        self._dice = random.Random(identity.peer_id)  # noqa: S311 - no secret, and the same in every simulation

    async def serve(self, stream: Stream) -> None:
        """Handle one stream.

        Raises:
            ProtocolError: The peer broke a rule.
            ServiceError: The peer went away, or was too slow.
        """
        kind, payload = await receive_request(stream, self._identity.peer_id)
        if kind is MessageType.STATUS_REQUEST:
            decode(Nothing, payload)
            await self._send(stream, MessageType.STATUS, self._status())
        elif self._chain is None:
            await self._refuse(stream, "this node keeps no story; ask a node of its peer list")
        else:
            await self._answer(stream, self._chain, kind, payload)
        await stream.finish()

    async def _answer(self, stream: Stream, chain: ChainService, kind: MessageType, payload: bytes) -> None:
        match kind:
            case MessageType.GENESIS_REQUEST:
                if await self._is_ours(stream, decode(GenesisRequest, payload).story):
                    await self._send(stream, MessageType.GENESIS, GenesisAnswer(encode(chain.store.genesis)))
            case MessageType.HEADERS_REQUEST:
                headers = decode(HeadersRequest, payload)
                if await self._is_ours(stream, headers.story):
                    signed = await chain.load_headers(names_after(chain.store, headers))
                    await self._send(stream, MessageType.HEADERS, Headers(signed))
            case MessageType.BLOCKS_REQUEST:
                blocks = decode(BlocksRequest, payload)
                if await self._is_ours(stream, blocks.story):
                    await self._send_blocks(stream, chain, blocks.hashes)
            case MessageType.ACCOUNT_REQUEST:
                account = decode(AccountRequest, payload)
                if await self._is_ours(stream, account.story):
                    await self._send(stream, MessageType.ACCOUNT, Account(chain.next_nonce(account.sender)))
            case MessageType.TRANSACTION:
                await self._take_transaction(stream, chain, decode(Transaction, payload))
            case _:
                raise InvalidMessage(Fault.UNEXPECTED, f"{kind} on the sync protocol")

    async def _is_ours(self, stream: Stream, story: Hash) -> bool:
        assert self._chain is not None  # noqa: S101 - for the type checker: callers have a chain
        ours = self._chain.store.story
        if story != ours:
            await self._refuse(stream, f"this node keeps story {ours.hex()}")
        return story == ours

    def _status(self) -> Status:
        if self._chain is None:
            return Status((), GENESIS_HEIGHT, (), ())
        store = self._chain.store
        others = [name for name in store.tips if name != store.head]
        ranked = sorted(others, key=lambda name: (-store.entries[name].link.height, name))
        if len(ranked) > _MAX_TIPS:
            ranked[_NEWEST_TIPS:] = self._dice.sample(ranked[_NEWEST_TIPS:], _MAX_TIPS - _NEWEST_TIPS)
        return Status((store.story,), store.tip.link.height, (store.head,), tuple(ranked))

    async def _send_blocks(self, stream: Stream, chain: ChainService, names: Sequence[Hash]) -> None:
        # Some bytes at a time: what is loaded waits in memory for as long as the peer takes to read it.
        while names:
            found = await chain.load(names, _BYTES_IN_MEMORY)
            if not found:
                break
            reached = 1 + max(place for place, name in enumerate(names) if name in found)
            # The bytes are the canonical block already; the envelope only names them.
            wanted = [found[name] for name in names[:reached] if name in found]
            now = self._clock()
            await stream.send_all(seal_bytes(self._identity, MessageType.BLOCK, data, now) for data in wanted)
            names = names[reached:]

    async def _take_transaction(self, stream: Stream, chain: ChainService, transaction: Transaction) -> None:
        try:
            is_new = await chain.add_transaction(transaction)
        except InvalidTransaction as error:
            await self._refuse(stream, str(error))
            return
        if is_new and self._relay is not None:
            await self._relay(transaction)
        name = transaction_hash(chain.store.story, transaction.body)
        await self._send(stream, MessageType.ACCEPTED, TransactionAccepted(name))

    async def _send(self, stream: Stream, kind: MessageType, payload: object) -> None:
        await stream.send(seal(self._identity, kind, payload, self._clock(), stream.peer_id))

    async def _refuse(self, stream: Stream, reason: str) -> None:
        await self._send(stream, MessageType.REFUSAL, Refusal(reason[:160]))


def names_after(store: Store, request: HeadersRequest) -> list[Hash]:
    """Name the blocks that follow the newest block of the locator, towards `until` or the head, oldest first.

    Walks a side branch only down to the canonical chain, and never past the locator.
    """
    target = request.until[0] if request.until else store.head
    if target not in store.entries:
        return []
    known = {name for name in request.locator if name in store.entries}
    branch: list[Hash] = []
    name = target
    while not is_canonical(store, name) and name not in known:
        branch.append(name)
        name = store.entries[name].parent
    branch.reverse()
    if name in known:
        return branch[: request.limit]
    fork = store.entries[name].link.height
    start = max(
        (store.entries[name].link.height for name in known if is_canonical(store, name)),
        default=0,
    )
    canonical = [store.canon[height] for height in range(start + 1, min(fork, start + request.limit) + 1)]
    return (canonical + branch)[: request.limit]
