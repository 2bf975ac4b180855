"""Sizes in words: ``2GiB``, ``512M`` or a plain number of bytes."""

from __future__ import annotations

import re

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int | None:
    """The bytes that ``2GiB``, ``512M`` or a plain number mean; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    return None if found is None else int(float(found[1]) * UNITS[found[2]])
