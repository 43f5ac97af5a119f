"""Calls to models for tests: requests, answers in pieces, and the bills that follow."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from loremesh.primitives import Hash, Millis
from loremesh.protocol.identity import Identity
from loremesh.protocol.llm import ChatMessage, Delta, LlmRequest, Transcript
from loremesh.testing.builders import ANN, BOB, START

CLIENT: Final = ANN
EXECUTOR: Final = BOB
PRICE: Final = 250
SESSION: Final = Hash(b"\x5e" * 32)
ASKED: Final = (ChatMessage("system", "You tell stories."), ChatMessage("user", "Who keeps the lamp?"))
PIECES: Final = ("Nobody", " keeps the lamp", " — it keeps itself. 🐉")


def chat_request(number: int = 1, /, **changes: Any) -> LlmRequest:  # noqa: ANN401 - any field
    """Make a request of `CLIENT` to `EXECUTOR`.

    Args:
        number: Another one makes another id.
        changes: Fields that differ from the usual.
    """
    usual = LlmRequest(
        id=Hash(number.to_bytes(32, "big")),
        client=CLIENT.peer_id,
        executor=EXECUTOR.peer_id,
        session=SESSION,
        model="small-model",
        messages=ASKED,
        continues=0,
        max_tokens=200,
        temperature=(700,),
        top_p=(),
        seed=(42,),
        stop=(),
        response_format="",
        max_price=1000,
        fold_words=0,
        time=START,
        expires=Millis(START + 60_000),
    )
    return replace(usual, **changes)


def count_words(text: str) -> int:
    """Count words: for tests that need a counter and not its vocabulary."""
    return len(text.split())


def answer(
    request: LlmRequest, pieces: Sequence[str] = PIECES, executor: Identity = EXECUTOR
) -> tuple[Transcript, tuple[Delta, ...]]:
    """Answer a request in pieces, as its executor."""
    transcript = Transcript(request.id, PRICE)
    return transcript, tuple(transcript.add(executor, piece) for piece in pieces)
