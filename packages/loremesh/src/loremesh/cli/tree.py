"""`loremesh tree`: every branch of a story: the canon, what lost against it, and what waits."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import typer

from loremesh.cli.options import CLIENT_FLAGS, Flags, client_settings, with_flags

if TYPE_CHECKING:
    from loremesh.config import Settings
    from loremesh.primitives import Hash
    from loremesh.roles.client import Copy

_LINE: Final = 96
"""Longest line, in a pipe as well; one that is quoted still fits into 100."""
_EXCERPT: Final = 10
"""Least that is shown of a paragraph."""


@with_flags(*CLIENT_FLAGS)
def tree(flags: Flags) -> None:
    """Show the branches of a story: forks are kept, so what lost can still be read."""
    settings = client_settings(flags)

    import trio

    trio.run(_show, settings)


async def _show(settings: "Settings") -> None:
    from loremesh.cli.present import under_way
    from loremesh.roles.client import Copy, visit

    async with under_way("fetching and checking the story"), visit(settings) as guest:
        copy = Copy(await guest.fetch_story())
        await guest.fetch(copy, branches=True)
    if settings.json_output:
        typer.echo(json.dumps(tree_view(copy), ensure_ascii=False))
    else:
        _print(copy)


def tree_view(copy: "Copy") -> dict[str, Any]:
    """Show the branches as the JSON object that scripts rely on; the canonical one first.

    `from` is the height of the block a branch forks off from; `blocks` are those it does not share with the canon.
    """
    return {"head": copy.store.head.hex(), "branches": list(_branches(copy))}


def _branches(copy: "Copy") -> Iterator[dict[str, Any]]:
    store = copy.store
    yield _branch(copy, store.head, "canonical")
    for tip in sorted(store.tips, key=lambda name: (-store.entries[name].link.height, name)):
        if tip != store.head:
            yield _branch(copy, tip, "abandoned")
    for fate, waiting in (("orphan", store.orphans), ("held", store.held)):
        for name, block in sorted(waiting.items()):
            yield {
                "tip": name.hex(),
                "height": block.header.height,
                "from": block.header.height - 1,
                "fate": fate,
                "blocks": [_block(copy, name)],
            }


def _branch(copy: "Copy", tip: "Hash", fate: str) -> dict[str, Any]:
    from loremesh.protocol.fork_choice import chain, is_canonical

    store = copy.store
    own = []
    fork = 0
    for entry in chain(store, tip):
        fork = entry.link.height
        shared = fate != "canonical" and is_canonical(store, entry.link.hash)
        if shared or entry.is_genesis:
            break
        own.append(_block(copy, entry.link.hash))
    own.reverse()
    return {"tip": tip.hex(), "height": store.entries[tip].link.height, "from": fork, "fate": fate, "blocks": own}


def _block(copy: "Copy", name: "Hash") -> dict[str, Any]:
    from loremesh.protocol.views import block_view

    return block_view(copy.block(name))


def _print(copy: "Copy") -> None:
    from rich.text import Text

    from loremesh.cli.present import console

    out = console()
    view = tree_view(copy)
    branches = view["branches"]
    digits = len(str(max(branch["height"] for branch in branches)))
    losers: dict[int, list[dict[str, Any]]] = {}
    for branch in branches[1:]:
        losers.setdefault(branch["from"], []).append(branch)
    out.print(Text(f"{0:>{digits}} {copy.store.story.hex()[:8]} {copy.store.genesis.title}", "bold"))
    for block in [None, *branches[0]["blocks"]]:
        height = block["height"] if block else 0
        if block:
            out.print(Text(block_line(block, digits, out.width), "green"))
        for branch in losers.get(height, []):
            for lost in branch["blocks"]:
                out.print(Text(block_line(lost, digits, out.width, "  └ ", f" [{branch['fate']}]"), "yellow"))
    count = len(branches) - 1
    out.print(Text(f"{count} branch{'' if count == 1 else 'es'} beside the canon" if count else "no forks", "dim"))


def block_line(block: dict[str, Any], digits: int, width: int, before: str = "", after: str = "") -> str:
    """Show a block in one line of the console, with as much of its paragraph as there is room for."""
    start = f"{before}{block['height']:>{digits}} {block['hash'][:8]} …{block['producer'][-8:]}  "
    room = max(min(width, _LINE) - len(start) - len(after), _EXCERPT)
    text: str = block["text"]
    return start + (text if len(text) <= room else text[: room - 1] + "…") + after
