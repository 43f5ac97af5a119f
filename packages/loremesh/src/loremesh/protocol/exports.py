"""Evidence for others: sessions as JSON that anybody can check offline, and the check.

Source: docs/receipts.md.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from loremesh.errors import Fault, InvalidMessage, ProtocolError, VoucherMismatch
from loremesh.primitives import Hash, PeerId
from loremesh.protocol.identity import peer_id_text, verify
from loremesh.protocol.journal import Dispute, Entry, EntryKind, SessionAccount, evidence_of
from loremesh.protocol.json_values import (
    elements,
    from_json,
    members,
    read_bytes,
    read_int,
    read_peer_id,
    read_text,
    to_json,
)
from loremesh.protocol.llm import SignedRequest, request_digest
from loremesh.protocol.metering import Count
from loremesh.protocol.receipts import Evidence, PartialReceipt, Receipt, SignedReceipt, check_evidence, check_receipt
from loremesh.protocol.vouchers import SignedVoucher, Voucher, check_voucher, check_voucher_signature

_FULL: Final = frozenset({"receipt", "signature"})
_PARTIAL: Final = _FULL | {"progress", "progress_signature"}
_KEPT: Final = frozenset({"voucher", "asked", "answer", "journal"})
_NOTE: Final = frozenset({"kind", "time", "delivered"})
_SESSION: Final = frozenset(
    {"client", "executor", "session", "tokens", "amount", "countersigned", "before", "receipts", "refusals"}
)
_REFUSAL: Final = frozenset({"time", "request", "refusal"})


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found right, of one session or of a piece of evidence alone."""

    client: PeerId
    executor: PeerId
    session: Hash
    receipts: int = 0
    """Partial ones included."""
    partial: int = 0
    recounted: int = 0
    """Counted again, out of request and answer."""
    vouchers: int = 0
    tokens: int = 0
    amount: int = 0
    """Gwei."""
    countersigned: int = 0
    """Gwei, of receipts whose vouchers were checked against them; of a voucher alone, all that it says."""


# ---- Writing --------------------------------------------------------------------------------------------------------


def session_view(account: SessionAccount, only: Hash | None = None) -> dict[str, Any]:
    """Show a session so that it can be checked.

    Args:
        account: Of a journal.
        only: Show this request's receipt alone, with the voucher that it continued from.
    """
    vouchers = {entry.request: entry.fact for entry in account.vouchers if isinstance(entry.fact, SignedVoucher)}
    places = {request: place for place, request in enumerate(vouchers)}
    # In the order of the vouchers, then what none takes in.
    ordered = sorted(account.receipts, key=lambda entry: places.get(entry.request, len(places)))
    shown = [entry for entry in ordered if only in {None, entry.request}]
    first = places.get(shown[0].request, len(places)) if shown else 0
    bills = [evidence_of(entry).receipt for entry in shown]
    return {
        "client": peer_id_text(account.client),
        "executor": peer_id_text(account.executor),
        "session": account.session.hex(),
        "tokens": sum(bill.tokens for bill in bills),
        "amount": sum(bill.amount for bill in bills),
        "countersigned": sum(bill.amount for bill in bills if bill.request in vouchers),
        "before": to_json(list(vouchers.values())[first - 1]) if first else None,
        "receipts": [
            {
                **to_json(evidence_of(entry)),
                "voucher": to_json(vouchers.get(entry.request)),
                "asked": to_json(entry.exchange.request) if entry.exchange else None,
                "answer": entry.exchange.answer if entry.exchange else None,
                "journal": {"kind": entry.kind, "time": entry.time, "delivered": _delivered(account, entry)},
            }
            for entry in shown
        ],
        "refusals": [
            {"time": entry.time, "request": entry.request.hex(), "refusal": to_json(entry.fact)}
            for entry in account.refusals
            if only in {None, entry.request}
        ],
    }


def _delivered(account: SessionAccount, entry: Entry) -> bool:
    """Tell whether the executor has the voucher for this receipt; an executor's own journal has what it has."""
    where = account.signed_requests if entry.kind is EntryKind.SERVED else account.delivered_requests
    return entry.request in where


# ---- Checking -------------------------------------------------------------------------------------------------------


def check_export(value: object, load_counter: Callable[[], Count]) -> list[Checked]:
    """Check whatever was exported, recomputing all that can be: exactly what was checked is given back.

    Args:
        value: JSON as `parse_json` gives it: `{sessions: […]}`, one session, one receipt or partial receipt, or one
            signed voucher.
        load_counter: Called once, if there is something to count.

    Raises:
        ProtocolError: The first thing that is not right, with its place.
    """
    count = cache(load_counter)
    if not isinstance(value, dict):
        raise InvalidMessage(Fault.WRONG_SHAPE, "no JSON object")
    if "sessions" in value:
        sessions = elements(members(value, "the file", frozenset({"sessions"}))["sessions"], "sessions")
        found = [_check_session(one, f"sessions[{place}]", count) for place, one in enumerate(sessions)]
        if len({(one.client, one.executor, one.session) for one in found}) < len(found):
            raise InvalidMessage(Fault.DUPLICATE, "a session stands twice in the file")
        return found
    if "receipts" in value:
        return [_check_session(value, "session", count)]
    if "receipt" in value:
        return [_check_alone(value, count)]
    signed = from_json(SignedVoucher, value, "voucher")
    with _at("voucher"):
        voucher = check_voucher_signature(signed)
    return [Checked(voucher.client, voucher.executor, voucher.session, vouchers=1, countersigned=voucher.amount)]


