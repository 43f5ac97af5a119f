"""The `loremesh-validator` program."""

import os

import typer

from loremesh.cli.options import VALIDATOR_FLAGS, Flags, start_logs, with_flags

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
@with_flags(*VALIDATOR_FLAGS)
def validator(flags: Flags) -> None:
    """Run a validator: a fixed address that others join through. With a story it keeps and serves the chain too."""
    from loremesh.config import Program, load_settings

    settings = load_settings(Program.VALIDATOR, flags, os.environ)
    start_logs(settings, flags)

    import trio

    from loremesh.cli.events import printer
    from loremesh.roles.validator import run

    trio.run(run, settings, printer(settings))
