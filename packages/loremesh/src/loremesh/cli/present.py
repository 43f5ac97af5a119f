"""What the commands share when they speak to people: one console, one way to shorten a name."""

import sys
from typing import Final

from rich.console import Console

from loremesh.primitives import PeerId
from loremesh.protocol.identity import peer_id_text

_SHORT: Final = 8
_READABLE: Final = 100
_NEVER_WRAP: Final = 10_000


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


def short_peer(peer_id: PeerId) -> str:
    """Show the end of a peer id: they all begin alike."""
    return "…" + peer_id_text(peer_id)[-_SHORT:]


def several(number: int, what: str) -> str:
    """Say how many there are of something whose plural ends with s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
