"""Intervals of shares and of macro-averaged recall."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from wsl.runs.intervals import macro_interval, wilson


@given(st.integers(1, 500), st.data())
def test_intervals_of_shares_are_those_of_scipy(num: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, num))
    theirs = binomtest(hits, num).proportion_ci(0.95, method="wilson")
    ours = wilson(hits, num)
    assert ours is not None
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert wilson(0, 0) is None


def test_the_interval_of_macro_recall_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    nums, recalls = [20, 50, 200, 35], np.array([0.3, 0.9, 0.6, 0.75])
    covered = 0
    for _ in range(400):
        interval = macro_interval(generator.binomial(nums, recalls).tolist(), nums)
        assert interval is not None
        covered += interval[0] <= recalls.mean() <= interval[1]
    assert 0.92 <= covered / 400 <= 0.99
