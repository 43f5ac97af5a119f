"""Bring your own writer: a backend is an object with a `model`, a `write` and an `aclose`.

This one writes haiku by rolling dice. It runs in an executor made by `run_node`, as the program `loremesh-executor`
does with the backends it knows.

Run it: python examples/own_backend.py
"""

import random
import tempfile
import time
from pathlib import Path

import trio

from loremesh.backends.base import Draft
from loremesh.backends.prompt import ParagraphRequest, build_messages
from loremesh.config import Program, load_settings
from loremesh.primitives import Millis
from loremesh.protocol.genesis import Genesis, Parameters, genesis_to_toml
from loremesh.protocol.identity import peer_id_text
from loremesh.roles.mining import mine
from loremesh.roles.node import EXECUTOR, Node, run_node
from loremesh.services.canon import newest_paragraphs
from loremesh.services.happenings import Happening

HEIGHT = 3
TOKENS = 4096
OPENINGS = ["Salt on the window", "A gull turns its head", "The tide keeps no book", "Rope burns in the dark"]
MIDDLES = ["somebody far out at sea", "a lantern without a hand", "the map folds itself again"]
ENDINGS = ["answers the same light", "forgets the word home", "counts backwards from nine"]


class HaikuBackend:
    """Writes three lines, folded into one paragraph. It may take its time: the work runs beside it."""

    model = "haiku-dice"

    async def write(self, request: ParagraphRequest) -> Draft:
        """Write the next paragraph; the seed differs for every parent and producer."""
        dice = random.Random(request.seed)  # noqa: S311 - poetry, not secrets
        await trio.sleep(dice.uniform(0, 0.3))  # a model would think here; cancelled when somebody else wins
        text = f"{dice.choice(OPENINGS)}; {dice.choice(MIDDLES)} {dice.choice(ENDINGS)}."
        # A real model would be given these messages. The story records their digest.
        messages = build_messages(request, TOKENS, request.seed.hex())
        return Draft.fold(text, request.max_words, self.model, messages)

    async def aclose(self) -> None:
        """Nothing to give back."""


async def run(directory: Path) -> None:
    """Run one executor with this backend until it has written three blocks."""
    genesis = Genesis(
        title="The Haiku Keeper",
        premise="A keeper writes one haiku for each ship that passes.",
        language="en",
        time=Millis(time.time_ns() // 1_000_000),
        # One executor alone: it is always the tracker, so `solo_after` is its pace.
        parameters=Parameters(
            spacing=Millis(500), min_spacing=Millis(200), solo_after=Millis(800), initial_work=2**12, easiest_work=2**8
        ),
    )
    (directory / "genesis.toml").write_text(genesis_to_toml(genesis), encoding="utf-8")
    settings = load_settings(
        Program.EXECUTOR,
        {
            "data_dir": str(directory),
            "genesis": str(directory / "genesis.toml"),
            "listen_address": "/ip4/127.0.0.1/tcp/0",
        },
        {},
    )

    async def write_poems(node: Node, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        assert node.services.story is not None  # noqa: S101 - it was given a genesis
        await mine(node.services, node.services.story, HaikuBackend())

    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[Node]) -> None:
            await run_node(settings, EXECUTOR, ignore, beside=write_poems, task_status=task_status)

        node: Node = await nursery.start(start)
        story = node.services.story
        assert story is not None  # noqa: S101 - it was given a genesis
        while story.chain.store.tip.link.height < HEIGHT:
            await story.chain.head.wait_change()
        author = peer_id_text(node.services.identity.peer_id)[-8:]
        for number, text in enumerate(await newest_paragraphs(story.chain, story.chain.store.head, HEIGHT), 1):
            print(f"{number} · …{author} · {HaikuBackend.model}\n{text}\n")
        nursery.cancel_scope.cancel()


def ignore(happening: Happening) -> None:
    """Leave out what the node tells its operator."""


def main() -> None:
    """Run in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory))


if __name__ == "__main__":
    main()
