"""`loremesh models`: what can be asked now."""

import json
from typing import TYPE_CHECKING, Any

import typer

from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loremesh.config import Settings
    from loremesh.roles.mesh import ServedModel


@with_flags(*CLIENT_FLAGS)
def models(flags: Flags) -> None:
    """List the models that executors serve now, as they have said themselves in the last 90 seconds."""
    settings = client_settings(flags)

    import trio

    trio.run(_show, settings)


async def _show(settings: "Settings") -> None:
    from loremesh.cli.present import under_way
    from loremesh.roles.mesh import joined

    async with under_way("asking who serves what"), joined(settings) as mesh:
        found, tried = await mesh.models(), mesh.tried
    view = models_view(found)
    if settings.json_output:
        typer.echo(json.dumps(view))
        return
    _print(view)
    if not found:
        typer.echo("; ".join(("nobody serves a model now", *tried)), err=True)


def models_view(found: "Sequence[ServedModel]") -> dict[str, Any]:
    """Show what is served as the JSON object that scripts rely on; prices are gwei for 1,000 of the unit."""
    from loremesh.protocol.identity import peer_id_text
    from loremesh.protocol.metering import TOKENIZER

    return {
        "models": [
            {
                "id": model.id,
                "executors": [peer_id_text(executor) for executor in model.executors],
                "context": model.context,
                "price": model.price,
                "unit": TOKENIZER,
            }
            for model in found
        ]
    }


def _print(view: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from loremesh.cli.present import console
    from loremesh.logs import printable

    table = Table("model", box=None, pad_edge=False, header_style="dim")
    for name in ("executors", "context", "gwei per 1,000 tokens"):
        table.add_column(name, justify="right")
    for model in view["models"]:
        numbers = str(len(model["executors"])), str(model["context"]), str(model["price"])
        table.add_row(escape(printable(model["id"])), *numbers)
    console().print(table)
