"""`loremesh demo`: a validator and racing executors on this machine, a fork that appears and heals, and the canon."""

from typing import Annotated

import typer


def demo(
    blocks: Annotated[int, typer.Option("--blocks", metavar="N", min=1, max=1000, help="How long the story gets.")] = 8,
    executors: Annotated[int, typer.Option("--executors", metavar="N", min=2, max=12, help="How many race.")] = 4,
    malicious: Annotated[
        bool, typer.Option("--malicious", help="Let a stranger break every rule there is, and see it refused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print events, and the canon as the last line.")] = False,
) -> None:
    """Watch a validator and racing executors write a story on this machine: no key, no GPU, nothing to set up."""
    import trio

    from loremesh.cli.demo_play import play

    trio.run(play, blocks, executors, malicious, as_json)
