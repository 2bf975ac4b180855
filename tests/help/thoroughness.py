"""How thorough a run is: `python -m pytest` is quick, `python -m pytest -m ''` leaves nothing out."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

EVERY = 5
"""A quick run takes every fifth of many places; from which on walks with the days."""


@dataclass(frozen=True)
class Places:
    """Which of many places a test looks at: the first, counted from 0, and how far it is to the next."""

    every: int
    first: int

    def of(self, number: int) -> range:
        """Those below `number`."""
        return range(self.first, number, self.every)


def runs_long(config: pytest.Config) -> bool:
    """Whether tests that are marked `long` run."""
    return not re.search(r"\bnot\s+long\b", config.getoption("markexpr", "") or "")


def first_place() -> int:
    """The first of many places that a quick run looks at."""
    given = os.environ.get("WSL_FIRST_PLACE")
    return int(given) % EVERY if given else datetime.date.today().toordinal() % EVERY


def examples(number: int, **more: Any) -> settings:
    """Settings of Hypothesis with `number` examples in the profile `long`, and a fifth in the default."""
    wanted = max(1, number * settings.default.max_examples // 100)
    return settings(max_examples=wanted, deadline=None, **more)
