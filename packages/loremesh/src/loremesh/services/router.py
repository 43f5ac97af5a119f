"""What a client asks of the mesh, and what it gets: one answer, whoever gave it.

An executor that fails before its first piece is replaced by the next; where one is lost in the middle, the next
continues, so that no byte comes twice. Of an answer that is complete, each executor is paid for what it delivered; a
call that fails costs nothing.

Source: docs/protocol/llm.md, "Mid-stream"; docs/routing.md.
"""

import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, Protocol

import trio

from loremesh.backends.chat import Deliver
from loremesh.errors import (
    CallFailed,
    DeadlinePassed,
    ErrorKind,
    ExecutorBusy,
    MachineError,
    NoExecutor,
    ProtocolError,
    ServiceError,
    StorageError,
    Unreachable,
)
from loremesh.primitives import Millis, PeerId
from loremesh.protocol.cards import CapabilityCard
from loremesh.protocol.content.paragraph import fold_paragraph
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import (
    LONGEST_CALL,
    Serving,
    SignedServing,
    check_serving,
    prompt_digest,
    sign_request,
    text_digest,
)
from loremesh.protocol.receipts import LENGTH, STOP, Evidence, LlmFinal, Receipt, SignedReceipt
from loremesh.services.attempt import Attempt
from loremesh.services.chats import Answer, Chat, OpenCall, Usage
from loremesh.services.counting import Counting
from loremesh.services.happenings import Clock
from loremesh.services.lanes import Lane, Lanes
from loremesh.services.latest import Latest
from loremesh.services.paying import Paying
from loremesh.services.routing import (
    Choice,
    Track,
    Wish,
    on_busy,
    on_failure,
    on_fault,
    on_success,
    rank,
    short_name,
)

__all__ = ["Answer", "Chat", "Router", "Usage"]

logger = logging.getLogger("loremesh.calls")

MOST_ATTEMPTS: Final = 8
"""Executors that one call may ask."""
MOST_PATIENCE: Final = 5.0
"""Seconds that a call waits for executors that are all busy."""
_ABOUT_THE_REQUEST: Final = frozenset({ErrorKind.BAD_REQUEST, ErrorKind.CONTEXT_TOO_LONG, ErrorKind.TOO_EXPENSIVE})
_EXHAUSTED: Final = 300.0
_LONGEST_DEADLINE: Final = LONGEST_CALL / 1000


class Finder(Protocol):
    """Who knows executors."""

    async def find(self, model: str) -> tuple[CapabilityCard, ...]:
        """Give the fresh cards of those who serve a model, at least one.

        Raises:
            UnsupportedModel: There are executors, and none serves it.
            NoExecutor: There are none.
        """


