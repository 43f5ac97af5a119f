"""Work: a fixed-point exponential that every node computes alike, and a pace that the chain keeps by itself."""

import random
import tracemalloc
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh.primitives import Hash, Millis, Target
from loremesh.protocol.work import meets, next_target, scale, search, search_prefix, target_of, work_of
from loremesh.testing.builders import ANN, BOB

SPACING, HALF_LIFE, EASIEST = Millis(3000), Millis(60_000), 2**14
STORY, PARENT = Hash(bytes(range(32))), Hash(bytes(range(32, 64)))


def after(target: Target, took: int) -> Target:
    return next_target(target, Millis(took), spacing=SPACING, half_life=HALF_LIFE, easiest_work=EASIEST)


def absolute_target(anchor: int, *, elapsed: int, blocks: int, spacing: int, half_life: int, easiest: int) -> int:
    """Give aserti3-2d's target: the absolute form, whose fraction truncates towards zero as its reference does."""
    lag = (elapsed - spacing * blocks) * 65536
    exponent = abs(lag) // half_life * (1 if lag >= 0 else -1)
    return max(1, min(scale(anchor, exponent), easiest))


@pytest.mark.parametrize("power", [-255, -16, -2, -1, 0, 1, 2, 30])
def test_whole_powers_of_two_are_exact(power: int) -> None:
    target = 2**256 - 2**200
    assert scale(target, power * 65536) == (target << power if power >= 0 else target >> -power)


@pytest.mark.parametrize(
    ("exponent", "factor"),
    [
        (0, 65536),
        (1, 65537),
        (16384, 77938),
        (32768, 92674),
        (49152, 110225),
        (65535, 131071),
        (65536, 131072),
        (-1, 65535),
        (-32768, 46337),
        (-65536, 32768),
    ],
)
def test_powers_of_two_between_have_these_exact_factors(exponent: int, factor: int) -> None:
    assert scale(65536, exponent) == factor


@given(st.integers(0, 65535))
def test_the_polynomial_is_off_by_less_than_13_thousandths_of_a_percent(fraction: int) -> None:
    assert abs(scale(2**200, fraction) / 2**200 / 2 ** (fraction / 65536) - 1) < 0.000_13


@given(st.integers(1, 2**256 - 1), st.integers(-(2**22), 2**22), st.integers(1, 2**20))
def test_a_greater_exponent_never_gives_a_smaller_target(target: int, exponent: int, more: int) -> None:
    assert scale(target, exponent) <= scale(target, exponent + more)


@given(st.integers(0, 10**6), st.integers(1, 2000))
def test_the_absolute_form_over_scale_is_on_schedule_exactly_when_the_chain_is(late: int, blocks: int) -> None:
    anchor, pace = 2**230, {"spacing": 600, "half_life": 172_800, "easiest": 2**250}
    on_time = absolute_target(anchor, elapsed=600 * blocks, blocks=blocks, **pace)
    assert on_time == anchor
    assert absolute_target(anchor, elapsed=600 * blocks + late, blocks=blocks, **pace) >= anchor
    halved = absolute_target(anchor, elapsed=600 * blocks - 172_800, blocks=blocks, **pace)
    assert halved == anchor // 2


def test_a_block_on_time_leaves_the_target() -> None:
    assert after(target_of(2**20), SPACING) == target_of(2**20)


def test_a_late_block_makes_the_next_easier_and_an_early_one_harder() -> None:
    target = target_of(2**20)
    assert after(target, SPACING + 500) > target > after(target, SPACING - 500)


def test_a_pause_owes_nothing() -> None:
    target = target_of(2**20)
    assert after(target, 8 * 3600 * 1000) == after(target, 4 * SPACING)
    # Three spacings late at a half-life of twenty: a factor of 2^(3/20), and no more.
    assert after(target, 8 * 3600 * 1000) / target == pytest.approx(2 ** (9000 / 60_000), rel=0.001)


def test_the_work_never_falls_below_the_easiest() -> None:
    assert after(target_of(EASIEST), 4 * SPACING) == target_of(EASIEST)


def test_a_target_never_falls_below_one() -> None:
    assert after(Target(1), 0) == 1


@given(st.integers(1, 2**64 - 1))
def test_work_and_target_name_each_other(work: int) -> None:
    assert work_of(target_of(work)) == work


def test_no_genesis_makes_a_target_cost_megabytes() -> None:
    day = Millis(86_400_000)
    tracemalloc.start()
    try:
        for took in (0, 4 * day):
            result = next_target(target_of(2**64 - 1), Millis(took), spacing=day, half_life=Millis(1), easiest_work=1)
            assert result == (target_of(1) if took else 1)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_fraction_of_a_step_rounds_down() -> None:
    target = target_of(2**20)
    result = next_target(target, Millis(2999), spacing=SPACING, half_life=Millis(10**8), easiest_work=EASIEST)
    assert result == scale(target, -1)


def test_a_nonce_meets_a_target_or_does_not() -> None:
    prefix, target = search_prefix(STORY, PARENT, ANN.peer_id), target_of(64)
    found = [nonce for nonce in range(2000) if meets(prefix, nonce, target)]
    assert 10 < len(found) < 60
    assert search(prefix, target, 0, 2000) == found[0]
    assert search(prefix, target, found[0] + 1, 2000) == found[1]
    assert search(prefix, target, 0, found[0]) is None
    assert search(prefix, target, 0, 0) is None


def test_work_for_one_producer_parent_or_story_is_none_for_another() -> None:
    target = target_of(2**16)
    nonce = search(search_prefix(STORY, PARENT, ANN.peer_id), target, 0, 2**22)
    assert nonce is not None
    assert not meets(search_prefix(STORY, PARENT, BOB.peer_id), nonce, target)
    assert not meets(search_prefix(STORY, STORY, ANN.peer_id), nonce, target)
    assert not meets(search_prefix(PARENT, PARENT, ANN.peer_id), nonce, target)


@pytest.mark.parametrize("hashes_per_second", [7000, 40_000, 1_000_000])
def test_miners_settle_at_the_spacing(hashes_per_second: int) -> None:
    chance, target, spans = random.Random(7), target_of(2**20), list[float]()
    for _ in range(6000):
        seconds = chance.expovariate(hashes_per_second / work_of(target))
        took = max(1000, round(seconds * 1000))
        spans.append(took)
        target = after(target, took)
    assert fmean(spans[2000:]) == pytest.approx(SPACING, rel=0.1)


def test_twice_the_hash_power_ends_in_twice_the_work() -> None:
    def settled(hashes_per_second: int) -> float:
        chance, target, works = random.Random(8), target_of(2**20), list[int]()
        for _ in range(6000):
            took = round(chance.expovariate(hashes_per_second / work_of(target)) * 1000)
            target = after(target, max(1000, took))
            works.append(work_of(target))
        return fmean(works[2000:])

    assert settled(200_000) / settled(100_000) == pytest.approx(2, rel=0.1)
