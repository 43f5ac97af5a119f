"""`loremesh canon`: the story so far, checked from the genesis to the head before a word of it is shown."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.config import Settings
    from loremesh.protocol.block import Block
    from loremesh.protocol.genesis import Genesis
    from loremesh.roles.client import Copy


@with_flags(*CLIENT_FLAGS)
def canon(
    flags: Flags,
    follow: Annotated[bool, typer.Option("--follow", help="Go on showing new paragraphs until Ctrl-C.")] = False,
) -> None:
    """Show the canon: signatures, work, links and state roots are all recomputed here first.

    A block that breaks a rule ends it with exit code 4: what serves such a block is not to be trusted.
    """
    settings = client_settings(flags)

    import trio

    try:
        trio.run(_show, settings, follow)
    except* KeyboardInterrupt:
        if not follow:
            raise


async def _show(settings: "Settings", follow: bool) -> None:  # noqa: FBT001 - trio.run passes positions
    import trio

    from loremesh.cli.present import under_way
    from loremesh.protocol.genesis import story_id
    from loremesh.roles.client import Copy, visit

    async with under_way("fetching and checking the story") as end_waiting, visit(settings) as guest:
        genesis = await guest.fetch_story()
        copy = Copy(genesis)
        await guest.fetch(copy)
        await end_waiting()
        if not follow:
            _print_all(settings, genesis, copy)
            return
        if not settings.json_output:
            _print_heading(genesis, story_id(genesis).hex())
        shown: tuple[str, ...] = ()
        while True:
            shown = _print_new(settings, copy, shown)
            # Twice a spacing is often enough to feel live, and rare enough to be no burden.
            await trio.sleep(genesis.parameters.spacing / 2000)
            await guest.fetch(copy)


def canon_view(genesis: "Genesis", copy: "Copy") -> dict[str, Any]:
    """Show a canon as the JSON object that scripts rely on."""
    from loremesh.protocol.views import block_view

    return {
        "story": copy.store.story.hex(),
        "title": genesis.title,
        "height": copy.store.tip.link.height,
        "finalised": 0,
        "blocks": [block_view(block) for block in copy.canon()],
    }


def _print_all(settings: "Settings", genesis: "Genesis", copy: "Copy") -> None:
    if settings.json_output:
        typer.echo(json.dumps(canon_view(genesis, copy), ensure_ascii=False))
        return
    _print_heading(genesis, copy.store.story.hex())
    for block in copy.canon():
        _print_paragraph(block)


def _print_new(settings: "Settings", copy: "Copy", shown: tuple[str, ...]) -> tuple[str, ...]:
    """Print what is new since `shown`; after a reorganisation that is the whole new branch."""
    from loremesh.protocol.views import block_view

    views = [block_view(block) for block in copy.canon()]
    names = tuple(view["hash"] for view in views)
    common = 0
    while common < min(len(shown), len(names)) and shown[common] == names[common]:
        common += 1
    if common < len(shown) and not settings.json_output:
        typer.echo(f"\n(the last {len(shown) - common} paragraphs above lost; the canon goes on from {common})")
    for view, block in list(zip(views, copy.canon(), strict=True))[common:]:
        if settings.json_output:
            typer.echo(json.dumps(view, ensure_ascii=False))
        else:
            _print_paragraph(block)
    return names


def _print_heading(genesis: "Genesis", story: str) -> None:
    from rich.text import Text

    from loremesh.cli.present import console

    console().print(Text(genesis.title, "bold"))
    console().print(Text(f"story {story}", "dim"))


def _print_paragraph(block: "Block") -> None:
    from rich.text import Text

    from loremesh.cli.present import console, short_peer

    header, certificate = block.header, block.content.certificate
    heading = f"\n{header.height} · {short_peer(header.producer)} · {certificate.model}"
    for signed in certificate.serving:
        heading += f" · served by {short_peer(signed.serving.executor)}"
    console().print(Text(heading, "dim"))
    console().print(Text(block.content.text))
