"""`loremesh-executor journal`: what this machine's executors have served, and what clients have countersigned of it."""

import os
from typing import Annotated

import typer

from loremesh.cli.options import OFFLINE_FLAGS, Flags, start_logs, with_flags


@with_flags(*OFFLINE_FLAGS)
def journal(
    flags: Flags,
    request: Annotated[
        str | None, typer.Option("--request", metavar="ID", help="Only the receipt of this request.")
    ] = None,
) -> None:
    """Show every call that was served: what it took, and whether its client countersigned.

    Also while the executor runs. With --json the output can be checked by anybody, with loremesh verify.
    """
    from loremesh.config import load_executors

    executors = load_executors(flags, os.environ)
    start_logs(executors[0], flags)

    from loremesh.cli.accounts import show_accounts

    show_accounts([one.data_dir for one in executors], request, as_json=executors[0].json_output)
