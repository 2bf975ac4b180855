"""What is scored already is reported and selected from without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.help.commands import wsl_json

WITHOUT_TORCH = """\
import json, sys
from wsl.cli import run
codes = [run(arguments) for arguments in json.loads(sys.argv[1])]
loaded = {"torch", "torchvision", "deepspeed"} & set(sys.modules)
sys.exit(0 if codes == [0] * len(codes) and not loaded else f"{codes}, {loaded}")
"""


def test_complete_scores_and_states_need_no_torch(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", workspace / "runs" / "teacher", "--index", workspace / "index" / "unlabelled"]
    select = ["pseudolabel", *given, "--p", 2, "--out", tmp_path / "o.parquet", "--overwrite"]
    score = ["score", *given, "--out", tmp_path / "scores", "--json"]
    made = wsl_json(capsys, *select, "--k", 30, "--json")
    first = wsl_json(capsys, *score)
    kept = ["pseudolabel", *given, "--p", 2, "--k", 30, "--out", tmp_path / "kept.parquet", "--keep", "all"]
    wsl_json(capsys, *kept, "--json")
    again = wsl_json(capsys, *score)
    assert (first["state"], again["state"], again["num_scored"]) == ("scored", "up to date", 0)
    assert again | {"state": 0, "num_scored": 0, "images_per_second": 0} == first | {
        "state": 0,
        "num_scored": 0,
        "images_per_second": 0,
    }
    commands = [
        [*select, "--k", 10],
        [*select, "--k", 30],
        score,
        [*score, "--num-accelerators", 2],
        [*kept, "--overwrite"],
    ]
    texts = json.dumps([[str(argument) for argument in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, texts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert made["num_pairs"] > 0
