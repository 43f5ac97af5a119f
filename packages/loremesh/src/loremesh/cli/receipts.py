"""`loremesh receipts`: what the calls made here took, out of this client's own journal."""

from typing import Annotated

import typer

from loremesh.cli.options import OFFLINE_FLAGS, Flags, client_settings, with_flags


@with_flags(*OFFLINE_FLAGS)
def receipts(
    flags: Flags,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="Only the receipt of this request.")
    ] = None,
) -> None:
    """Show every receipt of the calls made here: what it is, who signed it, whether the executor has the voucher.

    Asks nobody. With --json the output can be checked by anybody: loremesh receipts --json | loremesh verify -
    """
    settings = client_settings(flags)

    from loremesh.cli.accounts import show_accounts

    show_accounts([settings.data_dir], request, as_json=settings.json_output)
