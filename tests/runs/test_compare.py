"""`wsl compare`: runs side by side."""

from __future__ import annotations

import json
import math

import pytest

from tests.help.stages import StageMaker, stopped
from wsl.cli import run as wsl_command
from wsl.training.stages import run_stage


def test_runs_are_compared_side_by_side(stages: StageMaker, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_stage(stages.config(), stages.inputs("one")).run
    stopped(stages, 4, "two", optimizer={"lr": 0.02})
    two = stages.root / "two"
    capsys.readouterr()
    assert wsl_command(["compare", str(one), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["different"] == {"optimizer.lr": [0.05, 0.02]}
    assert [run["state"] for run in found["runs"]] == ["complete", "running"]
    assert found["runs"][0]["top1"] is not None
    assert math.isfinite(found["runs"][0]["loss"])
    assert wsl_command(["compare", str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert "optimizer.lr" in text
    assert "macro-averaged recall" in text
    assert wsl_command(["compare", str(stages.root)]) == 2
