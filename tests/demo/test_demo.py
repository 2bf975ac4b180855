"""The demo: both pipelines end to end, and the report that it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.help.workspaces import NUM_LABELLED, NUM_TEST, NUM_UNLABELLED
from wsl.demo.run import run_demo
from wsl.training.launch import LAUNCH_VARIABLES

STEPS = "num_steps=4"


def check_report(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "Hashtags by rank" in text
    assert "pseudo-labelled images" in text


def test_the_demo_over_few_images_leaves_its_report(tmp_path: Path) -> None:
    said: list[str] = []
    result = run_demo(
        tmp_path,
        note=said.append,
        overrides=[STEPS],
        num_labelled=NUM_LABELLED,
        num_unlabelled=NUM_UNLABELLED,
        num_test=NUM_TEST,
    )
    assert len(result.outcomes) == 6
    assert len(json.loads(json.dumps(result.to_dict()))["outcomes"]) == 6
    assert any(f"scores {NUM_UNLABELLED} images" in line for line in said)
    check_report(tmp_path)


@pytest.mark.long
def test_the_demo_runs_cut_down_and_leaves_its_report(tmp_path: Path) -> None:
    command = "from wsl.cli import main; main()"
    arguments = ["demo", "--out", "demo", "--set", STEPS, "--json"]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["outcomes"]) == 6
    check_report(tmp_path / "demo")
