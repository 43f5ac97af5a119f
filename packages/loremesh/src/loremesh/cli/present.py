"""What the commands share when they speak to people: one console, one way to shorten a name."""

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from rich.console import Console
from rich.text import Text

from loremesh.logs import printable
from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_text

_SHORT: Final = 8
_READABLE: Final = 100
_NARROWEST: Final = 20
_NEVER_WRAP: Final = 10_000
_UNDER_WAY: Final = 1.0


class _Console(Console):
    """Lets `cli.errors` say how a program ends whose reader has had enough; rich would end it with code 1."""

    def on_broken_pipe(self) -> None:
        """Pass on what rich has caught."""
        raise BrokenPipeError


def console() -> Console:
    """Give the console on stdout: colour and lines of a readable width on a terminal, plain long lines in a pipe."""
    if sys.stdout.isatty():
        return _Console(highlight=False, width=min(_READABLE, Console().width))
    return _Console(highlight=False, width=_NEVER_WRAP)


def beside(out: Console, label: Text, what: Text) -> Text:
    """Put `what` beside a label: lines that a terminal is too narrow for go on under the first, not under the label."""
    lines = what.wrap(out, max(out.width - label.cell_len, _NARROWEST))
    for line in lines:
        line.rstrip()
    return Text.assemble(label, Text("\n" + " " * label.cell_len).join(lines))


def short_peer(peer_id: PeerId) -> str:
    """Show the end of a peer id: they all begin alike."""
    return "…" + peer_id_text(peer_id)[-_SHORT:]


def several(number: int, what: str) -> str:
    """Say how many there are of something whose plural ends with s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def for_reader(text: str) -> str:
    """Give a stranger's text as stdout takes it: on a terminal without what would move its cursor, else as it is."""
    return "".join(map(_harmless, re.split("([\n\t])", text))) if sys.stdout.isatty() else text


def _harmless(piece: str) -> str:
    return piece if piece in {"\n", "\t"} else printable(piece)


@asynccontextmanager
async def under_way(what: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Show on a terminal's stderr that something takes more than a second, until the block ends.

    Yields:
        Call it to show it no longer.
    """
    scope, ended = trio.CancelScope(), trio.Event()

    async def show() -> None:
        with scope:
            await trio.sleep(_UNDER_WAY)
            if sys.stderr.isatty():
                with Console(stderr=True).status(what):
                    await trio.sleep_forever()
        ended.set()

    async def end() -> None:
        scope.cancel()
        await ended.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(show)
        try:
            yield end
        finally:
            scope.cancel()
