"""`loremesh suggest`: ask for what should happen next, and wait until a block has taken it in."""

import json
from typing import TYPE_CHECKING, Annotated, Final

import typer

from loremesh.cli.new import one_line
from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.config import Settings

_PATIENCE_IN_SPACINGS: Final = 20


@with_flags(*CLIENT_FLAGS)
def suggest(
    flags: Flags,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What should happen next, in at most 60 words.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until a block has taken it in.")] = True,
) -> None:
    """Suggest what happens next; sending a text that is there already supports it."""
    settings = client_settings(flags)

    import trio

    trio.run(_suggest, settings, text, wait)


async def _suggest(settings: "Settings", text: str, wait: bool) -> None:  # noqa: FBT001 - trio.run passes positions
    from loremesh.cli.present import under_way
    from loremesh.protocol.genesis import story_id
    from loremesh.protocol.transaction import transaction_hash
    from loremesh.roles.client import visit
    from loremesh.roles.node import identity_of, make_directory

    make_directory(settings.data_dir)
    what = "waiting for a block to take it in" if wait else "handing it over"
    async with under_way(what), visit(settings, identity_of(settings)) as guest:
        genesis = await guest.fetch_story()
        transaction = await guest.suggest(genesis, one_line(text))
        name = transaction_hash(story_id(genesis), transaction.body)
        patience = _PATIENCE_IN_SPACINGS * genesis.parameters.spacing / 1000
        height = await guest.wait_included(genesis, name, patience) if wait else None
    if settings.json_output:
        typer.echo(json.dumps({"transaction": name.hex(), "included_at": height}))
    elif height is None:
        typer.echo(f"suggested: transaction {name.hex()} waits for a block")
    else:
        typer.echo(f"suggested: transaction {name.hex()} is in block {height}")
