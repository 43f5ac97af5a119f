"""`loremesh new`: write the genesis file that a story starts from."""

import time
import unicodedata
from typing import Annotated, Final

import typer

from loremesh.errors import InvalidGenesis, ProtocolError
from loremesh.primitives import Millis

_SPACING: Final = 3000


def new(
    *,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="What the story is called.")],
    premise: Annotated[str, typer.Option("--premise", metavar="TEXT", help="What it is about: one paragraph.")],
    validator: Annotated[
        list[str] | None,
        typer.Option("--validator", metavar="PEER_ID", help="A validator; the first is the first tracker. Repeatable."),
    ] = None,
    tracker: Annotated[
        str | None, typer.Option("--tracker", metavar="PEER_ID", help="The first tracker, where it is no validator.")
    ] = None,
    language: Annotated[str, typer.Option("--language", metavar="TAG", help="Language of the story.")] = "en",
    spacing: Annotated[
        int, typer.Option("--spacing", metavar="MS", help="Time between blocks; 30000 suits models that cost money.")
    ] = _SPACING,
) -> None:
    """Print a genesis file: loremesh new --title T --premise P > genesis.toml.

    Its hash is the story's id, so whoever changes a word of it has begun another story.
    """
    from loremesh.protocol.genesis import (
        Genesis,
        Parameters,
        Validator,
        genesis_from_toml,
        genesis_to_toml,
        story_id,
    )
    from loremesh.protocol.identity import peer_id_from_text

    try:
        peer_ids = [peer_id_from_text(text) for text in validator or []]
        trackers = [peer_id_from_text(text) for text in [tracker] if text] or peer_ids[:1]
    except ProtocolError as error:
        raise InvalidGenesis(f"--validator or --tracker: {error}") from error
    genesis = Genesis(
        title=one_line(title),
        premise=one_line(premise),
        language=language,
        time=Millis(time.time_ns() // 1_000_000),
        validators=tuple(Validator(peer_id) for peer_id in peer_ids),
        tracker=tuple(trackers),
        # The other spans keep the proportions that the defaults have.
        parameters=Parameters(
            spacing=Millis(spacing),
            min_spacing=Millis(spacing // 3),
            half_life=Millis(spacing * 20),
            solo_after=Millis(spacing * 3),
        ),
    )
    # Reading it back checks every rule in the one place that knows them.
    text = genesis_to_toml(genesis)
    story = story_id(genesis_from_toml(text))
    typer.echo(f"# Story {story.hex()}\n{text}", nl=False)


def one_line(text: str) -> str:
    """Take what a shell passed, with its line breaks, for the one paragraph in NFC that the rules want."""
    return unicodedata.normalize("NFC", " ".join(text.split()))
