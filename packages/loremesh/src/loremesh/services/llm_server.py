"""The executor's side of calls to models: takes requests, lets a backend answer, signs, counts, writes down, is paid.

A call is answered in full, or ends in an error that says why. What is billed is durable before the client hears of it.

Source: docs/protocol/llm.md, "A call"; docs/executor.md, "Serving".
"""

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from loremesh.backends.chat import WHOLE_SECONDS, ChatEnd, in_pieces
from loremesh.errors import (
    BackendBusy,
    BackendError,
    BackendExhausted,
    BackendTimeout,
    ErrorKind,
    Fault,
    InvalidMessage,
    MachineError,
    ProtocolError,
    ServiceError,
    StorageError,
)
from loremesh.network.frames import Stream
from loremesh.primitives import KIB, Hash, Millis, PeerId
from loremesh.protocol.cards import ModelOffer
from loremesh.protocol.codec import decode, shortened
from loremesh.protocol.identity import Identity
from loremesh.protocol.journal import served
from loremesh.protocol.llm import (
    CLOCK_SKEW,
    MAX_ANSWER_BYTES,
    Accepted,
    Busy,
    LlmError,
    LlmRequest,
    SignedRequest,
    Transcript,
    answer_limit,
    check_request,
    sign_serving,
)
from loremesh.protocol.metering import Count, prompt_tokens
from loremesh.protocol.receipts import LENGTH, LlmFinal, Receipt, make_receipt, sign_receipt
from loremesh.protocol.vouchers import HandIn, SignedVoucher, VoucherAccepted, VoucherRefused
from loremesh.protocol.wire import MessageType, Nothing, seal, unseal
from loremesh.services.attended import AttendedStream, attended
from loremesh.services.call_terms import Offered, Refused, TakenCall, remembering, told, wanted
from loremesh.services.counting import Counting
from loremesh.services.gathering import Leisure, gathering
from loremesh.services.happenings import Clock, Served, Tell
from loremesh.services.latest import Latest
from loremesh.services.refusals import Refusals
from loremesh.services.served_once import ServedOnce
from loremesh.services.settling import REASON_BYTES, Journal, Lane, Settling
from loremesh.services.slots import LATEST, Slots
from loremesh.services.unpaid import MOST_UNPAID, Unpaid

logger = logging.getLogger("loremesh.serving")

_MOST_BYTES: Final = 643 * KIB
_REST: Final = 120.0
"""Seconds that a stream may rest between two calls."""
_SILENCE: Final = 30.0
"""Seconds without a piece of the answer after which a backend is given up."""
_EVERY: Final = 5.0
"""Seconds after which a client that does not read pieces gets what there is, or hears that we are still at it."""
_SEND: Final = 10.0
"""Seconds that a client may take to read a frame."""
_PARTING: Final = 2.0
"""Seconds that a client gets to read why it is cut off."""
_SETTLE: Final = 2.0
_BYTES_OF_A_TOKEN: Final = 3  # fewer than there are: of an answer that broke off rather too much is counted

_OF_FAULT: Final = {
    Fault.WRONG_SENDER: ErrorKind.UNAUTHORISED,
    Fault.BAD_SIGNATURE: ErrorKind.UNAUTHORISED,
    Fault.BAD_KEY: ErrorKind.UNAUTHORISED,
    Fault.EXPIRED: ErrorKind.EXPIRED,
    Fault.FROM_THE_FUTURE: ErrorKind.EXPIRED,
}


