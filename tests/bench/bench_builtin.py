"""The builtin backend: what one paragraph costs, with thirty before it and two suggestions to take up."""

import hashlib
import itertools
import time

import trio

from harness import Row, Samples, at_most, measure
from loremesh.backends.builtin import BuiltinBackend
from loremesh.backends.prompt import ParagraphRequest
from loremesh.primitives import Height
from loremesh.protocol.genesis import story_id
from loremesh.testing.builders import small_genesis

_GENESIS = small_genesis()
_CONTEXT = 30
_PARAGRAPHS = 60


def run() -> list[Row]:
    """Measure a story that goes on from round to round, so that no paragraph is asked for twice."""
    backend, told, numbers = BuiltinBackend(), list[str](), itertools.count()

    async def tell() -> Samples:
        taken = []
        for number in itertools.islice(numbers, _PARAGRAPHS):
            request = _request(number, told)
            before = time.perf_counter()
            draft = await backend.write(request)
            taken.append(time.perf_counter() - before)
            told.append(draft.text)
        return taken

    trio.run(tell)  # the first paragraphs have little before them
    return [measure("one paragraph", "ms", lambda: trio.run(tell), at_most(1))]


def _request(number: int, told: list[str]) -> ParagraphRequest:
    return ParagraphRequest(
        story=story_id(_GENESIS),
        title=_GENESIS.title,
        premise=_GENESIS.premise,
        language=_GENESIS.language,
        height=Height(number + 1),
        paragraphs=tuple(told[-_CONTEXT:]),
        suggestions=(f"Let the keeper open door {number}.", "The map changes whenever the tide turns."),
        max_words=140,
        max_context=_CONTEXT,
        seed=hashlib.sha256(number.to_bytes(8, "big")).digest(),
    )
