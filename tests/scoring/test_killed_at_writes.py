"""A kill at any write, whichever it is: results are whole or not there, and the same command goes on to the
same bytes. Two commands at once over one folder: one is told of the other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.help.commands import refused, wsl_json
from tests.help.thoroughness import Places
from wsl.files.locking import locked, shared_by_ranks
from wsl.scoring.verbs import SCORING

HELP = Path(__file__).resolve().parents[1] / "help"


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that kills; the compiler that links the engine makes it too."""
    compiler = shutil.which("cc") or shutil.which("c++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux")
    out = tmp_path_factory.mktemp("shim") / "kill_at.so"
    command = [compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", out, HELP / "kill_at.c", "-ldl"]
    subprocess.run(command, check=True)
    return out


def kill_at_writes(
    shim: Path, folder: Path, command: list[object], results: list[str], places: Places, *, scores: int = 0
) -> dict[str, int]:
    """Kills the command at some of its writes below the folder; `scores` is the size of a range."""
    folder.mkdir()
    job = {"command": [str(item) for item in command], "folder": str(folder), "results": results}
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(job | asdict(places) | {"scores": scores}))
    environment = {"LD_PRELOAD": str(shim), "KILL_BELOW": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HELP / "killed_at_writes.py", file],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_scoring_into_a_state_goes_on_after_a_kill_at_any_write(
    shim: Path, workspace: Path, tmp_path: Path, places: Places
) -> None:
    folder = tmp_path / "f"
    paths = ["--checkpoint", workspace / "runs" / "teacher", "--index", workspace / "index" / "unlabelled"]
    options = ["--k", 20, "--p", 2, "--no-flip", "--out", folder / "d.parquet", "--state", folder / "s.state"]
    found = kill_at_writes(
        shim, folder, ["pseudolabel", *paths, *options], ["d.parquet", "s.state"], places, scores=300
    )
    assert found["writes"] > 30
    assert found["kills"] >= len(places.of(found["writes"] - 3))


def test_scoring_into_files_goes_on_after_a_kill_at_any_write(
    shim: Path, workspace: Path, tmp_path: Path, places: Places
) -> None:
    folder = tmp_path / "f"
    paths = ["--checkpoint", workspace / "runs" / "teacher", "--index", workspace / "index" / "unlabelled"]
    options = ["--keep", 3, "--no-flip", "--out", folder / "p"]
    found = kill_at_writes(
        shim, folder, ["score", *paths, *options], ["p/scores-*.parquet"], places, scores=300
    )
    assert found["writes"] > 10
    assert found["kills"] >= len(places.of(found["writes"] - 3))


def test_a_spilling_selection_goes_on_after_a_kill_at_any_write(shim: Path, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    order = np.random.default_rng(0).permutation(200_000)
    columns = {"sample": order // 40, "class": order % 40}
    scores = (order * 48_271 % 65_537 / 1024).astype(np.float32)
    pl.DataFrame(columns | {"score": scores}).write_parquet(tmp_path / "p.parquet")
    options = ["--k", 4000, "--p", 3, "--memory", "1MiB", "--spill-dir", folder / "spill", "--workers", 1]
    command = ["pseudolabel", "--predictions", tmp_path / "p.parquet", *options]
    files = ["--out", folder / "d.parquet", "--state", folder / "s.state"]
    found = kill_at_writes(shim, folder, [*command, *files], ["d.parquet", "s.state"], Places(97, 0))
    assert found["writes"] > 1000
    assert found["kills"] > 10


def test_one_of_two_that_score_into_a_folder_is_told_of_the_other(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--checkpoint", workspace / "runs" / "teacher", "--index", workspace / "index" / "unlabelled"]
    select = ["pseudolabel", *paths, "--k", 20, "--p", 2, "--no-flip", "--out", tmp_path / "d.parquet"]
    score = ["score", *paths, "--no-flip", "--out", tmp_path / "files"]
    wsl_json(capsys, *select, "--json")
    whole = (tmp_path / "d.parquet").read_bytes()
    (job,) = (tmp_path / "d-scores" / "states").iterdir()
    # States that are whole are read without a lock.
    with locked(job, SCORING):
        wsl_json(capsys, *select, "--overwrite", "--json")
    for mark in job.glob("done-*"):
        mark.unlink()
    for folder, command in ((job, [*select, "--overwrite"]), (tmp_path / "files", score)):
        with locked(folder, SCORING):
            code, said = refused(capsys, *command)
            assert (code, "another process is scoring into this folder" in said) == (2, True), said
        with shared_by_ranks(folder), shared_by_ranks(folder):
            code, said = refused(capsys, *command)
            assert (code, "ranks of a command that has ended are" in said) == (2, True), said
    assert (tmp_path / "d.parquet").read_bytes() == whole
    wsl_json(capsys, *select, "--overwrite", "--json")
    assert (tmp_path / "d.parquet").read_bytes() == whole
    wsl_json(capsys, *score, "--json")


def test_what_two_workers_scored_counts_once(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--checkpoint", workspace / "runs" / "teacher", "--index", workspace / "index" / "unlabelled"]
    select = ["pseudolabel", *paths, "--k", 20, "--p", 2, "--no-flip", "--out", tmp_path / "d.parquet"]
    wsl_json(capsys, *select, "--json")
    whole = (tmp_path / "d.parquet").read_bytes()
    (mark,) = (tmp_path / "d-scores" / "states").glob("*/done-*.json")
    mark.with_name("done-other.json").write_text(mark.read_text())
    wsl_json(capsys, *select, "--overwrite", "--json")
    assert (tmp_path / "d.parquet").read_bytes() == whole