class LlmServer:
    """Answers calls; `serve` it for `LLM_PROTOCOL`.

    Args:
        identity: Ours.
        models: Gives what is served now, by the name that clients know.
        journal: Keeps receipts and vouchers.
        clock: Unix milliseconds.
        tell: Hears of every call that was answered.
        counting: Counts tokens.
        answer_limit: Most bytes of an answer; a longer one ends there, as by a limit of the model.
        unpaid_limit: Most tokens that one client may leave unpaid within an hour.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        models: Callable[[], Mapping[str, Offered]],
        journal: Journal,
        clock: Clock,
        tell: Tell,
        counting: Counting | None = None,
        answer_limit: int = MAX_ANSWER_BYTES,
        unpaid_limit: int = MOST_UNPAID,
    ) -> None:
        self.busy = 0
        """Calls that there was no room for."""
        self.errors = Counter[ErrorKind]()
        """Calls that were refused, or failed."""
        self.unpaid = Unpaid(unpaid_limit)
        """What clients took and did not pay for."""
        self.load = Latest(0)
        """Changes with every call that begins or ends."""
        self._identity = identity
        self._models = models
        self._journal = journal
        self._clock = clock
        self._tell = tell
        self._counting = counting or Counting()
        self._answer_limit = answer_limit
        self._settling = Settling(identity, journal, clock)
        self._once = ServedOnce()
        self._sessions = set[tuple[PeerId, Hash]]()
        self._refusals = Refusals()
        self._started = clock()
        self._calls = 0
        self._is_draining = False

    @property
    def offers(self) -> tuple[ModelOffer, ...]:
        """What can be called."""
        return tuple(offered.offer for offered in self._models().values())

    @property
    def running(self) -> int:
        """Slots in use, by mining too."""
        return sum(slots.running for slots in self._all_slots())

    @property
    def slots(self) -> int:
        """Slots altogether; 0 once no calls are taken."""
        return 0 if self._is_draining else sum(slots.size for slots in self._all_slots())

    def close(self) -> None:
        """Take no calls any more."""
        self._is_draining = True
        self.load.set(self._calls)

    async def drain(self, seconds: float) -> None:
        """Wait for the calls that run, at most so many seconds."""
        with trio.move_on_after(seconds):
            while self._calls:
                await self.load.wait_change()

    async def serve(self, stream: Stream) -> None:
        """Answer the calls of one stream, one after the other, until its client leaves or rests too long.

        Raises:
            ProtocolError: The client broke a rule.
            ServiceError: It has left, or reads too slowly.
        """
        lane = Lane()
        try:
            async with attended(stream, _MOST_BYTES) as line:
                await self._converse(line, lane)
                await stream.finish()
        finally:
            if lane.lent is not None:
                self._not_paid(stream.peer_id, lane.lent.price, lane.lent.tokens)
            if lane.session is not None:
                self._sessions.discard((stream.peer_id, lane.session))

    async def _converse(self, line: AttendedStream, lane: Lane) -> None:
        while (frame := await line.next(_REST)) is not None:
            kind, payload = unseal(frame, line.peer_id, self._identity.peer_id)
            match kind:
                case MessageType.LLM_REQUEST | MessageType.LLM_REQUEST_WHOLE:
                    await self._take_call(line, lane, payload, is_whole=kind is MessageType.LLM_REQUEST_WHOLE)
                case MessageType.VOUCHER:
                    lent = lane.lent
                    answer = await self._settling.take_voucher(lane, line.peer_id, decode(SignedVoucher, payload))
                    if not isinstance(answer, VoucherAccepted):
                        await self._send(line, MessageType.VOUCHER_REFUSED, answer[0])
                        await self._part(line, answer[1])
                        return
                    if lent is not None and lane.lent is None:
                        self.unpaid.pay(line.peer_id, lent.tokens)
                    await self._send(line, MessageType.VOUCHER_ACCEPTED, answer)
                case MessageType.HAND_IN:
                    handed = await self._settling.take_hand_in(lane, line.peer_id, decode(HandIn, payload))
                    is_accepted = isinstance(handed, VoucherAccepted)
                    reply = MessageType.VOUCHER_ACCEPTED if is_accepted else MessageType.VOUCHER_REFUSED
                    await self._send(line, reply, handed)
                case MessageType.VOUCHER_REFUSED:
                    await self._settling.take_refusal(lane, line.peer_id, decode(VoucherRefused, payload))
                    return  # the session is over
                case _:
                    raise InvalidMessage(Fault.UNEXPECTED, f"{kind} on the protocol of calls")

    # taking a call

    async def _take_call(self, line: AttendedStream, lane: Lane, payload: bytes, *, is_whole: bool) -> None:
        client = line.peer_id
        is_early = self._refusals.on_call(client, lane)
        try:
            self._refusals.check(client)
            request, offered = await self._check(line.peer_id, lane, payload)
            with offered.slots.client(line.peer_id):
                call = await self._measure(request, offered, is_whole=is_whole)
                async with self._within_cap(call) as spending:
                    if not self._once.take(request.client, request.id, request.expires, Millis(self._clock())):
                        raise _replayed()
                    with self._counted():
                        await self._answer(line, lane, call, spending)
        except BackendBusy as busy:
            self.busy += 1
            self._refusals.note(client, is_early=is_early)
            wait = Millis(math.ceil(self._refusals.wait(client, lane, busy) * 1000))
            await self._send(line, MessageType.LLM_BUSY, Busy(wait, shortened(str(busy), REASON_BYTES)))
        except Refused as refused:
            self._refusals.note(client, is_early=is_early)
            await self._fail(line, refused.kind, refused.message)
            if refused.fault is not None:
                await self._part(line, refused.fault)

    async def _check(self, client: PeerId, lane: Lane, payload: bytes) -> tuple[LlmRequest, Offered]:
        """Check all that needs no slot.

        Raises:
            Refused: Why it is not taken.
            BackendBusy: No calls are taken any more.
        """
        try:
            signed = decode(SignedRequest, payload)
        except InvalidMessage as error:
            raise Refused(ErrorKind.BAD_REQUEST, str(error), error) from error
        try:
            request = check_request(signed, self._identity.peer_id, client, Millis(self._clock()))
        except InvalidMessage as error:
            kind = _OF_FAULT.get(error.fault, ErrorKind.BAD_REQUEST)
            raise Refused(kind, str(error), error if kind is ErrorKind.UNAUTHORISED else None) from error
        if self._is_draining:
            raise BackendBusy("this executor is about to stop", LATEST)
        # What was taken before this process began can only be of before it began.
        is_old = request.time <= self._started + CLOCK_SKEW
        if self._once.is_taken(client, request.id) or (is_old and await self._journal.is_served(client, request.id)):
            raise _replayed()
        models = self._models()
        offered = models.get(request.model)
        if offered is None:
            names = ", ".join(models) or "none"
            raise Refused(ErrorKind.UNSUPPORTED_MODEL, f"{request.model} is not served here; models: {names}")
        if offered.offer.price > request.max_price:
            message = f"the price is {offered.offer.price} gwei per 1,000 tokens"
            raise Refused(ErrorKind.TOO_EXPENSIVE, message)
        if offered.offer.price and (wait := self.unpaid.wait(client)) > 0:
            raise BackendBusy("too much was taken of late and not paid for", wait)
        await self._check_session(lane, request)
        return request, offered

    async def _check_session(self, lane: Lane, request: LlmRequest) -> None:
        name = request.client, request.session
        if lane.session is None:
            if name in self._sessions:
                raise Refused(ErrorKind.BAD_REQUEST, "this session runs on another stream")
            self._sessions.add(name)
            lane.session = request.session
            await self._settling.begin(lane, *name)
        if lane.session != request.session:
            raise Refused(ErrorKind.BAD_REQUEST, "another session needs another stream")
        if lane.owed is not None:
            raise Refused(ErrorKind.UNAUTHORISED, "the voucher for the call before is missing")

    async def _measure(self, request: LlmRequest, offered: Offered, *, is_whole: bool) -> TakenCall:
        tokens: dict[str, int] = {}
        size = sum(len(message.content) for message in request.messages)
        prompt = await self._counting.run(
            lambda count: prompt_tokens(request.messages, remembering(count, tokens)), size
        )
        if prompt >= offered.offer.context:
            message = f"{prompt} tokens; {request.model} takes {offered.offer.context}, the answer included"
            raise Refused(ErrorKind.CONTEXT_TOO_LONG, message)
        return TakenCall(request, offered, tokens, prompt, is_whole)

    @asynccontextmanager
    async def _within_cap(self, call: TakenCall) -> AsyncIterator["_Spending"]:
        """Set aside what a call may take of the day's tokens; afterwards count what it took."""
        cap, spending = call.offered.cap, _Spending()
        if cap is None:
            yield spending
            return
        reserved = call.prompt + call.most
        try:
            day = await cap.reserve(reserved)
        except BackendExhausted as error:
            raise Refused(ErrorKind.EXHAUSTED, str(error)) from error
        try:
            yield spending
        finally:
            with trio.move_on_after(_SETTLE, shield=True):
                await cap.settle(day, reserved, spending.used)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._calls += 1
        self.load.set(self._calls)
        try:
            yield
        finally:
            self._calls -= 1
            self.load.set(self._calls)

    # answering it

    async def _answer(self, line: AttendedStream, lane: Lane, call: TakenCall, spending: "_Spending") -> None:
        request, price = call.request, call.offered.offer.price
        await self._say(line, call, MessageType.LLM_ACCEPTED, Accepted(request.id, price))
        transcript = Transcript(request.id, price, min(self._answer_limit, answer_limit(request.max_tokens)))
        try:
            try:
                with line.watching():
                    end = await self._chat(line, call, transcript)
            finally:
                spending.used = call.prompt + transcript.progress.size // _BYTES_OF_A_TOKEN
            final = await self._conclude(lane, call, transcript.release(), end, spending)
        except BackendError as error:
            if transcript.signature is None and not isinstance(error, BackendTimeout):
                spending.used = 0
            await self._fail(line, *told(error, call))
        except Refused as refused:
            await self._fail(line, refused.kind, refused.message)
        except (ProtocolError, ServiceError):
            self._not_paid(request.client, price, spending.used)  # it has left, or reads no more
            raise
        else:
            await self._send(line, MessageType.LLM_FINAL, final)

    async def _chat(self, line: AttendedStream, call: TakenCall, transcript: Transcript) -> ChatEnd:
        """Let the backend answer, and deliver piece by piece.

        Raises:
            BackendError: As the backend; BackendTimeout when it says nothing for too long.
            Refused: The request's time is over.
            ServiceError: The client takes nothing.
        """
        patience = WHOLE_SECONDS if call.is_whole else _SILENCE
        now = trio.current_time()
        total = now + (call.request.expires - self._clock()) / 1000
        with (
            trio.CancelScope(deadline=total) as whole,
            trio.CancelScope(deadline=now + patience) as silence,
            trio.CancelScope() as enough,
        ):

            async def deliver(text: str) -> None:
                silence.deadline = math.inf
                fits = text.encode()[: transcript.room].decode(errors="ignore")
                for piece in in_pieces(fits):
                    await self._say(line, call, MessageType.LLM_DELTA, transcript.add(self._identity, piece))
                if len(fits) < len(text):
                    enough.cancel()
                    await trio.sleep_forever()
                silence.deadline = trio.current_time() + patience

            leisure = Leisure(_EVERY, partial(self._show_life, line)) if call.is_whole else None
            try:
                return await gathering(partial(call.offered.backend.chat, wanted(call)), deliver, leisure)
            except BackendError:
                if not (whole.cancel_called or silence.cancel_called or enough.cancel_called):
                    raise
        if enough.cancel_called:
            return ChatEnd(LENGTH, None)
        if silence.cancel_called and not whole.cancel_called:
            raise BackendTimeout(f"{call.offered.model} said nothing for {patience:g} s")
        raise Refused(ErrorKind.EXPIRED, "the request's time is over")

    async def _conclude(self, lane: Lane, call: TakenCall, text: str, end: ChatEnd, spending: "_Spending") -> LlmFinal:
        """Count, sign, and write down what is billed.

        Raises:
            Refused: It cannot be written down, and so is not billed.
        """
        request, price = call.request, call.offered.offer.price

        def make(count: Count) -> Receipt:
            known, now = remembering(count, call.tokens), Millis(self._clock())
            return make_receipt(request, text, known, price=price, finish=end.finish, time=now)

        receipt = await self._counting.run(make, len(text))
        usage = (end.usage,) if end.usage is not None else ()
        spending.used = sum(one.prompt_tokens + one.completion_tokens for one in usage) or receipt.tokens
        signed = sign_receipt(self._identity, receipt)
        try:
            await self._journal.record(served(signed, receipt.time))
        except (StorageError, MachineError) as error:
            logger.error("a call was answered and cannot be written down: %s", error)  # noqa: TRY400 - one line
            raise Refused(ErrorKind.BACKEND_FAILED, "the call could not be written down") from error
        lane.owed = lane.lent = receipt
        self._tell(Served(receipt))
        serving = sign_serving(self._identity, request, text)
        return LlmFinal(receipt, signed.signature, usage, (serving,) if serving is not None else ())

    def _not_paid(self, client: PeerId, price: int, tokens: int) -> None:
        if price:
            self.unpaid.leave(client, tokens)

    # saying it

    async def _send(self, line: AttendedStream, kind: MessageType, payload: object) -> None:
        await line.send(_SEND, self._sealed(line, kind, payload))

    async def _say(self, line: AttendedStream, call: TakenCall, kind: MessageType, payload: object) -> None:
        """Send it; to a client that reads the answer when it is whole, with what comes next."""
        if call.is_whole:
            line.hold(self._sealed(line, kind, payload))
        else:
            await self._send(line, kind, payload)

    async def _show_life(self, line: AttendedStream) -> None:
        """Send what is held, or that we are still at it."""
        if line.holds:
            await line.send(_SEND)
        else:
            await self._send(line, MessageType.LLM_WAITING, Nothing())

    def _sealed(self, line: AttendedStream, kind: MessageType, payload: object) -> bytes:
        return seal(self._identity, kind, payload, self._clock(), line.peer_id)

    async def _fail(self, line: AttendedStream, kind: ErrorKind, message: str) -> None:
        self.errors[kind] += 1
        await self._send(line, MessageType.LLM_ERROR, LlmError(kind, shortened(message, REASON_BYTES)))

    async def _part(self, line: AttendedStream, fault: ProtocolError | None) -> None:
        """End the conversation, but let the client read why first; what breaks off takes unread frames with it.

        Raises:
            ProtocolError: `fault`, so that it counts against the client.
        """
        with suppress(ProtocolError, ServiceError), trio.move_on_after(_PARTING):
            await line.stream.finish()
            while await line.next(_PARTING) is not None:
                pass
        if fault is not None:
            raise fault

    def _all_slots(self) -> set[Slots]:
        return {offered.slots for offered in self._models().values()}


@dataclass(slots=True)
class _Spending:
    """What a call took of the day's tokens."""

    used: int = 0


def _replayed() -> Refused:
    return Refused(ErrorKind.REPLAYED, "this request was served before", InvalidMessage(Fault.REPLAYED))
