"""`loremesh key new|show FILE`: make a key before a node runs, and tell the names that follow from one."""

import json
import secrets
from pathlib import Path
from typing import Annotated

import typer

from loremesh.errors import UsageError
from loremesh.primitives import PeerId

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Make a private key, or show whose one is.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The key file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def new(file: File, as_json: Json = False) -> None:
    """Make a new private key in FILE (mode 0600) and show its peer id and EVM address."""
    from loremesh.protocol.identity import Identity
    from loremesh.storage.keys import write_key

    identity = Identity.generate(secrets.token_bytes(32))
    write_key(file, identity)
    _print(identity.peer_id, as_json=as_json)


@app.command()
def show(file: File, as_json: Json = False) -> None:
    """Show the peer id and EVM address of the private key in FILE."""
    from loremesh.storage.keys import read_key

    try:
        identity = read_key(file)
    except FileNotFoundError:
        raise UsageError(f"{file}: no such file; loremesh key new {file} makes one") from None
    _print(identity.peer_id, as_json=as_json)


def _print(peer_id: PeerId, *, as_json: bool) -> None:
    from loremesh.protocol.identity import evm_address_of, evm_address_text, peer_id_text

    names = {"peer_id": peer_id_text(peer_id), "evm_address": evm_address_text(evm_address_of(peer_id))}
    if as_json:
        typer.echo(json.dumps(names))
    else:
        typer.echo(f"peer id      {names['peer_id']}\nEVM address  {names['evm_address']}")
