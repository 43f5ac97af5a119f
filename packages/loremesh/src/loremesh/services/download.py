"""Download: fetches the bodies of checked headers from several peers at once, and hands them to the chain in order.

A peer that lies, withholds or is slow costs its batch: the batch moves to another peer, and whoever failed is asked no
more. Whoever is slow is not waited for: a second peer is asked as well, and the first valid answer counts. Blocks are
durable as they come, so a download that is cut short is resumed from where it was.

Source: docs/protocol/sync.md.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from loremesh.errors import InvalidBlock, ProtocolError, ServiceError
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.block import Block, header_hash
from loremesh.services.hedging import Failure, patience

BATCH: Final = 64
MOST_SOURCES: Final = 4
"""Peers asked at once."""
_REQUESTS_PER_PEER: Final = 2
"""Under way at once, so that the next batch travels while the last is judged."""
_AT_ONCE: Final = 2
"""Batches handed over together at most."""
_AHEAD: Final = 8
"""Batches fetched or under way beyond the first that is not in yet; they wait in memory."""
_QUEUE: Final = 32
"""Batches known by name, the above included."""
Fetch = Callable[[PeerId, Sequence[Hash], list[Block]], Awaitable[None]]
"""Puts those blocks that a peer has into a list, in the order asked, or raises a Failure with some of them in it."""


class Chain(Protocol):
    """What a download needs of a chain."""

    async def submit_all(self, blocks: Sequence[Block], sender: PeerId | None) -> None:
        """Take in blocks, parents first, or raise InvalidBlock."""


@dataclass(slots=True)
class _Request:
    """A question under way: since when, and how to give it up."""

    since: float
    scope: trio.CancelScope


@dataclass(slots=True)
class _Batch:
    """Blocks of one request, and who has been asked for them."""

    names: tuple[Hash, ...]
    asked: dict[PeerId, _Request]
    """Whoever is being asked."""
    blocks: list[Block] | None = None
    giver: PeerId | None = None


class Download:
    """The bodies of one growing chain of headers. `run` it, `add` names in order, and `finish`.

    Args:
        fetch: Asks a peer.
        chain: Takes the blocks, a batch at a time and in order.
        sources: Whom to ask, the best first; more may come.
    """

    def __init__(self, fetch: Fetch, chain: Chain, sources: Sequence[PeerId]) -> None:
        self.came = 0
        self.failed: dict[PeerId, Failure] = {}
        """Who did what instead of giving blocks; to lack some is no failure."""
        self.gave = set[PeerId]()
        """Whose blocks were taken in."""
        self._fetch = fetch
        self._chain = chain
        self._sources = dict.fromkeys(sources)
        self._known = set(sources)
        self._nursery: trio.Nursery | None = None
        self._batches: list[_Batch] = []
        self._finished = False
        self._usual = 0.0
        """Seconds that a batch takes: of the last ones, the latest for half."""
        self._changed = trio.Event()

    async def run(self) -> bool:
        """Fetch until finished; False when nobody is left who gives what is missing."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for peer in self._sources:
                self._start(nursery, peer)
            complete = await self._take_in()
            self._nursery = None
            self._sources.clear()  # before the workers end: nobody waits for room any more
            self._ring()
            nursery.cancel_scope.cancel()
        return complete

    def add_source(self, peer: PeerId) -> None:
        """Ask one peer more, unless it has been asked before or there are enough."""
        if self._nursery is not None and peer not in self._known and len(self._sources) < MOST_SOURCES:
            self._known.add(peer)
            self._sources[peer] = None
            self._start(self._nursery, peer)

    def _start(self, nursery: trio.Nursery, peer: PeerId) -> None:
        for _ in range(_REQUESTS_PER_PEER):
            nursery.start_soon(self._ask, peer)

    async def add(self, names: Sequence[Hash]) -> bool:
        """Name the blocks that follow; waits while many are to come. False when the download has ended."""
        while len(self._batches) >= _QUEUE and self._sources:
            await self._changed.wait()
        self._batches += [_Batch(tuple(names[at : at + BATCH]), {}) for at in range(0, len(names), BATCH)]
        self._ring()
        return bool(self._sources)

    def finish(self) -> None:
        """Say that no more names follow."""
        self._finished = True
        self._ring()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _take_in(self) -> bool:
        """Hand over one batch after the other, each once it is there."""
        while True:
            if not self._batches and self._finished:
                return True
            if ready := self._ready():
                await self._hand_over(ready)
            elif not self._sources:
                return False
            else:
                await self._changed.wait()

    def _ready(self) -> list[_Batch]:
        """Give the first batches as far as they are there and from one peer: together they are one trip to the disk."""
        ready: list[_Batch] = []
        for batch in self._batches[:_AT_ONCE]:
            if batch.blocks is None or (ready and batch.giver != ready[0].giver):
                break
            ready.append(batch)
            if len(batch.blocks) < len(batch.names):
                break  # what follows would have to wait for what is missing
        return ready

    async def _hand_over(self, ready: list[_Batch]) -> None:
        giver = ready[0].giver
        assert giver is not None  # noqa: S101 - for the type checker: who gave the blocks was noted with them
        try:
            await self._chain.submit_all([block for batch in ready for block in batch.blocks or ()], giver)
        except ProtocolError as error:  # another peer may have the true body
            self._drop(giver, error)
            name = error.block_hash if isinstance(error, InvalidBlock) else None
            bad = next((batch for batch in ready if name in batch.names), ready[0])
            bad.blocks = None
            ready = ready[: ready.index(bad)]
        for batch in ready:
            self._take_off(batch, giver)
        self._ring()

    def _take_off(self, batch: _Batch, giver: PeerId) -> None:
        """Note that the blocks of a batch were taken in; those that the peer lacks are still to come."""
        blocks, batch.blocks = batch.blocks or [], None
        self.came += len(blocks)
        self.gave.add(giver)
        got = {header_hash(block.header) for block in blocks} if len(blocks) < len(batch.names) else batch.names
        batch.names = tuple(name for name in batch.names if name not in got)
        if batch.names:
            self._drop(giver, None)
        else:
            del self._batches[0]
            self._give_up_on(batch.asked)

    def _give_up_on(self, asked: dict[PeerId, _Request]) -> None:
        """End what a valid answer has made idle; whoever took much longer than others do gets no more to do."""
        for peer, request in asked.items():
            request.scope.cancel()
            if trio.current_time() - request.since >= patience(self._usual):
                self._drop(peer, None)

    def _drop(self, peer: PeerId, failure: Failure | None) -> None:
        """Ask a peer no more."""
        self._sources.pop(peer, None)
        if failure is not None:
            self.failed.setdefault(peer, failure)
        self._ring()

    async def _ask(self, peer: PeerId) -> None:
        """Fetch one batch after the other from one peer, until it fails."""
        while peer in self._sources:
            batch = self._choose(peer)
            if batch is None:
                with trio.move_on_at(self._next_hedge(peer)):
                    await self._changed.wait()
                continue
            batch.asked[peer] = request = _Request(trio.current_time(), trio.CancelScope())
            blocks: list[Block] = []
            failure: Failure | None = None
            try:
                with request.scope:
                    await self._fetch(peer, batch.names, blocks)
            except ProtocolError as error:
                self._drop(peer, error)
                return
            except ServiceError as error:
                failure = error
            finally:
                del batch.asked[peer]
            if request.scope.cancelled_caught:
                continue
            if blocks and failure is None:
                took = trio.current_time() - request.since
                self._usual = (self._usual + took) / 2 if self._usual else took
            if blocks and batch.blocks is None and peer in self._sources:  # else another was quicker, or it has lied
                batch.blocks, batch.giver = blocks, peer
                self._ring()
            if failure is not None or not blocks:
                self._drop(peer, failure)

    def _choose(self, peer: PeerId) -> _Batch | None:
        window = [batch for batch in self._batches[:_AHEAD] if batch.blocks is None]
        for batch in window:
            if not batch.asked:
                return batch
        return window[0] if trio.current_time() >= self._next_hedge(peer) else None

    def _next_hedge(self, peer: PeerId) -> float:
        """Tell when a peer is asked for the first missing batch as well, which another one takes long to give."""
        batch = next((batch for batch in self._batches[:_AHEAD] if batch.blocks is None), None)
        if batch is None or peer in batch.asked or len(batch.asked) != 1:
            return math.inf
        [request] = batch.asked.values()
        return request.since + patience(self._usual)
