"""The `loremesh` program: every command a reader or writer of a story needs."""

from collections.abc import Callable
from typing import Final

import typer

from loremesh.cli import ask, canon, demo, doctor, gateway, key, models, new, peers, receipts, suggest, tree, verify
from loremesh.cli.options import Version
from loremesh.cli.stopping import raise_at_interrupt

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def loremesh(version: Version = False) -> None:  # noqa: ARG001 - its own callback answers it
    """Read and write stories on a loremesh network."""
    raise_at_interrupt()


_COMMANDS: Final[dict[Callable[..., None], str]] = {
    new.new: "Print the genesis file that begins a story.",
    canon.canon: "Show the story, every rule of it checked here first.",
    tree.tree: "Show every branch: the canon, and what lost against it.",
    suggest.suggest: "Suggest what should happen next.",
    ask.ask: "Ask a model that somebody on the mesh serves.",
    models.models: "List the models that can be asked now.",
    receipts.receipts: "Show the receipts of the calls made here.",
    verify.verify: "Check receipts, asking nobody.",
    gateway.gateway: "Serve OpenAI's HTTP API in front of the mesh.",
    peers.peers: "Show who is there, and who is the tracker.",
    doctor.doctor: "Find out what does not work, and how to mend it.",
    demo.demo: "Watch nodes race to write a story on this machine.",
}
"""Each with what it is for, in words that a terminal of 80 columns need not cut."""

app.add_typer(key.app, name="key")
for command, purpose in _COMMANDS.items():
    app.command(short_help=purpose)(command)
