"""The `loremesh` program: every command a reader or writer of a story needs."""

import typer

from loremesh.cli import ask, canon, demo, doctor, gateway, key, models, new, peers, receipts, suggest, tree, verify
from loremesh.cli.options import Version
from loremesh.cli.stopping import raise_at_interrupt

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def loremesh(version: Version = False) -> None:  # noqa: ARG001 - its own callback answers it
    """Read and write stories on a loremesh network."""
    raise_at_interrupt()


app.add_typer(key.app, name="key")
app.command()(new.new)
for command in (
    canon.canon,
    tree.tree,
    suggest.suggest,
    ask.ask,
    models.models,
    receipts.receipts,
    verify.verify,
    gateway.gateway,
    peers.peers,
    doctor.doctor,
    demo.demo,
):
    app.command()(command)
