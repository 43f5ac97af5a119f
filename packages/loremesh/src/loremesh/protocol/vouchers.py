"""Vouchers: one cumulative claim over all receipts of a session, which the client countersigns after each call.

A session is one client, one executor and a random id. Its calls follow one after the other, so its vouchers are
strictly ordered, and the latest says everything; calls side by side have sessions of their own.

Source: docs/protocol/llm.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Annotated, Final, Self

from loremesh.errors import Fault, InvalidMessage, VoucherMismatch
from loremesh.primitives import KIB, Hash, PeerId
from loremesh.protocol.codec import U64, U64_MAX, HashField, Many, PeerIdField, SignatureField, Text, schema
from loremesh.protocol.identity import NO_STORY, Identity, check_peer_id, digest, evm_address_of, verify
from loremesh.protocol.receipts import Evidence, PartialReceipt, Receipt, SignedReceipt, receipt_digest
from loremesh.protocol.typed_data import LOCAL, Domain, signing_digest, struct_type


@schema(version=1, limit=512)
@dataclass(frozen=True, slots=True)
class Voucher:
    """The cumulative claim of one session: an executor's receipts for one client, in order."""

    client: PeerIdField
    executor: PeerIdField
    session: HashField
    receipts: U64
    """How many."""
    tokens: U64
    amount: U64
    """Gwei."""
    head: HashField
    """The hash chain over the receipts' digests."""


@schema(version=1, limit=640)
@dataclass(frozen=True, slots=True)
class SignedVoucher:
    """A voucher and its client's signature."""

    voucher: Voucher
    signature: SignatureField


@schema(version=1, limit=3 * KIB)
@dataclass(frozen=True, slots=True)
class HandIn:
    """A voucher that its executor has not acknowledged, and the evidence that it was signed for: one of the two."""

    receipts: Annotated[tuple[SignedReceipt, ...], Many(1)]
    partial: Annotated[tuple[PartialReceipt, ...], Many(1)]
    voucher: SignedVoucher

    @classmethod
    def of(cls, evidence: Evidence, voucher: SignedVoucher) -> Self:
        """Put the two together."""
        if isinstance(evidence, SignedReceipt):
            return cls((evidence,), (), voucher)
        return cls((), (evidence,), voucher)

    @property
    def evidence(self) -> Evidence:
        """What the voucher was signed for.

        Raises:
            InvalidMessage: WRONG_SHAPE, there is none, or there are two.
        """
        evidence: tuple[Evidence, ...] = (*self.receipts, *self.partial)
        if len(evidence) != 1:
            raise InvalidMessage(Fault.WRONG_SHAPE, "a hand-in has one receipt")
        return evidence[0]


@schema(version=1, limit=64)
@dataclass(frozen=True, slots=True)
class VoucherAccepted:
    """The executor has written the voucher down."""

    head: HashField


@schema(version=1, limit=2 * KIB)
@dataclass(frozen=True, slots=True)
class VoucherRefused:
    """The voucher is not what the executor counted; the session ends."""

    reason: Annotated[str, Text(512)]
    last: Annotated[tuple[SignedVoucher, ...], Many(1)]
    """The last one that the executor accepted in this session."""


_VOUCHER: Final = struct_type(
    "Voucher",
    ("address", "client"),
    ("address", "executor"),
    ("bytes32", "session"),
    ("uint64", "receipts"),
    ("uint64", "tokens"),
    ("uint64", "amount"),
    ("bytes32", "head"),
)


def voucher_digest(voucher: Voucher, domain: Domain = LOCAL) -> Hash:
    """Give what a client signs of a session: the EIP-712 digest."""
    return signing_digest(
        domain,
        _VOUCHER,
        evm_address_of(voucher.client),
        evm_address_of(voucher.executor),
        voucher.session,
        voucher.receipts,
        voucher.tokens,
        voucher.amount,
        voucher.head,
    )


