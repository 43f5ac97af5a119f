"""What one peer sends without end is worked off with pauses, and what it may send now and then is not."""

import time
from contextlib import suppress

import trio
from trio.testing import MockClock

from loremesh.network.pace import Allowance, Pace


def burn(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


async def slept(pace: Pace) -> float:
    before = trio.current_time()
    await pace.rest()
    return trio.current_time() - before


async def test_work_without_end_takes_a_fifth_of_the_time(autojump_clock: MockClock) -> None:
    pace, before = Pace(), trio.current_time()
    for _ in range(50):
        with pace.work():
            burn(0.001)
        await pace.rest()
    assert trio.current_time() - before >= 4 * 50 * 0.001


async def test_a_little_work_now_and_then_owes_no_pause(autojump_clock: MockClock) -> None:
    pace = Pace()
    for _ in range(100):
        with pace.work():
            pass
        await trio.sleep(0.2)
        assert await slept(pace) == 0


async def test_no_pause_is_long_however_long_the_machine_was_busy(autojump_clock: MockClock) -> None:
    pace = Pace()
    with pace.work():
        burn(0.2)
    assert 0 < await slept(pace) <= 0.25
    assert await slept(pace) == 0


async def test_work_that_fails_counts_as_well(autojump_clock: MockClock) -> None:
    pace = Pace()
    with suppress(ValueError), pace.work():
        burn(0.002)
        raise ValueError("junk")
    assert await slept(pace) > 0.004


async def test_an_allowance_comes_back_by_and_by_and_never_grows_over_its_most(autojump_clock: MockClock) -> None:
    allowance = Allowance(10, 1)
    assert allowance.take(10)
    assert not allowance.take(1)
    await trio.sleep(3)
    assert allowance.take(3)
    assert not allowance.take(1)
    await trio.sleep(1000)
    assert not allowance.take(11)
    assert allowance.take(10)
