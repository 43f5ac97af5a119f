"""The miner: writes a paragraph while its worker searches, and drops both at once when another block wins.

S0's race, with the work made checkable: the time of a round is the longer of generation and search. A block is durable
here before anyone hears of it, so a restart never signs a second header on the same parent.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from loremesh.backends.base import Backend, Draft
from loremesh.backends.prompt import ParagraphRequest
from loremesh.errors import BackendError, InvalidBlock
from loremesh.primitives import Hash, Height, Millis, Target
from loremesh.protocol.block import Block
from loremesh.protocol.identity import Identity, digest
from loremesh.protocol.production import Parent, paragraph, produce
from loremesh.protocol.state import State
from loremesh.protocol.validation import earliest_time, target_after
from loremesh.protocol.work import search_prefix
from loremesh.services.chain import ChainService
from loremesh.services.happenings import Clock

logger = logging.getLogger("loremesh.miner")

SUGGESTIONS_PER_PROMPT: Final = 2
_RETRY: Final = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds to wait after a backend failed, longer each time."""
_KEEP_TIMEOUT: Final = 2.0
_LOOK_AT_CLOCK: Final = 1.0
"""Seconds after which the clock is looked at again while it is too early for a block: it may have been set."""


class Search(Protocol):
    """What the miner needs of the worker process."""

    async def find(self, prefix: bytes, target: Target) -> int:
        """Search until found; stop when cancelled."""


class Canon(Protocol):
    """Gives the newest paragraphs of the canon, oldest first."""

    async def __call__(self, tip: Hash, most: int) -> tuple[str, ...]:
        """Give at most `most` paragraphs ending with block `tip`."""


class Miner:
    """Mines on the head until cancelled.

    Args:
        identity: Signs the blocks.
        chain: Gives the head, takes the blocks.
        canon: Gives the context for the prompt.
        backend: Writes.
        search: Works.
        publish: Tells the network of a block that is ours and durable.
        clock: Unix milliseconds.
        may_mine: Waits until mining makes sense: somebody is there to race with, and the chain is caught up.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        chain: ChainService,
        canon: Canon,
        backend: Backend,
        search: Search,
        publish: Callable[[Block], Awaitable[None]],
        clock: Clock,
        may_mine: Callable[[], Awaitable[None]],
    ) -> None:
        self._identity = identity
        self._chain = chain
        self._canon = canon
        self._backend = backend
        self._search = search
        self._publish = publish
        self._clock = clock
        self._may_mine = may_mine
        self._signed_on: Hash | None = None

    async def run(self) -> None:
        """Mine round after round until cancelled."""
        await self._may_mine()
        while True:
            block = await self._race()
            if block is not None:
                await self._publish(block)

    async def _race(self) -> Block | None:
        """Play one round: our block if it joined the chain, None if another one won."""
        head = self._chain.head.value
        block = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_round, head, nursery.cancel_scope)
            made = await self._write_and_search()
            # Once signed it is kept, though it is itself the new head that ends this round.
            with trio.move_on_after(_KEEP_TIMEOUT, shield=True):
                block = await self._keep(made)
            nursery.cancel_scope.cancel()
        return block

    async def _end_round(self, head: Hash, scope: trio.CancelScope) -> None:
        """Cancel the round once another block is the head: it is lost, and what was written for it with it."""
        while self._chain.head.value == head:
            await self._chain.head.wait_change()
        scope.cancel()

    async def _write_and_search(self) -> Block:
        parent = self._chain.parent()
        if parent.link.hash == self._signed_on:
            # One header per parent: ours is refused, or still on its way to the disk. Once there it is the head itself.
            await trio.sleep_forever()
        failures = 0
        while True:
            try:
                return await self._make(parent)
            except BackendError as error:
                wait = _RETRY[min(failures, len(_RETRY) - 1)]
                failures += 1
                logger.warning("the backend failed, next try in %.0f s: %s", wait, error)
                await trio.sleep(wait)

    async def _keep(self, block: Block) -> Block | None:
        try:
            await self._chain.submit(block, None)
        except InvalidBlock as error:
            logger.error("our own block was refused: %s", error)  # noqa: TRY400 - the reason is the whole story
            return None
        return block

    async def _make(self, parent: Parent) -> Block:
        genesis = self._chain.store.genesis
        transactions, state = self._chain.choose_transactions(parent)
        suggestions = _most_wanted(state)
        request = await self._request(parent, state, suggestions)
        nonce = 0
        drafts: list[Draft] = []
        failures: list[BackendError] = []
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                try:
                    drafts.append(await self._backend.write(request))
                except BackendError as error:
                    # Not out of the nursery: beside the round's own cancellation it would be lost in a group.
                    failures.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(write)
            prefix = search_prefix(self._chain.store.story, parent.link.hash, self._identity.peer_id)
            nonce = await self._search.find(prefix, target_after(genesis, parent.link))
        if failures:
            raise failures[0]
        earliest = earliest_time(genesis, parent.link, self._identity.peer_id)
        while (ahead := earliest - self._clock()) > 0:  # noqa: ASYNC110 - no event tells that a clock was set
            await trio.sleep(min(ahead / 1000, _LOOK_AT_CLOCK))
        if self._chain.is_overtaken(parent.link.hash):
            await trio.sleep_forever()  # a winner is on its way to the disk: the round ends when it is there
        draft = drafts[0]
        self._signed_on = parent.link.hash
        content = paragraph(
            self._identity.peer_id, draft.text, draft.model, draft.prompt_digest, suggestions, serving=draft.serving
        )
        return produce(
            genesis,
            parent,
            self._identity,
            time=Millis(max(self._clock(), earliest)),
            nonce=nonce,
            content=content,
            transactions=transactions,
        )

    async def _request(self, parent: Parent, state: State, suggestions: tuple[Hash, ...]) -> ParagraphRequest:
        genesis = self._chain.store.genesis
        seed = digest("prompt", self._chain.store.story, parent.link.hash + self._identity.peer_id)
        return ParagraphRequest(
            story=self._chain.store.story,
            title=genesis.title,
            premise=genesis.premise,
            language=genesis.language,
            height=Height(parent.link.height + 1),
            paragraphs=await self._canon(parent.link.hash, genesis.rules.context),
            suggestions=tuple(state.suggestions[name].text for name in suggestions),
            max_words=genesis.rules.words,
            max_context=genesis.rules.context,
            seed=seed,
        )


def _most_wanted(state: State) -> tuple[Hash, ...]:
    """Name the suggestions for the prompt: most supporters first, then the oldest."""
    ranked = sorted(state.suggestions.items(), key=lambda item: (-len(item[1].supporters), item[1].opened_at, item[0]))
    return tuple(name for name, _ in ranked[:SUGGESTIONS_PER_PROMPT])
