"""Paying: a client counts each call again, countersigns what it finds right, and refuses the rest by name.

A voucher is in the journal before it is sent; one that did not arrive is handed in at the next contact.

Source: docs/protocol/llm.md, "Counting", "Vouchers".
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

from loremesh.errors import Fault, InvalidMessage, ProtocolError, ReceiptMismatch, Unreachable
from loremesh.primitives import KIB, Hash, Millis, PeerId
from loremesh.protocol.codec import decode, shortened
from loremesh.protocol.identity import Identity
from loremesh.protocol.journal import Entry, Exchange, delivered, received, refused, vouched
from loremesh.protocol.llm import LlmRequest, SignedRequest, Transcript
from loremesh.protocol.metering import Count
from loremesh.protocol.receipts import (
    Evidence,
    LlmFinal,
    PartialReceipt,
    Receipt,
    SignedReceipt,
    check_receipt,
    make_receipt,
    partial_receipt,
)
from loremesh.protocol.vouchers import (
    HandIn,
    SignedVoucher,
    VoucherAccepted,
    VoucherRefused,
    next_voucher,
    sign_voucher,
)
from loremesh.protocol.wire import MessageType, seal, unseal
from loremesh.services.counting import Counting
from loremesh.services.happenings import Clock
from loremesh.services.lanes import Lane
from loremesh.services.routing import short_name
from loremesh.storage.journal import Undelivered

T = TypeVar("T")
logger = logging.getLogger("loremesh.calls")

ACKNOWLEDGE: Final = 5.0
"""Seconds for an executor to say that it has a voucher."""
_SEND: Final = 10.0
_MOST_BYTES: Final = 67 * KIB
_REASON_BYTES: Final = 512


class Journal(Protocol):
    """What paying needs of the journal; all of it durable when it returns."""

    async def record(self, *entries: Entry) -> None:
        """Write all entries, or none."""

    async def undelivered(self, executor: PeerId) -> list[Undelivered]:
        """Give the vouchers that an executor has not acknowledged."""


class Paying:
    """Counts, signs and writes down.

    Args:
        identity: Ours, the client's.
        journal: Keeps evidence, vouchers and refusals.
        counting: Counts tokens.
        clock: Unix milliseconds.
        keep: Whether requests and answers are kept as well, so that whoever has the journal can count again.
    """

    def __init__(
        self, identity: Identity, journal: Journal, counting: Counting, clock: Clock, *, keep: bool = False
    ) -> None:
        self._identity = identity
        self._journal = journal
        self._counting = counting
        self._clock = clock
        self._keep = keep
        self._settled = set[PeerId]()
        """Executors to whom nothing of earlier calls is owed, or is just being handed in."""
        self._on_their_way = set[Hash]()
        """Sessions whose newest voucher is being handed in on their own lanes."""

    # counting

    async def check(self, request: LlmRequest, text: str, final: LlmFinal, price: int) -> SignedReceipt:
        """Count a call that ended again.

        Args:
            request: What was asked.
            text: What came.
            final: How it ended.
            price: As accepted.

        Raises:
            ReceiptMismatch: A field is not what it must be.
            InvalidMessage: The signature is no good.
        """
        evidence = SignedReceipt(final.receipt, final.signature)
        await self._count(request, text, lambda count: check_receipt(evidence, request, text, count))
        if final.receipt.price != price:
            raise ReceiptMismatch("price", final.receipt.price, price)
        return evidence

    async def partial(self, request: LlmRequest, transcript: Transcript) -> PartialReceipt:
        """Make the receipt of an answer that broke off; something of it was delivered."""
        now = Millis(self._clock())
        made = await self._count(
            request,
            transcript.text,
            lambda count: partial_receipt(self._identity, request, transcript, count, time=now),
        )
        assert made is not None  # noqa: S101 - our caller has seen text
        return made

    async def recount(self, request: LlmRequest, text: str, price: int, finish: str) -> Receipt:
        """Make the receipt that should have come."""
        now = Millis(self._clock())
        return await self._count(
            request, text, lambda count: make_receipt(request, text, count, price=price, finish=finish, time=now)
        )

    async def _count(self, request: LlmRequest, text: str, work: Callable[[Count], T]) -> T:
        return await self._counting.run(work, len(text) + sum(len(message.content) for message in request.messages))

    # signing

    async def pay(self, lane: Lane, evidence: Evidence, signed: SignedRequest, text: str) -> None:
        """Countersign what was found right, and hand it in on its lane; afterwards whatever else is owed there.

        Raises:
            ProtocolError: The executor broke a rule, or does not take its own receipt.
            Unreachable, DeadlinePassed: It did not say in time that it has the voucher.
            StorageError, MachineError: It could not be written down, and was not sent.
        """
        self._on_their_way.add(lane.session)
        try:
            voucher = await self._write_down(lane, evidence, signed, text)
            await self._hand_over(lane, MessageType.VOUCHER, voucher, voucher, evidence.receipt)
            if lane.executor not in self._settled and not lane.is_over:
                self._settled.add(lane.executor)
                await self._pay_debts(lane)
        except BaseException:
            self._settled.discard(lane.executor)
            raise
        finally:
            self._on_their_way.discard(lane.session)

    async def pay_later(self, lane: Lane, evidence: Evidence, signed: SignedRequest, text: str) -> None:
        """Countersign and write down what a lane delivered before it was lost; it is handed in at the next contact.

        Raises:
            InvalidMessage: OUT_OF_RANGE, the session's amount leaves 64 bits.
            StorageError, MachineError: It could not be written down.
        """
        self._settled.discard(lane.executor)
        await self._write_down(lane, evidence, signed, text)

    async def _write_down(self, lane: Lane, evidence: Evidence, signed: SignedRequest, text: str) -> SignedVoucher:
        receipt, now = evidence.receipt, Millis(self._clock())
        previous = lane.voucher.voucher if lane.voucher is not None else None
        voucher = sign_voucher(self._identity, next_voucher(previous, receipt))
        exchange = Exchange(signed, text) if self._keep else None
        await self._journal.record(received(evidence, now, exchange), vouched(voucher, receipt, now))
        lane.voucher = voucher
        return voucher

    async def refuse(self, lane: Lane, request: LlmRequest, receipt: Receipt, error: ProtocolError) -> None:
        """Write down that we do not sign a receipt, and tell the executor; the session is over.

        Args:
            lane: Of the call.
            request: What was asked.
            receipt: As it was claimed, whoever and whatever it says it is of.
            error: What is wrong with it.
        """
        ours = replace(
            receipt, request=request.id, client=request.client, executor=request.executor, session=request.session
        )
        lane.end()
        await self._journal.record(refused(self._identity.peer_id, ours, error, Millis(self._clock())))
        why = VoucherRefused(shortened(str(error), _REASON_BYTES), (lane.voucher,) if lane.voucher is not None else ())
        await lane.stream.send(self._sealed(lane, MessageType.VOUCHER_REFUSED, why), _SEND)

    async def _pay_debts(self, lane: Lane) -> None:
        """Hand in what this executor has not acknowledged, of sessions that are over."""
        for owed in await self._journal.undelivered(lane.executor):
            voucher = owed.voucher.voucher
            if voucher.client == self._identity.peer_id and voucher.session not in self._on_their_way:
                handed = HandIn.of(owed.evidence, owed.voucher)
                await self._hand_over(lane, MessageType.HAND_IN, handed, owed.voucher, owed.evidence.receipt)

    async def _hand_over(
        self, lane: Lane, kind: MessageType, message: object, voucher: SignedVoucher, receipt: Receipt
    ) -> None:
        await lane.stream.send(self._sealed(lane, kind, message), _SEND)
        frame = await lane.stream.receive(ACKNOWLEDGE, _MOST_BYTES)
        if frame is None:
            raise Unreachable("the executor has ended the stream")
        answer, payload = unseal(frame, lane.executor, self._identity.peer_id)
        now = Millis(self._clock())
        if answer is MessageType.VOUCHER_ACCEPTED:
            if decode(VoucherAccepted, payload).head != voucher.voucher.head:
                raise InvalidMessage(Fault.NOT_AS_ASKED, "another voucher is accepted")
            await self._journal.record(delivered(voucher, receipt, now))
        elif answer is MessageType.VOUCHER_REFUSED:
            reason = decode(VoucherRefused, payload).reason
            await self._journal.record(refused(lane.executor, receipt, reason, now))
            if voucher.voucher.session == lane.session:
                lane.end()
                logger.warning("%s does not take our voucher: %s", short_name(lane.executor), reason)
        else:
            raise InvalidMessage(Fault.UNEXPECTED, f"{answer} in answer to a voucher")

    def _sealed(self, lane: Lane, kind: MessageType, message: object) -> bytes:
        return seal(self._identity, kind, message, self._clock(), lane.executor)
