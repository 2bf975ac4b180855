"""A share as a cell of a table."""

from __future__ import annotations

from typing import Any

from wsl.figures.page import Lines


def measured(value: float | None, interval: Any) -> Lines | str:
    """A share with its 95 % interval beneath it."""
    if value is None:
        return "-"
    small = [f"{100 * interval[0]:.1f}\u00a0to\u00a0{100 * interval[1]:.1f}"] if interval else []
    return Lines(f"{value:.1%}", small)
