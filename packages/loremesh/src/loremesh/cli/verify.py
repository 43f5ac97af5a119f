"""`loremesh verify`: check exported receipts, partial receipts and vouchers, asking nobody."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from loremesh.errors import Fault, InvalidMessage, UsageError

if TYPE_CHECKING:
    from loremesh.protocol.exports import Checked

_MOST_BYTES: Final = 32 * 1024 * 1024


def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The JSON that was exported; - for stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check what `loremesh receipts --json` or `loremesh-executor journal --json` printed, or a part of it.

    Every signature, sum and chain of vouchers is computed again; where request and answer are there, the tokens are
    counted again too. Ends with code 4 if anything is not right.
    """
    data = _read(file)

    from loremesh.backends.tokens import load_counter
    from loremesh.protocol.exports import check_export
    from loremesh.protocol.json_values import parse_json

    found = check_export(parse_json(data), load_counter)
    if as_json:
        typer.echo(json.dumps({"sessions": [_view(one) for one in found]}))
        return
    for one in found:
        typer.echo("\n".join(_lines(one)))
    typer.echo("all of it is right" if found else "there was nothing to check")


def _read(file: str) -> bytes:
    """Read no more than is taken.

    Raises:
        UsageError: There is no such file, or it is none.
        InvalidMessage: TOO_LARGE.
    """
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{file}: {reason}") from error
    if len(data) > _MOST_BYTES:
        raise InvalidMessage(Fault.TOO_LARGE, f"more than {_MOST_BYTES} bytes: check it session by session")
    return data


def _view(one: "Checked") -> dict[str, Any]:
    from loremesh.protocol.identity import peer_id_text

    return {
        "client": peer_id_text(one.client),
        "executor": peer_id_text(one.executor),
        "session": one.session.hex(),
        "receipts": one.receipts,
        "partial": one.partial,
        "recounted": one.recounted,
        "vouchers": one.vouchers,
        "tokens": one.tokens,
        "amount": one.amount,
        "countersigned": one.countersigned,
    }


def _lines(one: "Checked") -> list[str]:
    from loremesh.cli.present import several

    view = _view(one)
    partial = f", {one.partial} of them partial" if one.partial else ""
    return [
        f"session {view['session']}",
        f"  client   {view['client']}",
        f"  executor {view['executor']}",
        f"  {several(one.receipts, 'receipt')}{partial}: signatures hold and sums add up",
        f"  {one.recounted} counted again, out of request and answer",
        f"  {several(one.vouchers, 'voucher')}, signed by the client",
        f"  {one.tokens} tokens, {one.amount} gwei, {one.countersigned} gwei countersigned",
    ]
