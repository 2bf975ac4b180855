"""How thorough a run is: `python -m pytest` is quick, `python -m pytest -m ''` leaves nothing out."""

from __future__ import annotations

import datetime
import os
import re
from typing import Any

import pytest
from hypothesis import settings

KILL_EVERY = 5
"""A quick run kills a command at every fifth write; from which on walks with the days."""


def runs_long(config: pytest.Config) -> bool:
    """Whether tests that are marked `long` run."""
    return not re.search(r"\bnot\s+long\b", config.getoption("markexpr", "") or "")


def kill_offset() -> int:
    """The first write, counted from 0, at which a quick run kills."""
    given = os.environ.get("WSL_KILL_OFFSET")
    return int(given) % KILL_EVERY if given else datetime.date.today().toordinal() % KILL_EVERY


def examples(number: int, **more: Any) -> settings:
    """Settings of Hypothesis with `number` examples in the profile `long`, and a fifth in the default."""
    wanted = max(1, number * settings.default.max_examples // 100)
    return settings(max_examples=wanted, deadline=None, **more)