def _check_alone(value: dict[str, Any], count: Callable[[], Count]) -> Checked:
    """Check one receipt without its session: whether a voucher beside it takes it in, that alone does not show."""
    members(value, "the file", frozenset(value.keys() & (_PARTIAL | _KEPT)))
    bill = _Bill(value, "receipt", count)
    signed = bill.voucher
    if signed:
        with _at("receipt.voucher"):
            names = bill.receipt.client, bill.receipt.executor, bill.receipt.session
            _check_names(check_voucher_signature(signed), names)
    return replace(bill.checked(vouchers=int(signed is not None)), countersigned=0)


def _check_session(value: object, where: str, count: Callable[[], Count]) -> Checked:
    found = members(value, where, _SESSION)
    client, executor = (read_peer_id(found[name], f"{where}.{name}") for name in ("client", "executor"))
    names = client, executor, Hash(read_bytes(found["session"], f"{where}.session"))
    previous: Voucher | None = None
    if found["before"] is not None:
        signed = from_json(SignedVoucher, found["before"], f"{where}.before")
        with _at(f"{where}.before"):
            previous = check_voucher_signature(signed)
            _check_names(previous, names)
    total = Checked(*names)
    seen = set[Hash]()
    for place, one in enumerate(elements(found["receipts"], f"{where}.receipts")):
        inside = f"{where}.receipts[{place}]"
        members(one, inside, (_PARTIAL if isinstance(one, dict) and "progress" in one else _FULL) | _KEPT)
        bill = _Bill(one, inside, count)
        with _at(inside):
            _check_names(bill.receipt, names)
            if bill.receipt.request in seen:
                raise InvalidMessage(Fault.DUPLICATE, "a receipt of the same request stands before")
            seen.add(bill.receipt.request)
            if bill.voucher:
                previous = check_voucher(bill.voucher, previous, bill.receipt)
        total = _sum(total, bill.checked(vouchers=int(bill.voucher is not None)))
    for name in ("tokens", "amount", "countersigned"):
        claimed = read_int(found[name], f"{where}.{name}")
        if claimed != getattr(total, name):
            raise InvalidMessage(Fault.WRONG_RECEIPT, f"{where}.{name} is {claimed}, expected {getattr(total, name)}")
    _check_refusals(found["refusals"], f"{where}.refusals")
    return total


def _check_names(bill: Voucher | Receipt, names: tuple[PeerId, PeerId, Hash]) -> None:
    for name, expected in zip(("client", "executor", "session"), names, strict=True):
        if getattr(bill, name) != expected:
            raise VoucherMismatch(name, getattr(bill, name), expected)


def _check_refusals(value: object, where: str) -> None:
    """Check the form alone: nobody signs a refusal."""
    for place, one in enumerate(elements(value, where)):
        inside = f"{where}[{place}]"
        found = members(one, inside, _REFUSAL)
        read_int(found["time"], f"{inside}.time")
        read_bytes(found["request"], f"{inside}.request")
        from_json(Dispute, found["refusal"], f"{inside}.refusal")


def _sum(one: Checked, other: Checked) -> Checked:
    return Checked(
        one.client,
        one.executor,
        one.session,
        one.receipts + other.receipts,
        one.partial + other.partial,
        one.recounted + other.recounted,
        one.vouchers + other.vouchers,
        one.tokens + other.tokens,
        one.amount + other.amount,
        one.countersigned + other.countersigned,
    )


class _Bill:
    """One receipt of an export, checked for itself; its voucher is read, and not checked yet."""

    __slots__ = ("evidence", "receipt", "recounted", "voucher")

    def __init__(self, value: dict[str, Any], where: str, count: Callable[[], Count]) -> None:
        kind: type[Evidence] = PartialReceipt if "progress" in value else SignedReceipt
        names = _PARTIAL if kind is PartialReceipt else _FULL
        self.evidence: Evidence = from_json(kind, {key: value[key] for key in value.keys() & names}, where)
        self.receipt = self.evidence.receipt
        voucher, asked, answer = (value.get(name) for name in ("voucher", "asked", "answer"))
        self.voucher = None if voucher is None else from_json(SignedVoucher, voucher, f"{where}.voucher")
        if value.get("journal") is not None:
            _check_note(value["journal"], f"{where}.journal")
        self.recounted = asked is not None
        if (asked is None) is not (answer is None):
            raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} has one of asked and answer")
        with _at(where):
            check_evidence(self.evidence)
        if self.recounted:
            signed = from_json(SignedRequest, asked, f"{where}.asked")
            text = read_text(answer, f"{where}.answer")
            with _at(where):
                verify(signed.signature, request_digest(signed.request), signed.request.client)
                check_receipt(self.evidence, signed.request, text, count())

    def checked(self, vouchers: int) -> Checked:
        """Say what was found right."""
        receipt = self.receipt
        return Checked(
            receipt.client,
            receipt.executor,
            receipt.session,
            receipts=1,
            partial=int(isinstance(self.evidence, PartialReceipt)),
            recounted=int(self.recounted),
            vouchers=vouchers,
            tokens=receipt.tokens,
            amount=receipt.amount,
            countersigned=receipt.amount if vouchers else 0,
        )


def _check_note(value: object, where: str) -> None:
    """Check the form of what a journal says of itself."""
    found = members(value, where, _NOTE)
    read_int(found["time"], f"{where}.time")
    kind = read_text(found["kind"], f"{where}.kind")
    if kind not in {EntryKind.SERVED, EntryKind.RECEIVED} or not isinstance(found["delivered"], bool):
        raise InvalidMessage(Fault.WRONG_SHAPE, f"{where} is no note of a journal")


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Say where it is that something is wrong."""
    try:
        yield
    except ProtocolError as error:
        raise InvalidMessage(error.fault, f"{where}: {error.detail}") from error
