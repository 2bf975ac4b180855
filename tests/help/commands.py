"""Running the command line in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wsl.cli import run


def wsl_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What a command that must succeed prints with --json."""
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The exit code of a command, and what it says on standard error, without a frame."""
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, " ".join(captured.err.replace("│", " ").split())


def select(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[Any, pl.DataFrame]:
    """The report of `wsl pseudolabel`, and the selection."""
    report = wsl_json(capsys, "pseudolabel", "--out", out, "--json", *arguments)
    return report, pl.read_parquet(out)
