"""Memory that is free is given back to the machine."""

import platform
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from loremesh.primitives import MIB
from loremesh.roles.memory import EVERY, find_give_back, keep_memory_small


def resident() -> int:
    """Give the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_what_is_free_between_pieces_in_use_goes_back_to_the_machine() -> None:
    give_back = find_give_back()
    assert give_back is not None
    pieces = [bytes(random.randint(600, 6000)) for _ in range(30_000)]
    random.shuffle(pieces)
    del pieces[:15_000]
    before = resident()
    give_back()
    assert resident() < before - 10 * MIB


async def test_it_is_given_back_every_minute(autojump_clock: MockClock) -> None:
    times: list[float] = []
    with trio.move_on_after(3.5 * EVERY):
        await keep_memory_small(lambda: times.append(trio.current_time()))
    assert len(times) == 3


async def test_where_the_machine_takes_nothing_back_there_is_nothing_to_do() -> None:
    with trio.fail_after(5):
        await keep_memory_small(None)
