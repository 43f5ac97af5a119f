"""The unit of account: how many tokens a call took, for every model alike.

Tokens of the public vocabulary `o200k_base`, over the contents of the messages and the answer and nothing else: anyone
can count them again, offline, whatever the model's own vocabulary is. What a backend says it used is shown beside.

Source: docs/protocol/llm.md.
"""

from collections.abc import Callable, Iterable
from typing import Final

from loremesh.protocol.llm import ChatMessage

TOKENIZER: Final = "o200k_base"
TOKENS_PER_PRICE: Final = 1000
"""A price is for this many."""

Count = Callable[[str], int]
"""Counts the tokens of a text; text that looks like a special token is text."""


def prompt_tokens(messages: Iterable[ChatMessage], count: Count) -> int:
    """Count what a model reads: each content by itself, without anything for roles or for the message."""
    return sum(count(message.content) for message in messages)


def completion_tokens(answer: str, count: Count) -> int:
    """Count what a model wrote: the whole answer at once, however it was cut into pieces."""
    return count(answer)


def amount_of(tokens: int, price: int) -> int:
    """Tell what tokens cost in gwei, rounded up.

    Args:
        tokens: Of prompt and answer together.
        price: Gwei per 1,000 tokens.
    """
    return -(-tokens * price // TOKENS_PER_PRICE)
