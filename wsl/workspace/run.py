"""What the folder of a run records: whether it is complete, and its `run.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wsl._core import DataError


def is_complete(run: Path) -> bool:
    """Whether a run folder has a finished run (by its `run.json`, which is written last)."""
    return (run / "run.json").is_file() and read_run(run).get("state") == "complete"


def read_run(run: Path) -> dict[str, Any]:
    """The content of a run's `run.json`; DataError where it is not JSON."""
    file = run / "run.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: expected JSON as 'wsl train' writes it, found: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content
