"""The `loremesh-executor` program: `run` is what it does unless told otherwise."""

import os
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from loremesh.cli import journal, model
from loremesh.cli.options import EXECUTOR_FLAGS, Flags, start_logs, with_flags

if TYPE_CHECKING:
    from loremesh.services.happenings import Tell


class _RunByDefault(TyperGroup):
    """Takes `loremesh-executor --backend builtin` for `loremesh-executor run --backend builtin`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer keeps the type to itself
        """Put `run` in front of arguments that name no sub-command."""
        named = bool(args) and args[0] in self.commands
        parsed: list[str] = super().parse_args(ctx, args if named else ["run", *args])
        return parsed


app = typer.Typer(cls=_RunByDefault, add_completion=False, rich_markup_mode=None)


app.add_typer(model.app, name="model")
app.command()(journal.journal)


@app.callback()
def executor() -> None:
    """Race to write the story, one paragraph a block."""


@app.command()
@with_flags(*EXECUTOR_FLAGS)
def run(flags: Flags) -> None:
    """Run an executor, or one for each [[executor]] table of the configuration file, until told to stop.

    There are also: loremesh-executor journal, which shows the calls that were served; loremesh-executor model, which
    fetches and lists small models of one's own.
    """
    from loremesh.config import load_executors

    executors = load_executors(flags, os.environ)
    start_logs(executors[0], flags)

    import trio

    from loremesh.cli.events import printer
    from loremesh.roles.executor import run as run_executors

    by_name = {settings.name: settings for settings in executors}

    def tell(name: str) -> "Tell":
        return printer(by_name[name], node=name if len(executors) > 1 else None)

    trio.run(run_executors, executors, tell)
