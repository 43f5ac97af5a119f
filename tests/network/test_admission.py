"""Newcomers take turns: many from one address wait for each other, and nobody else waits for them."""

from collections import Counter

import pytest
import trio
from trio.testing import MockClock

from loremesh.network.admission import _MOST_IDLE, Admission


class Doorstep:
    """Lets newcomers in, and writes down when; each shakes hands for as long as it likes."""

    def __init__(self, admission: Admission, nursery: trio.Nursery) -> None:
        self.admission, self.nursery = admission, nursery
        self.began = trio.current_time()
        self.came: list[tuple[float, str]] = []
        self.under_way, self.most = Counter[str](), Counter[str]()

    async def let_in(self, address: str, seconds: float) -> None:
        async with self.admission.turn(address):
            self.came.append((trio.current_time() - self.began, address))
            self.under_way[address] += 1
            self.most |= self.under_way
            await trio.sleep(seconds)
            self.under_way[address] -= 1

    def ring(self, address: str, times: int, seconds: float) -> None:
        for _ in range(times):
            self.nursery.start_soon(self.let_in, address, seconds)

    def times(self, address: str) -> list[float]:
        return [when for when, who in self.came if who == address]


@pytest.fixture
def doorstep(nursery: trio.Nursery) -> Doorstep:
    return Doorstep(Admission(at_once=16, waiting=128, pace=20, burst=4), nursery)


async def test_a_few_come_at_once_and_then_one_after_the_other(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    doorstep.ring("here", 24, 0.01)
    await trio.sleep(10)
    times = doorstep.times("here")
    assert times[3] < 0.01
    assert times[4:] == pytest.approx([0.05 * number for number in range(1, 21)], abs=0.011)


async def test_twenty_behind_one_address_join_within_ten_seconds(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    doorstep.ring("here", 20, 1.0)  # a handshake with somebody far away
    await trio.sleep(10)
    assert len(doorstep.times("here")) == 20


async def test_after_a_while_a_few_may_come_at_once_again(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    doorstep.ring("here", 10, 0.01)
    await trio.sleep(5)
    doorstep.ring("here", 4, 0.01)
    await trio.sleep(0.02)
    assert len(doorstep.times("here")) == 14


async def test_whoever_shakes_hands_slowly_holds_a_quarter_of_the_places_and_nobody_else_up(
    autojump_clock: MockClock, doorstep: Doorstep
) -> None:
    doorstep.ring("slow", 60, 5.0)
    await trio.sleep(1)
    doorstep.ring("other", 1, 0.01)
    await trio.sleep(1)
    assert doorstep.most["slow"] == 4
    assert doorstep.times("other") == [1.0]


async def test_of_many_addresses_each_gets_its_turn_before_any_has_another(
    autojump_clock: MockClock, doorstep: Doorstep
) -> None:
    for number in range(8):
        doorstep.ring(f"slow {number}", 10, 5.0)
    await trio.sleep(1)
    doorstep.ring("other", 1, 0.01)
    await trio.sleep(15)
    [came] = doorstep.times("other")
    assert came <= 11  # all that stood in line before it: four of each


async def test_seven_addresses_that_shake_hands_slowly_hold_nobody_else_up(
    autojump_clock: MockClock, doorstep: Doorstep
) -> None:
    for number in range(7):
        doorstep.ring(f"slow {number}", 10, 5.0)
    for number in range(20):
        await trio.sleep(1.3)
        doorstep.ring(f"other {number}", 1, 0.01)
    await trio.sleep(10)
    came = [when for when, who in doorstep.came if who.startswith("other")]
    assert came == pytest.approx([1.3 * (number + 1) for number in range(20)])


async def test_one_address_may_fill_half_of_the_room_to_wait_in(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    assert doorstep.admission.has_room("slow")
    doorstep.ring("slow", 4 + 64, 5.0)
    await trio.sleep(1)
    assert not doorstep.admission.has_room("slow")
    assert doorstep.admission.has_room("other")
    doorstep.ring("other", 4 + 64, 5.0)
    await trio.sleep(1)
    assert not doorstep.admission.has_room("other")


async def test_two_addresses_that_fill_the_room_keep_no_other_from_waiting_its_turn(
    autojump_clock: MockClock, doorstep: Doorstep
) -> None:
    for address in ("slow", "other"):
        doorstep.ring(address, 4 + 64, 5.0)
    await trio.sleep(1)
    assert doorstep.admission.has_room("third")
    doorstep.ring("third", 4 + 1, 5.0)  # one of it waits
    await trio.sleep(1)
    assert not doorstep.admission.has_room("third")


async def test_from_however_many_addresses_they_come_only_so_many_wait(
    autojump_clock: MockClock, doorstep: Doorstep
) -> None:
    for number in range(1000):
        if doorstep.admission.has_room(f"address {number}"):
            doorstep.ring(f"address {number}", 1, 5.0)
            await trio.sleep(1e-6)
    assert len(doorstep.came) == 16
    assert sum(one.inside for one in doorstep.admission._addresses.values()) == 16 + 2 * 128


async def test_the_room_is_free_again_when_they_have_gone(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    doorstep.ring("slow", 68, 5.0)
    await trio.sleep(0.1)
    with trio.move_on_after(0.5):
        await doorstep.let_in("slow", 1)  # gives up while it waits
    assert not doorstep.came[4:]
    await trio.sleep(90)
    assert len(doorstep.came) == 68
    assert doorstep.admission.has_room("slow")


async def test_addresses_that_came_and_went_are_forgotten(autojump_clock: MockClock, doorstep: Doorstep) -> None:
    for number in range(4 * _MOST_IDLE):
        await doorstep.let_in(f"address {number}", 0.01)
    assert len(doorstep.admission._addresses) <= _MOST_IDLE
