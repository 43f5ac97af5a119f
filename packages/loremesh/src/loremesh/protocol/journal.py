"""The journal's entries: what a client or an executor wrote down of its calls, and the sums that follow from it.

Entries are facts, in the order in which they were written, and are never changed; every sum is a fold over them.

Source: docs/receipts.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum, unique
from typing import Annotated, Final

from loremesh.errors import Mismatch, ProtocolError
from loremesh.primitives import KIB, Hash, Millis, PeerId
from loremesh.protocol.codec import PeerIdField, Text, schema, shortened
from loremesh.protocol.llm import SignedRequest
from loremesh.protocol.receipts import Evidence, Receipt
from loremesh.protocol.vouchers import SignedVoucher, Voucher, VoucherAccepted

_REASON_BYTES: Final = 512
_VALUE_BYTES: Final = 256


@unique
class EntryKind(StrEnum):
    """What an entry says. The value is what is kept and shown."""

    SERVED = "served"
    """As the executor: evidence of a call that we answered."""
    RECEIVED = "received"
    """As the client: evidence of a call that was answered to us."""
    VOUCHER = "voucher"
    """As either: the client has countersigned."""
    REFUSED = "refused"
    """As either: the client would not sign a receipt, or the executor would not take a voucher."""
    DELIVERED = "delivered"
    """As the client: the executor has said that it has the voucher."""


RECEIPTS: Final = (EntryKind.SERVED, EntryKind.RECEIVED)


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class Dispute:
    """Why somebody would not agree to a bill."""

    by: PeerIdField
    """The client: it would not sign the receipt. The executor: it would not take the voucher."""
    field: Annotated[str, Text(32)]
    """Where the two differ; empty where it is no field."""
    claimed: Annotated[str, Text(_VALUE_BYTES)]
    expected: Annotated[str, Text(_VALUE_BYTES)]
    reason: Annotated[str, Text(_REASON_BYTES)]
    """In words."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was asked and what was answered: whoever has both can count a receipt again."""

    request: SignedRequest
    answer: str


