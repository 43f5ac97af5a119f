"""What `loremesh receipts` and `loremesh-executor journal` share: reading journals, and explaining every entry."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from loremesh.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from loremesh.primitives import Hash, Millis
    from loremesh.protocol.journal import Entry, SessionAccount


def show_accounts(directories: "Sequence[Path]", request: str | None, *, as_json: bool) -> None:
    """Print what the journals of some data directories hold.

    Args:
        directories: Those without a journal have none to show; none is made.
        request: Only this request's receipt, in hexadecimal.
        as_json: In the form that `loremesh verify` checks.

    Raises:
        UsageError: `request` is no id, or of no receipt here.
    """
    import trio

    from loremesh.protocol.exports import session_view

    only = None if request is None else _request_id(request)
    accounts = trio.run(_load, directories)
    if only is not None:
        accounts = [one for one in accounts if any(entry.request == only for entry in one.receipts)]
        if not accounts:
            raise UsageError(f"--request {request}: no receipt of it is here")
    if as_json:
        sessions = [session_view(account, only) for account in accounts]
        typer.echo(json.dumps({"sessions": sessions}, ensure_ascii=False))
        return
    for account in accounts:
        _print_session(account, only)
    if not accounts:
        typer.echo(f"nothing yet in {', '.join(map(str, directories))}")


async def _load(directories: "Sequence[Path]") -> "list[SessionAccount]":
    from loremesh.protocol.journal import accounts
    from loremesh.storage.journal import Journal, has_journal

    found: list[SessionAccount] = []
    for directory in directories:
        if has_journal(directory):
            async with Journal.open(directory) as journal:
                found += accounts([entry async for entry in journal.all_entries()])
    return found


def _request_id(text: str) -> "Hash":
    from loremesh.primitives import HASH_BYTES, Hash

    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if len(data) != HASH_BYTES:
        raise UsageError("--request should be a request's id: 64 hexadecimal digits")
    return Hash(data)


def _print_session(account: "SessionAccount", only: "Hash | None") -> None:
    from rich.text import Text

    from loremesh.cli.present import console, several, short_peer

    out = console()
    us, them = ("executor", account.client) if _is_ours(account) else ("client", account.executor)
    other = "client" if us == "executor" else "executor"
    out.print(Text(f"session {account.session.hex()} with {other} {short_peer(them)}", "bold"))
    unsigned = f", {len(account.unsigned)} not countersigned" if account.unsigned else ""
    out.print(
        f"  {several(len(account.receipts), 'receipt')}{unsigned}: {account.tokens} tokens, {account.amount} gwei, "
        f"{account.countersigned} gwei countersigned"
    )
    for entry in sorted((*account.receipts, *account.refusals), key=lambda one: one.sequence):
        if only in {None, entry.request}:
            for line in _explain(entry, account):
                out.print(Text(line))
    out.print()


def _is_ours(account: "SessionAccount") -> bool:
    """Tell whether we served: the entry that began a session says so."""
    from loremesh.protocol.journal import EntryKind

    return any(entry.kind is EntryKind.SERVED for entry in account.receipts)


def _explain(entry: "Entry", account: "SessionAccount") -> "Iterator[str]":
    """Say what an entry is, who signed it, and what became of it."""
    from loremesh.logs import printable
    from loremesh.protocol.journal import Dispute, EntryKind, evidence_of
    from loremesh.protocol.receipts import PartialReceipt

    if isinstance(entry.fact, Dispute):
        who = "the client did not sign" if entry.fact.by == entry.client else "the executor did not take the voucher"
        yield f"  {_when(entry.time)}  REFUSED"
        yield f"      request {entry.request.hex()}"
        yield f"      {who}: {printable(entry.fact.reason)}"
        return
    evidence = evidence_of(entry)
    bill = evidence.receipt
    yield (
        f"  {_when(entry.time)}  {printable(bill.model)}  "
        f"{bill.prompt_tokens} + {bill.completion_tokens} tokens  {bill.amount} gwei  {bill.finish}"
    )
    yield f"      request {bill.request.hex()}"
    if isinstance(evidence, PartialReceipt):
        yield "      partial receipt: signed by the client, on what the executor had signed as delivered"
    else:
        yield "      receipt: signed by the executor"
    if entry.request not in account.signed_requests:
        yield "      not countersigned: nothing is owed for it until the client does"
    elif entry.kind is EntryKind.SERVED or entry.request in account.delivered_requests:
        yield "      countersigned by the client; the executor has the voucher"
    else:
        yield "      countersigned by the client; the voucher is not delivered yet"


def _when(time: "Millis") -> str:
    try:
        return datetime.fromtimestamp(time / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):  # a clock that was far off then
        return f"{time} ms"
