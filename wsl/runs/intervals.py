"""95 % intervals of shares of images; no torch is loaded."""

from __future__ import annotations

import math

CONFIDENCE_Z = 1.959963984540054
"""Two-sided 95 %."""

Interval = tuple[float, float]


def wilson(num_hits: int, num: int) -> Interval | None:
    """The 95 % interval of a share (Wilson 1927); None of nothing.

    Unlike the normal approximation it stays within 0 to 1 and is of use for few or extreme counts.
    """
    if num == 0:
        return None
    share, z2 = num_hits / num, CONFIDENCE_Z**2
    middle = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = CONFIDENCE_Z / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def macro_interval(hits: list[int], nums: list[int]) -> Interval | None:
    """The 95 % interval of the mean of the recalls of classes that occur.

    The recalls are independent binomials, so the variance of their mean over C classes is
    sum p(1-p)/n / C^2; p is shrunk by one hit and one miss, lest a class of few hits count as certain.
    """
    known = [(h, n) for h, n in zip(hits, nums, strict=True) if n]
    if not known:
        return None
    mean = sum(h / n for h, n in known) / len(known)
    shrunk = [((h + 1) / (n + 2), n) for h, n in known]
    half = CONFIDENCE_Z * math.sqrt(sum(p * (1 - p) / n for p, n in shrunk)) / len(known)
    return max(mean - half, 0.0), min(mean + half, 1.0)
