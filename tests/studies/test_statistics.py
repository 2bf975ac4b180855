"""Means over seeds against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.help.thoroughness import examples
from wsl.studies.statistics import Estimate, differences, interval, t_quantile, t_share

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@pytest.mark.parametrize("degrees", [*range(1, 31), 60, 121, 1000])
def test_the_quantile_is_that_of_student_s_t(degrees: int) -> None:
    for probability in (0.5, 0.6, 0.9, 0.975, 0.995):
        expected = scipy.stats.t.ppf(probability, degrees)
        assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_quantiles_that_books_print() -> None:
    found = {degrees: round(t_quantile(0.975, degrees), 3) for degrees in (1, 2, 4, 9)}
    assert found == {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262}


@given(st.floats(0, 1e4), st.integers(1, 200))
def test_the_share_is_that_of_student_s_t(t: float, degrees: int) -> None:
    expected = 1 - 2 * scipy.stats.t.sf(t, degrees)
    assert t_share(t, degrees) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_a_quantile_that_is_none_is_refused(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.5 to 1"):
        t_quantile(probability, degrees)


@given(VALUES)
def test_an_interval_is_scipy_s(values: list[float]) -> None:
    mean, low, high = interval(values)
    assert mean is not None
    assert low is not None
    assert high is not None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    assert low == pytest.approx(mean - half, abs=1e-6)
    assert high == pytest.approx(mean + half, abs=1e-6)


@examples(20)
@given(VALUES, st.floats(-10, 10))
def test_an_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    mean, low, high = interval(values)
    moved = interval([value + shift for value in values])
    assert moved == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-6)  # type: ignore[operator]


def test_of_one_seed_there_is_no_interval_and_of_none_no_mean() -> None:
    assert interval([0.5]) == (0.5, None, None)
    assert interval([]) == (None, None, None)
    assert Estimate.of({}).to_dict() == {"mean": None, "low": None, "high": None, "values": []}


def test_an_estimate_says_whose_values_it_holds() -> None:
    found = Estimate.of({2: 0.3, 0: 0.1, 1: 0.2})
    assert found.seeds == (0, 1, 2)
    assert found.values == (0.1, 0.2, 0.3)
    assert found.mean == pytest.approx(0.2)


def test_differences_are_taken_where_both_sides_have_the_seed() -> None:
    assert differences({0: 0.5, 1: 0.6, 2: 0.7}, {1: 0.5, 2: 0.5, 3: 0.1}) == pytest.approx({1: 0.1, 2: 0.2})


def test_pairs_see_what_two_intervals_hide() -> None:
    """Seeds that differ much, and a small gain in each of them."""
    scratch = {0: 0.70, 1: 0.75, 2: 0.80}
    better = {seed: value + 0.01 + 0.0001 * seed for seed, value in scratch.items()}
    paired = Estimate.of(differences(better, scratch))
    assert paired.low is not None
    assert paired.low > 0
    first, second = Estimate.of(better), Estimate.of(scratch)
    assert first.low is not None
    assert second.high is not None
    assert first.low < second.high


def test_a_side_made_once_stands_for_every_seed() -> None:
    assert differences({0: 0.5, 1: 0.6}, {None: 0.5}) == pytest.approx({0: 0.0, 1: 0.1})
    assert differences({None: 0.5}, {0: 0.4}) == pytest.approx({0: 0.1})
