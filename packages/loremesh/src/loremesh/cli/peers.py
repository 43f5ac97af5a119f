"""`loremesh peers`: who is here, as the nodes we reach know it, and how far away they are."""

import json
from typing import TYPE_CHECKING, Any

import typer

from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.config import Settings
    from loremesh.roles.client import Survey


@with_flags(*CLIENT_FLAGS)
def peers(flags: Flags) -> None:
    """Show the peers that the bootstrap nodes know, who the tracker is, and each one's latency from here."""
    settings = client_settings(flags)

    import trio

    trio.run(_show, settings)


async def _show(settings: "Settings") -> None:
    from loremesh.cli.present import under_way
    from loremesh.roles.client import visit

    async with under_way("asking who is there"), visit(settings) as guest:
        found = await guest.survey()
    view = peers_view(found)
    if settings.json_output:
        typer.echo(json.dumps(view))
    else:
        _print(view)


def peers_view(found: "Survey") -> dict[str, Any]:
    """Show a survey as the JSON object that scripts rely on; latency is null for who did not answer."""
    from loremesh.protocol.identity import peer_id_text

    return {
        "peers": [
            {
                "peer_id": peer_id_text(peer.card.peer_id),
                "addresses": list(peer.addresses),
                "roles": list(peer.card.roles),
                "models": list(peer.card.models),
                "height": peer.card.height,
                "latency_ms": None if peer.latency is None else round(peer.latency * 1000, 1),
            }
            for peer in found.peers
        ],
        "tracker": peer_id_text(found.tracker) if found.tracker else None,
    }


def _print(view: dict[str, Any]) -> None:
    from rich.table import Table

    from loremesh.cli.present import console

    table = Table("peer", "roles", "models", box=None, pad_edge=False, header_style="dim")
    table.add_column("height", justify="right")
    table.add_column("ms", justify="right")
    table.add_column("address")
    for peer in view["peers"]:
        latency = "unreachable" if peer["latency_ms"] is None else f"{peer['latency_ms']:.1f}"
        name = "…" + peer["peer_id"][-8:] + (" (tracker)" if peer["peer_id"] == view["tracker"] else "")
        address = peer["addresses"][0].partition("/p2p/")[0] if peer["addresses"] else ""
        table.add_row(name, " ".join(peer["roles"]), " ".join(peer["models"]), str(peer["height"]), latency, address)
    console().print(table)
