"""Settling: an executor takes the vouchers of its clients, and writes them down before it says that it has them.

Source: docs/protocol/llm.md, "Vouchers".
"""

import math
from dataclasses import dataclass
from typing import Final, Protocol

from loremesh.errors import Fault, InvalidMessage, ProtocolError
from loremesh.primitives import Hash, Millis, PeerId
from loremesh.protocol.codec import shortened
from loremesh.protocol.identity import Identity
from loremesh.protocol.journal import Entry, refused, served, vouched
from loremesh.protocol.receipts import Evidence, Receipt, check_evidence
from loremesh.protocol.vouchers import (
    HandIn,
    SignedVoucher,
    Voucher,
    VoucherAccepted,
    VoucherRefused,
    check_voucher,
    check_voucher_signature,
)
from loremesh.services.happenings import Clock
from loremesh.storage.journal import Standing

REASON_BYTES: Final = 512


class Journal(Protocol):
    """What serving needs of the journal; all of it durable when it returns."""

    async def record(self, *entries: Entry) -> None:
        """Write all entries, or none."""

    async def is_served(self, client: PeerId, request: Hash) -> bool:
        """Tell whether there is a receipt of a client's request."""

    async def session(self, client: PeerId, executor: PeerId, session: Hash) -> Standing:
        """Tell where a session stands."""


@dataclass(slots=True)
class Lane:
    """What one stream carries: the calls of one session, one after the other."""

    session: Hash | None = None
    """None before the first call."""
    voucher: SignedVoucher | None = None
    """The newest."""
    owed: Receipt | None = None
    """What the client has not countersigned yet."""
    lent: Receipt | None = None
    """The same, of a call that this very stream carried."""
    wait_until: float = math.inf
    """Who asks before, of trio's clock, and is refused, was told to wait; or has a new stream for every call."""


class Settling:
    """Takes vouchers.

    Args:
        identity: Ours, the executor's.
        journal: Keeps them.
        clock: Unix milliseconds.
    """

    def __init__(self, identity: Identity, journal: Journal, clock: Clock) -> None:
        self._me = identity.peer_id
        self._journal = journal
        self._clock = clock

    async def begin(self, lane: Lane, client: PeerId, session: Hash) -> bool:
        """Let a lane carry a session; tell whether it may, which it may not while an older receipt is not signed."""
        standing = await self._journal.session(client, self._me, session)
        lane.session, lane.voucher = session, standing.voucher
        lane.owed = standing.unsigned[0].receipt if standing.unsigned else None
        return lane.owed is None

    async def take_voucher(
        self, lane: Lane, client: PeerId, signed: SignedVoucher
    ) -> VoucherAccepted | tuple[VoucherRefused, ProtocolError | None]:
        """Take the voucher for the last receipt of a lane, or one of long ago.

        Returns:
            What to answer; with a refusal, the fault if it can only be the client's.
        """
        if lane.owed is None or signed.voucher.session != lane.session:
            answer = await self._settle(lane, client, signed, None)
            return answer if isinstance(answer, VoucherAccepted) else (answer, None)
        receipt, now = lane.owed, Millis(self._clock())
        try:
            check_voucher(signed, _unsigned(lane.voucher), receipt)
        except ProtocolError as error:
            await self._journal.record(refused(self._me, receipt, error, now))
            return _refusal(error, lane.voucher), error
        await self._journal.record(vouched(signed, receipt, now))
        lane.voucher, lane.owed, lane.lent = signed, None, None
        return VoucherAccepted(signed.voucher.head)

    async def take_hand_in(self, lane: Lane, client: PeerId, handed: HandIn) -> VoucherAccepted | VoucherRefused:
        """Take a voucher that did not reach us when it was signed, with what it was signed for.

        Raises:
            InvalidMessage: The evidence is no good, or is somebody else's.
        """
        receipt = check_evidence(handed.evidence)
        if (receipt.client, receipt.executor) != (client, self._me):
            raise InvalidMessage(Fault.WRONG_SENDER, "the receipt is somebody else's")
        return await self._settle(lane, client, handed.voucher, handed.evidence)

    async def take_refusal(self, lane: Lane, client: PeerId, why: VoucherRefused) -> None:
        """Write down that a client does not agree to the last receipt."""
        if lane.owed is not None:
            await self._journal.record(refused(client, lane.owed, why.reason, Millis(self._clock())))

    async def _settle(
        self, lane: Lane, client: PeerId, signed: SignedVoucher, evidence: Evidence | None
    ) -> VoucherAccepted | VoucherRefused:
        voucher = signed.voucher
        if (voucher.client, voucher.executor) != (client, self._me):
            raise InvalidMessage(Fault.WRONG_SENDER, "the voucher is somebody else's")
        standing = await self._journal.session(client, self._me, voucher.session)
        last = standing.voucher
        try:
            if last is not None and (signed == last or voucher.receipts < last.voucher.receipts):
                check_voucher_signature(signed)  # the last one says all that it says
                return VoucherAccepted(voucher.head)
            if evidence is None and standing.unsigned:
                evidence = standing.unsigned[0]
            if evidence is None:
                return _refusal("no receipt of this session waits for a voucher", last)
            now = Millis(self._clock())
            check_voucher(signed, _unsigned(last), evidence.receipt)
            await self._journal.record(served(evidence, now), vouched(signed, evidence.receipt, now))
        except ProtocolError as error:
            return _refusal(error, last)
        if voucher.session == lane.session:
            lane.voucher = signed
            if lane.owed is not None and lane.owed.request == evidence.receipt.request:
                lane.owed = lane.lent = None
        return VoucherAccepted(voucher.head)


def _unsigned(signed: SignedVoucher | None) -> Voucher | None:
    return signed.voucher if signed is not None else None


def _refusal(reason: ProtocolError | str, last: SignedVoucher | None) -> VoucherRefused:
    return VoucherRefused(shortened(str(reason), REASON_BYTES), (last,) if last is not None else ())