def next_voucher(previous: Voucher | None, receipt: Receipt, domain: Domain = LOCAL) -> Voucher:
    """Add a receipt to a session's claim.

    Args:
        previous: The session's voucher before it; None for its first receipt.
        receipt: Checked.
        domain: Of the receipt's digest.

    Raises:
        VoucherMismatch: `previous` is of another client, executor or session.
        InvalidMessage: OUT_OF_RANGE, the sum leaves 64 bits.
    """
    before = previous or Voucher(receipt.client, receipt.executor, receipt.session, 0, 0, 0, NO_STORY)
    for name in ("client", "executor", "session"):
        claimed, expected = getattr(receipt, name), getattr(before, name)
        if claimed != expected:
            raise VoucherMismatch(name, claimed, expected)
    amount = before.amount + receipt.amount
    if amount > U64_MAX:
        raise InvalidMessage(Fault.OUT_OF_RANGE, "a session's amount leaves 64 bits")
    head = digest("receipt-chain", NO_STORY, before.head + receipt_digest(receipt, domain))
    return Voucher(
        before.client,
        before.executor,
        before.session,
        before.receipts + 1,
        before.tokens + receipt.tokens,
        amount,
        head,
    )


def voucher_of(receipts: Iterable[Receipt], domain: Domain = LOCAL) -> Voucher | None:
    """Give the voucher that a session's receipts amount to, in their order; None without receipts.

    Raises:
        VoucherMismatch: They are not all of one session.
        InvalidMessage: As `next_voucher`.
    """

    def add(voucher: Voucher | None, receipt: Receipt) -> Voucher | None:
        return next_voucher(voucher, receipt, domain)

    return reduce(add, receipts, None)


def sign_voucher(identity: Identity, voucher: Voucher, domain: Domain = LOCAL) -> SignedVoucher:
    """Countersign a session's claim as its client."""
    return SignedVoucher(voucher, identity.sign(voucher_digest(voucher, domain)))


def check_voucher_signature(signed: SignedVoucher, domain: Domain = LOCAL) -> Voucher:
    """Check that a voucher's client signed it; give the voucher.

    Raises:
        InvalidMessage: BAD_KEY or BAD_SIGNATURE.
    """
    check_peer_id(signed.voucher.client)
    check_peer_id(signed.voucher.executor)
    verify(signed.signature, voucher_digest(signed.voucher, domain), signed.voucher.client)
    return signed.voucher


def check_voucher(signed: SignedVoucher, previous: Voucher | None, receipt: Receipt, domain: Domain = LOCAL) -> Voucher:
    """Check that a voucher is the one that follows, as its executor; give the voucher.

    Args:
        signed: As it came.
        previous: The session's voucher before it; None for its first receipt.
        receipt: What was served since.
        domain: Where the signatures must hold.

    Raises:
        VoucherMismatch: The first field that differs.
        InvalidMessage: BAD_SIGNATURE; or as `next_voucher`.
    """
    expected = next_voucher(previous, receipt, domain)
    for field in fields(Voucher):
        claimed, counted = getattr(signed.voucher, field.name), getattr(expected, field.name)
        if claimed != counted:
            raise VoucherMismatch(field.name, claimed, counted)
    return check_voucher_signature(signed, domain)


@dataclass(frozen=True, slots=True)
class Balance:
    """What stands between one client and one executor."""

    receipts: int = 0
    """How many there are."""
    tokens: int = 0
    amount: int = 0
    """Gwei that the receipts amount to."""
    vouched: int = 0
    """Gwei of it that the client has countersigned."""


def balances(receipts: Iterable[Receipt], vouchers: Iterable[Voucher]) -> dict[tuple[PeerId, PeerId], Balance]:
    """Sum up what is known, by client and executor. Nothing counts twice, and no order matters.

    Args:
        receipts: Checked; of one request's receipts the greatest counts.
        vouchers: Checked; the greatest of a session counts.
    """
    totals: dict[tuple[PeerId, PeerId], Balance] = {}
    by_amount = sorted(receipts, key=lambda receipt: receipt.amount)
    for receipt in {(one.client, one.executor, one.request): one for one in by_amount}.values():
        pair = receipt.client, receipt.executor
        old = totals.get(pair, Balance())
        totals[pair] = Balance(old.receipts + 1, old.tokens + receipt.tokens, old.amount + receipt.amount, old.vouched)
    greatest: dict[tuple[PeerId, PeerId, Hash], int] = {}
    for voucher in vouchers:
        session = voucher.client, voucher.executor, voucher.session
        greatest[session] = max(voucher.amount, greatest.get(session, 0))
    for (client, executor, _), amount in greatest.items():
        old = totals.get((client, executor), Balance())
        totals[client, executor] = Balance(old.receipts, old.tokens, old.amount, old.vouched + amount)
    return totals
