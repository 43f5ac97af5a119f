"""What a soak makes of the figures that it took."""

import pytest

from soak_figures import TEN_MINUTES, trend


def slope(points: list[tuple[float, float]]) -> float:
    found = trend(points)
    assert found is not None
    return found.slope


def test_a_slope_is_that_of_steady_growth() -> None:
    assert slope([(2.0 * number, 100 + number) for number in range(450)]) == pytest.approx(TEN_MINUTES / 2)


@pytest.mark.parametrize("peak", [range(200, 220), range(430, 450)])
def test_a_peak_does_not_bend_a_slope_wherever_it_is(peak: range) -> None:
    level = [(2.0 * number, 150.0 if number in peak else 100.0) for number in range(450)]
    assert slope(level) == 0


def test_samples_of_one_moment_have_no_slope_between_them() -> None:
    assert slope([(1.0, 5.0), (1.0, 5.0)]) == 0
    assert slope([(0.0, 1.0), (0.0, 1.0), (TEN_MINUTES, 2.0)]) == 1


def test_a_single_sample_has_no_trend() -> None:
    assert trend([(1.0, 1.0)]) is None