class _NotDelivered(Exception):
    """What takes the pieces has failed, which is nobody's fault here."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Router:
    """Answers chats. It lives in `run`.

    Args:
        identity: Ours.
        finder: Knows executors.
        lanes: Streams to them; they run beside.
        paying: Counts and signs.
        counting: Counts tokens.
        clock: Unix milliseconds.
        chance: Which strangers get a turn.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        finder: Finder,
        lanes: Lanes,
        paying: Paying,
        counting: Counting,
        clock: Clock,
        chance: random.Random | None = None,
    ) -> None:
        self.tracks: dict[PeerId, Track] = {}
        self._identity = identity
        self._finder = finder
        self._lanes = lanes
        self._paying = paying
        self._counting = counting
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - for taking turns
        self._nursery: trio.Nursery | None = None
        self._bills = Latest(0)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Settle bills in the background until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def settle(self, seconds: float) -> None:
        """Wait until all bills are settled, at most so many seconds; the others are handed in at the next contact."""
        with trio.move_on_after(seconds):
            while self._bills.value:
                await self._bills.wait_change()

    async def call(self, chat: Chat, deliver: Deliver) -> Answer:
        """Have a chat answered; cancelling gives the call up, on the executor too.

        Args:
            chat: What is asked.
            deliver: Takes each piece as it comes, whoever it is from.

        Raises:
            UnsupportedModel, NoExecutor, ExecutorBusy, CallFailed: There is no answer, or no whole one.
            DeadlinePassed: The chat's deadline.
        """
        seconds = min(chat.deadline, _LONGEST_DEADLINE)
        call = OpenCall(chat, trio.current_time() + seconds)
        call.check(self._identity.peer_id, Millis(self._clock()))
        try:
            with trio.move_on_at(call.expires):
                return await self._answer(call, deliver)
        except _NotDelivered as wrapped:
            raise wrapped.error from None
        raise DeadlinePassed("; ".join((f"no whole answer within {seconds:g} s", *call.outcomes)))

    # choosing

    async def _answer(self, call: OpenCall, deliver: Deliver) -> Answer:
        turns = 0
        while True:
            cards = [self._as_of_now(card) for card in await self._finder.find(call.chat.model)]
            draws = [self._chance.random() for _ in range(len(cards) + 1)]
            wish = Wish(call.chat.model, call.chat.max_price)
            choices = rank(cards, self.tracks, wish, trio.current_time(), draws)
            call.considered = call.considered or tuple(map(str, choices))
            if all(offer.price > wish.max_price for card in cards for offer in card.models if offer.id == wish.model):
                raise CallFailed(ErrorKind.TOO_EXPENSIVE, "; ".join(call.considered))
            usable = [choice for choice in choices if choice.score and choice.executor not in call.failed]
            usable.sort(key=lambda choice: not self._lanes.has_room(choice.executor))
            for choice in usable:
                if len(call.outcomes) == MOST_ATTEMPTS:
                    raise self._failure(call, self._soonest(call, choices))
                final = await self._ask(call, choice.executor, deliver)
                if final is not None or call.tokens >= call.chat.max_tokens:
                    return await self._complete(call, final)
            wait = self._soonest(call, choices)
            if wait > MOST_PATIENCE or turns == MOST_ATTEMPTS or trio.current_time() + wait >= call.expires:
                raise self._failure(call, wait)
            turns += 1
            await trio.sleep(wait)

    def _as_of_now(self, card: CapabilityCard) -> CapabilityCard:
        """Put on a card, which may be a while old, the calls that run from here: a burst spreads at once."""
        ours = self._lanes.in_use(card.peer_id)
        return replace(card, running=ours) if ours > card.running else card

    def _soonest(self, call: OpenCall, choices: Sequence[Choice]) -> float:
        """Tell in how many seconds the first executor is free that merely is busy."""
        now = trio.current_time()
        names = {choice.executor for choice in choices} - call.failed
        free = [track.busy_until - now for name in names if (track := self.tracks.get(name)) is not None]
        return min((seconds for seconds in free if seconds > 0), default=math.inf)

    def _failure(self, call: OpenCall, wait: float) -> ServiceError:
        """Say why there is no answer: what is wrong with the request, else that all are busy, else who did what."""
        about_it = [one for one in call.failures if isinstance(one, CallFailed) and one.kind in _ABOUT_THE_REQUEST]
        if about_it and len(about_it) == len(call.failures):
            return about_it[-1]
        wait = min(wait, call.retry_after)
        if wait < math.inf and not call.failures:
            return ExecutorBusy("; ".join(("all who serve this model are busy", *call.outcomes)), wait)
        what = "the executor was lost, and nobody could continue the answer" if call.text else "no executor answered"
        return NoExecutor(what, tuple(call.outcomes) or call.considered)

    # asking

    async def _ask(self, call: OpenCall, executor: PeerId, deliver: Deliver) -> LlmFinal | None:
        """Ask one executor for the rest of the answer; None when it failed, which is noted."""
        while True:
            try:
                lane = await self._lanes.take(executor, MOST_PATIENCE)
            except ExecutorBusy as crowded:
                call.note(executor, str(crowded))
                call.retry_after = crowded.retry_after
                return None
            except ServiceError as error:
                self._on_failure(call, executor, error)
                return None
            request = call.request(self._identity.peer_id, executor, lane.session, Millis(self._clock()))
            attempt = Attempt(
                self._identity, lane, sign_request(self._identity, request), self._clock, is_whole=call.chat.is_whole
            )
            try:
                final = await attempt.run(_guarded(deliver))
            except (ProtocolError, ServiceError) as error:
                if isinstance(error, ExecutorBusy):
                    self._lanes.on_busy(lane, error.retry_after)
                self._leave(lane, is_usable=isinstance(error, CallFailed) and not attempt.has_text)
                if isinstance(error, Unreachable) and not attempt.was_heard and lane.calls > 1:
                    self._lanes.forget(executor)  # it had ended while it rested: a new one shows if anybody is there
                    continue
                await self._on_lost(call, attempt)
                self._on_failure(call, executor, error)
                return None
            except BaseException:
                self._leave(lane, is_usable=False)
                if trio.current_time() >= call.expires:
                    self._track(executor, on_failure, trio.current_time(), "too slow")
                raise
            call.parts.append(attempt)
            call.text += attempt.text
            return final

    def _leave(self, lane: Lane, *, is_usable: bool) -> None:
        if not is_usable:
            lane.give_up()
        self._lanes.give_back(lane)

    async def _on_lost(self, call: OpenCall, attempt: Attempt) -> None:
        """Keep what was delivered; the next one continues there."""
        if attempt.has_text:
            call.parts.append(attempt)
            call.text += attempt.text
            text = call.text
            call.tokens = await self._counting.run(lambda count: count(text), len(text))
            if call.tokens < call.chat.max_tokens:
                call.check(self._identity.peer_id, Millis(self._clock()))

    def _on_failure(self, call: OpenCall, executor: PeerId, error: ProtocolError | ServiceError) -> None:
        now = trio.current_time()
        call.note(executor, f"{type(error).__name__}: {error}" if isinstance(error, ProtocolError) else str(error))
        logger.debug("%s did not answer: %s", short_name(executor), error)
        if isinstance(error, ExecutorBusy):
            self._track(executor, on_busy, now, error.retry_after)
            call.retry_after = error.retry_after
            return
        call.failed.add(executor)
        call.failures.append(error)
        if isinstance(error, ProtocolError):
            self._track(executor, on_fault, now, str(error))
        elif isinstance(error, CallFailed) and error.kind is ErrorKind.EXHAUSTED:
            self._track(executor, on_busy, now, _EXHAUSTED)
        elif not (isinstance(error, CallFailed) and error.kind in _ABOUT_THE_REQUEST):
            self._track(executor, on_failure, now, str(error))

    def _track(self, executor: PeerId, change: Callable[..., Track], *facts: object) -> None:
        self.tracks[executor] = change(self.tracks.get(executor, Track()), *facts)

    # ending

    async def _complete(self, call: OpenCall, final: LlmFinal | None) -> Answer:
        """Count everything again, and give the answer; what is right is signed beside, and what is not refused.

        Args:
            call: All of its parts are there.
            final: How the last part ended; None: it was lost, but as much was delivered as was asked for.
        """
        lost = call.parts if final is None else call.parts[:-1]
        with ExitStack() as stack:
            if final is not None:
                stack.callback(self._leave, call.parts[-1].lane, is_usable=False)
            partial = [await self._paying.partial(part.request, part.transcript) for part in lost]
            end = await self._check(call.parts[-1], final) if final is not None else None
            stack.pop_all()
        evidence: list[Evidence] = [*partial]
        for part, one in zip(lost, partial, strict=True):
            self._beside(part.lane, self._paying.pay_later, part.lane, one, part.signed, part.text)
        receipts = [one.receipt for one in partial]
        if end is not None:
            evidence += [end.evidence] if end.evidence is not None else []
            receipts.append(end.receipt)
            self._settle_end(call, end)
        return Answer(
            text=call.text,
            model=call.chat.model,
            executors=tuple(part.lane.executor for part in call.parts),
            usage=Usage(sum(one.prompt_tokens for one in receipts), sum(one.completion_tokens for one in receipts)),
            finish=LENGTH if end is None else end.receipt.finish,
            evidence=tuple(evidence),
            backend_usage=final.usage[0] if final is not None and final.usage else None,
            served=_statement(call, final) if final is not None else None,
            attempts=call.attempts,
            warnings=() if end is None or end.error is None else (f"the bill is not signed: {end.error}",),
        )

    async def _check(self, attempt: Attempt, final: LlmFinal) -> "_End":
        price = attempt.transcript.progress.price
        try:
            evidence = await self._paying.check(attempt.request, attempt.text, final, price)
        except ProtocolError as error:
            finish = final.receipt.finish if final.receipt.finish in {STOP, LENGTH} else STOP
            receipt = await self._paying.recount(attempt.request, attempt.text, price, finish)
            return _End(attempt, final.receipt, receipt, None, error)
        return _End(attempt, final.receipt, final.receipt, evidence, None)

    def _settle_end(self, call: OpenCall, end: "_End") -> None:
        attempt, lane = end.attempt, end.attempt.lane
        if end.error is not None:
            call.note(lane.executor, f"answered, and counted wrongly: {end.error}")
            self._track(lane.executor, on_fault, trio.current_time(), str(end.error))
            self._beside(lane, self._paying.refuse, lane, attempt.request, end.claimed, end.error, gives_back=True)
        elif end.evidence is not None:
            first = attempt.last if attempt.first is None else attempt.first
            call.note(lane.executor, f"answered, first piece after {first:.2f} s")
            self._track(lane.executor, on_success, first, attempt.rate)
            self._beside(lane, self._paying.pay, lane, end.evidence, attempt.signed, attempt.text, gives_back=True)

    def _beside(
        self, lane: Lane, work: Callable[..., Awaitable[None]], *args: object, gives_back: bool = False
    ) -> None:
        assert self._nursery is not None  # noqa: S101 - calls are made while `run` runs
        self._bills.set(self._bills.value + 1)
        self._nursery.start_soon(self._settle, lane, work, args, gives_back)

    async def _settle(
        self,
        lane: Lane,
        work: Callable[..., Awaitable[None]],
        args: tuple[object, ...],
        gives_back: bool,  # noqa: FBT001 - start_soon passes positions
    ) -> None:
        is_done = False
        try:
            await work(*args)
            is_done = True
        except ProtocolError as error:
            logger.warning("%s, when it was to be paid: %s", short_name(lane.executor), error)
            self._track(lane.executor, on_fault, trio.current_time(), str(error))
        except (StorageError, MachineError) as error:
            logger.error("a bill is not signed, for it cannot be written down: %s", error)  # noqa: TRY400 - one line
        except ServiceError as error:
            logger.info("%s will get its voucher later: %s", short_name(lane.executor), error)
        finally:
            if gives_back:
                self._leave(lane, is_usable=is_done)
            self._bills.set(self._bills.value - 1)


@dataclass(frozen=True, slots=True)
class _End:
    """How an answer ended, counted again."""

    attempt: Attempt
    claimed: Receipt
    receipt: Receipt
    """What holds: the executor's, or ours where that is wrong."""
    evidence: SignedReceipt | None
    error: ProtocolError | None
    """Why it is not signed."""


def _guarded(deliver: Deliver) -> Deliver:
    async def guarded(text: str) -> None:
        try:
            await deliver(text)
        except Exception as error:
            raise _NotDelivered(error) from error

    return guarded


def _statement(call: OpenCall, final: LlmFinal) -> SignedServing | None:
    """Give the serving statement if it says what is the case, of an answer that one executor wrote alone."""
    (first, *more), words = call.parts, call.chat.fold_words
    folded = fold_paragraph(call.text, words) if words else None
    if folded is None or more or not final.served:
        return None
    signed, request = final.served[0], first.request
    true = Serving(request.executor, request.id, request.model, prompt_digest(request.messages), text_digest(folded))
    try:
        return signed if check_serving(signed) == true else None
    except ProtocolError:
        return None
