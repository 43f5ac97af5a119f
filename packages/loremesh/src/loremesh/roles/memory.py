"""Memory that the C library holds free between what is in use is given back to the machine now and then.

A node takes and frees pieces of every size for weeks, in several threads. glibc gives back by itself only what is free
at the end of its heaps, so that a node grows which holds no more than before. Elsewhere there is nothing to do.
"""

import ctypes
from collections.abc import Callable
from typing import Final, cast

import trio

EVERY: Final = 60.0
"""Seconds between two times; each takes a few milliseconds."""

GiveBack = Callable[[], object]


def find_give_back() -> GiveBack | None:
    """Find what gives memory back; None where the C library has no such function.

    Source: malloc_trim(3) of glibc.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return cast("GiveBack", lambda: trim(0))


async def keep_memory_small(give_back: GiveBack | None) -> None:
    """Give memory back every minute until cancelled."""
    while give_back is not None:
        await trio.sleep(EVERY)
        give_back()