Fact = Evidence | SignedVoucher | VoucherAccepted | Dispute


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact of the journal. The functions below make them."""

    kind: EntryKind
    time: Millis
    """When it was written, by our clock."""
    client: PeerId
    executor: PeerId
    session: Hash
    request: Hash
    """The call that it is about; of a voucher the one that it was signed for."""
    fact: Fact
    exchange: Exchange | None = None
    sequence: int = 0
    """Its place in the journal, from 1; 0: not written yet."""


def served(evidence: Evidence, time: Millis) -> Entry:
    """Say, as the executor, that a call was answered; the evidence is checked."""
    return _about(EntryKind.SERVED, time, evidence.receipt, evidence)


def received(evidence: Evidence, time: Millis, exchange: Exchange | None = None) -> Entry:
    """Say, as the client, that a call was answered; the evidence is checked.

    Args:
        evidence: Of the call.
        time: Our clock.
        exchange: Request and answer, when they are to be kept as well.
    """
    return _about(EntryKind.RECEIVED, time, evidence.receipt, evidence, exchange)


def vouched(signed: SignedVoucher, receipt: Receipt, time: Millis) -> Entry:
    """Say, as either, that the client countersigned up to `receipt`; the voucher is checked."""
    return _about(EntryKind.VOUCHER, time, receipt, signed)


def delivered(signed: SignedVoucher, receipt: Receipt, time: Millis) -> Entry:
    """Say, as the client, that the executor has the voucher that was signed for `receipt`."""
    return _about(EntryKind.DELIVERED, time, receipt, VoucherAccepted(signed.voucher.head))


def refused(by: PeerId, receipt: Receipt, error: ProtocolError | str, time: Millis) -> Entry:
    """Say that `by` did not agree to the bill that ends with `receipt`.

    Args:
        by: The client, of a receipt; the executor, of a voucher.
        receipt: As it was claimed.
        error: What the check raised, or what the other side gave as its reason.
        time: Our clock.
    """
    field, claimed, expected = "", "", ""
    if isinstance(error, Mismatch):
        field, claimed, expected = error.field, _shown(error.claimed), _shown(error.expected)
    fact = Dispute(by, field, claimed, expected, shortened(str(error), _REASON_BYTES))
    return _about(EntryKind.REFUSED, time, receipt, fact)


def _about(kind: EntryKind, time: Millis, receipt: Receipt, fact: Fact, exchange: Exchange | None = None) -> Entry:
    return Entry(kind, time, receipt.client, receipt.executor, receipt.session, receipt.request, fact, exchange)


def _shown(value: object) -> str:
    return shortened(value.hex() if isinstance(value, bytes) else str(value), _VALUE_BYTES)


# ---- Folds ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionAccount:
    """What a journal knows of one session."""

    client: PeerId
    executor: PeerId
    session: Hash
    receipts: tuple[Entry, ...] = ()
    """Served or received, in order."""
    vouchers: tuple[Entry, ...] = ()
    """In order."""
    refusals: tuple[Entry, ...] = ()
    deliveries: tuple[Entry, ...] = ()

    @property
    def voucher(self) -> Voucher | None:
        """The newest claim that the client signed."""
        return _voucher(self.vouchers[-1]) if self.vouchers else None

    @property
    def signed_requests(self) -> frozenset[Hash]:
        """The calls whose receipts the client countersigned."""
        return frozenset(entry.request for entry in self.vouchers)

    @property
    def delivered_requests(self) -> frozenset[Hash]:
        """The calls whose vouchers the executor surely has: each voucher says what those before it said."""
        reached = frozenset(entry.request for entry in self.deliveries)
        last = max((place for place, one in enumerate(self.vouchers) if one.request in reached), default=-1)
        return frozenset(entry.request for entry in self.vouchers[: last + 1])

    @property
    def tokens(self) -> int:
        """Of all receipts."""
        return sum(evidence_of(entry).receipt.tokens for entry in self.receipts)

    @property
    def amount(self) -> int:
        """Gwei that all receipts amount to."""
        return sum(evidence_of(entry).receipt.amount for entry in self.receipts)

    @property
    def countersigned(self) -> int:
        """Gwei of it that the client has countersigned."""
        return self.voucher.amount if self.voucher else 0

    @property
    def unsigned(self) -> tuple[Entry, ...]:
        """The receipts that no voucher takes in."""
        return tuple(entry for entry in self.receipts if entry.request not in self.signed_requests)


def accounts(entries: Iterable[Entry]) -> list[SessionAccount]:
    """Sort entries by session, the session that began first before the others."""
    found: dict[tuple[PeerId, PeerId, Hash], list[Entry]] = {}
    for entry in entries:
        found.setdefault((entry.client, entry.executor, entry.session), []).append(entry)
    return [_account(client, executor, session, several) for (client, executor, session), several in found.items()]


def _account(client: PeerId, executor: PeerId, session: Hash, entries: list[Entry]) -> SessionAccount:
    def of(*kinds: EntryKind) -> tuple[Entry, ...]:
        return tuple(entry for entry in entries if entry.kind in kinds)

    return SessionAccount(
        client,
        executor,
        session,
        receipts=of(*RECEIPTS),
        vouchers=of(EntryKind.VOUCHER),
        refusals=of(EntryKind.REFUSED),
        deliveries=of(EntryKind.DELIVERED),
    )


def evidence_of(entry: Entry) -> Evidence:
    """Give the evidence that a `served` or `received` entry holds.

    Raises:
        TypeError: It is another kind of entry.
    """
    if isinstance(entry.fact, SignedVoucher | VoucherAccepted | Dispute):
        raise TypeError(f"{entry.kind} is no receipt")
    return entry.fact


def _voucher(entry: Entry) -> Voucher:
    if not isinstance(entry.fact, SignedVoucher):
        raise TypeError(f"{entry.kind} is no voucher")
    return entry.fact.voucher
