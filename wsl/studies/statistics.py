"""Means over seeds, their intervals, and differences seed by seed.

A study trains the same network with several seeds; what is reported of it is a mean over seeds with the 95 %
interval of Student's t with n - 1 degrees of freedom ("Student" 1908), and differences are taken within a
seed before they are averaged, since both sides share the seed's data and initial weights. One seed gives a
mean and no interval. A seed that is missing is missing: nothing is filled in, and `Estimate.seeds` shows
which ones count.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
BySeed = Mapping[int | None, float]
"""A value for each seed; None is a step that no seed was given to."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and where it may be."""

    seeds: tuple[int | None, ...]
    values: tuple[float, ...]
    """One for each seed, in the same order."""
    mean: float | None
    """None of no values."""
    low: float | None
    """The ends of the 95 % interval of the mean; None of fewer than two values."""
    high: float | None

    @classmethod
    def of(cls, by_seed: BySeed) -> Estimate:
        """The estimate from a value for each seed, in ascending order of the seeds."""
        seeds = sorted(by_seed, key=lambda seed: (seed is None, seed or 0))
        values = tuple(float(by_seed[seed]) for seed in seeds)
        mean, low, high = interval(values)
        return cls(tuple(seeds), values, mean, low, high)

    def __len__(self) -> int:
        return len(self.values)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "mean": self.mean,
            "low": self.low,
            "high": self.high,
            "values": [
                {"seed": seed, "value": value} for seed, value in zip(self.seeds, self.values, strict=True)
            ],
        }


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean, and the ends of its 95 % interval: mean -+ t(0.975, n-1) s / sqrt(n), s with n - 1.

    The ends are None of fewer than two values, and the mean of none at all.
    """
    num = len(values)
    if num == 0:
        return None, None, None
    mean = math.fsum(values) / num
    if num == 1:
        return mean, None, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (num - 1)
    half = t_quantile(0.5 + CONFIDENCE / 2, num - 1) * math.sqrt(variance / num)
    return mean, mean - half, mean + half


def differences(of: BySeed, less: BySeed) -> dict[int | None, float]:
    """`of` less `less` for every seed that has both; a side made once, for no seed, counts for each."""
    if None in less:
        return {seed: value - less[None] for seed, value in of.items()}
    if None in of:
        return {seed: of[None] - value for seed, value in less.items()}
    return {seed: of[seed] - less[seed] for seed in of if seed in less}


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t for a whole number of degrees of freedom, by bisection of `t_share`.

    ValueError for a probability outside 0.5 to 1 (both exclusive at the top) and for degrees below 1.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(f"t_quantile({probability}, {degrees}): expected 0.5 to 1, and 1 degree or more")
    wanted = 2 * probability - 1
    low, high = 0.0, 1.0
    while t_share(high, degrees) < wanted:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if t_share(middle, degrees) < wanted else (low, middle)


def t_share(t: float, degrees: int) -> float:
    """The probability that Student's t is within -t to t (Abramowitz and Stegun 1964, 26.7.3 and 4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    # cos + 2/3 cos^3 + 2*4/(3*5) cos^5 + ... to cos^(v-2) for odd v, 1 + 1/2 cos^2 + ... for even v.
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine * cosine
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
