"""A study makes each step once, goes on where it was, and says what it came to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import wsl
from tests.help.studies import STUDY, make_world, write_yaml
from wsl.cli import run
from wsl.scoring.network import Scorer
from wsl.scoring.pseudolabels import select
from wsl.scoring.request import SelectionRequest
from wsl.studies.run import StudyRequest, StudyResult, run_study
from wsl.training.launch import LAUNCH_VARIABLES
from wsl.workspace.run import read_run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "w")


@pytest.fixture(scope="module")
def done(world: Path) -> StudyResult:
    """The study, run once."""
    return run_study(request(world, write_yaml(world / "tiny.yaml")))


def request(world: Path, file: Path, **more: Any) -> StudyRequest:
    return StudyRequest(str(file), workspace=world, **more)


def columns(table: pl.DataFrame) -> pl.DataFrame:
    """What must be the same whenever it is made."""
    timed = ("seconds", "images_per_second")
    return table.drop([name for name in table.columns if name in timed])


def test_every_step_is_a_row_with_its_axes_and_metrics(done: StudyResult) -> None:
    table = done.table
    assert table["step"].value_counts().sort("step").rows() == [
        *(("chosen", 4), ("student", 4), ("teacher", 2), ("tuned", 4))
    ]
    assert done.num_new == 14
    tuned = table.filter(step="tuned", k=5, seed=1)
    run_info = read_run(done.folder.parent / tuned["folder"].item())
    assert tuned["top1"].item() == run_info["evaluation"]["top1"]
    assert tuned["recall_reds"].item() == run_info["evaluation"]["per_class_recall"][0]
    assert tuned["config.seed"].item() == 1
    assert tuned["config.model.name"].item() == "narrow"
    assert table.filter(step="teacher")["k"].null_count() == 2
    assert run_info["inputs"]["init"]
    assert_frame_equal(pl.read_parquet(done.folder / "results.parquet"), table)


def test_selections_are_measured_by_the_truth(done: StudyResult) -> None:
    row = done.table.filter(step="chosen", k=5, seed=0)
    pairs = pl.read_parquet(done.folder.parent / row["folder"].item() / "pseudolabels.parquet")
    numbers = pairs["key"].str.split("-").list.last().cast(pl.Int64)
    known = pairs.filter(numbers < 24)
    right = (known["key"].str.split("-").list.last().cast(pl.Int64) % 3 == known["class"]).sum()
    assert row["num_pairs"].item() == len(pairs)
    assert row["precision"].item() == pytest.approx(right / len(known))
    assert row["share_foreign"].item() == pytest.approx(1 - len(known) / len(pairs))


def test_one_pass_of_scores_serves_every_k(done: StudyResult, world: Path, tmp_path: Path) -> None:
    steps = done.folder.parent / "steps"
    assert len(list(steps.glob("scores-*"))) == 2
    for row in done.table.filter(step="chosen").iter_rows(named=True):
        teacher = done.table.filter(step="teacher", seed=row["seed"])["folder"].item()
        out = tmp_path / f"{row['seed']}-{row['k']}.parquet"
        select(
            SelectionRequest(
                k=row["k"],
                p=10,
                checkpoint=done.folder.parent / teacher,
                index=world / "index" / "unlabelled",
                out=out,
            )
        )
        ours = pl.read_parquet(done.folder.parent / row["folder"] / "pseudolabels.parquet")
        assert_frame_equal(ours, pl.read_parquet(out))


def test_run_again_nothing_is_made(done: StudyResult, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsl.studies.run.make", lambda step: pytest.fail(f"{step} was made again"))
    again = run_study(request(world, world / "tiny.yaml"))
    assert again.num_new == 0
    assert_frame_equal(again.table, done.table)


def test_another_study_takes_what_it_shares(
    done: StudyResult, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger K is scored again and leaves what smaller ones selected; teachers are the same."""
    scored: list[str] = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *a, **k: scored.append("x") or score(*a, **k))
    wider = write_yaml(world / "wider.yaml", axes={"k": [2, 5, 8]}, seeds=[1])
    result = run_study(request(world, wider))
    assert result.num_new == 3
    assert len(scored) == 1
    for step in ("teacher", "chosen", "tuned"):
        both = [
            t.filter(step=step, seed=1).filter(pl.col("k").ne_missing(8)) for t in (result.table, done.table)
        ]
        shared = [name for name in both[0].columns if name in both[1].columns]
        assert_frame_equal(both[0].select(shared), both[1].select(shared))


def test_orders_limits_and_distillation_share_whole_scores(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    score = Scorer.score
    monkeypatch.setattr(Scorer, "score", lambda *a, **k: scored.append("x") or score(*a, **k))
    chosen = {"teacher": "teacher", "index": "unlabelled", "k": 5, "p": 1, "order": "$order"}
    study = write_yaml(
        world / "orders.yaml",
        seeds=[7],
        axes={"order": ["class-first", "image-first"]},
        selections={"chosen": chosen, "best": chosen | {"p": 3, "limit": 4}},
        runs={
            "teacher": STUDY["runs"]["teacher"],  # type: ignore[index]
            "student": {
                "stage": "student",
                "pseudolabels": "chosen",
                "set": {"distillation.weight": 0.5, "data.target": "multilabel"},
            },
        },
        figures=[],
        findings=[],
    )
    result = run_study(request(world, study))
    assert len(scored) == 1
    assert result.table.filter(step="best")["num_pairs"].to_list() == [4.0, 4.0]
    limited = result.table.filter(step="best", order="class-first")["folder"].item()
    kept = pl.read_parquet(result.folder.parent / limited / "pseudolabels.parquet")
    index = wsl.Index.open(world / "index" / "unlabelled")
    teacher = result.folder.parent / result.table.filter(step="teacher")["folder"].item()
    scores = np.concatenate([s.values for s in Scorer(teacher, index.path).score()])
    everything = sorted(
        (-scores[i, c], i, c) for c in range(3) for i in np.argsort(-scores[:, c], kind="stable")[:5]
    )[:4]
    assert sorted((i, c) for _, i, c in everything) == kept.select("sample", "class").rows()


def test_a_fault_is_told_before_anything_is_made(world: Path) -> None:
    runs = {"teacher": {"stage": "teacher", "set": {"num_stps": 3}}}
    wrong = write_yaml(world / "wrong.yaml", runs=runs, selections={}, figures=[], findings=[])
    with pytest.raises(wsl.UsageError, match="unknown key 'num_stps'; did you mean 'num_steps'"):
        run_study(request(world, wrong))
    assert not (world / "studies" / "wrong").exists()


def test_without_a_workspace_studies_that_need_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(wsl.UsageError, match=r"no workspace.*brings its data along: fashion-mnist-k,"):
        run_study(StudyRequest("k", workspace=tmp_path))


def test_a_step_that_fails_is_named_and_the_others_stay(world: Path, tmp_path: Path) -> None:
    runs = STUDY["runs"] | {"bad": {"stage": "finetune", "init": "teacher", "set": {"model.widths": [8]}}}  # type: ignore[operator]
    wrong = write_yaml(world / "fails.yaml", runs=runs, seeds=[0])
    with pytest.raises(wsl.UsageError, match=r"^bad seed=0: .*another network"):
        run_study(request(world, wrong))
    table = pl.read_parquet(world / "studies" / "fails" / "results.parquet")
    assert set(table["step"]) >= {"teacher", "chosen", "student", "tuned"}


def test_a_killed_study_goes_on_where_it_was(done: StudyResult, world: Path, tmp_path: Path) -> None:
    """Killed after some steps; the rest is made, and the result is the one of a study left alone."""
    out = tmp_path / "studies"
    start = "from wsl.cli import main; main()"
    command = [sys.executable, "-c", start, "study", str(world / "tiny.yaml"), "--out", str(out)]
    # The stages that ran in this process have left the variables of a launcher.
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCH_VARIABLES}
    process = subprocess.Popen(
        [*command, "--workspace", str(world)], stderr=subprocess.PIPE, text=True, env=clean
    )
    while len(list(out.glob("steps/*/step.json"))) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {path: path.read_bytes() for path in out.glob("steps/*/step.json")}
    assert 4 <= len(made) < 14
    result = run_study(request(world, world / "tiny.yaml", out=out))
    assert result.num_new == 14 - len(made)
    assert {path: path.read_bytes() for path in made} == made
    assert_frame_equal(columns(result.table), columns(done.table))


def test_the_command_writes_report_and_plots(
    done: StudyResult, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(world / "studies" / "tiny" / "figures", ignore_errors=True)
    assert run(["study", str(world / "tiny.yaml"), "--workspace", str(world), "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert len(found["results"]) == 14
    assert found["findings"][0]["claim"] == "it helps"
    names = sorted(os.listdir(world / "studies" / "tiny" / "figures"))
    assert names == ["01-by-k.png", "01-by-k.svg"]
    page = (world / "studies" / "tiny" / "report.html").read_text()
    assert "it helps" in page


def test_a_dry_run_says_what_remains(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "studies"
    arguments = ["study", str(world / "tiny.yaml"), "--workspace", str(world), "--out", str(out), "--dry-run"]
    assert run(arguments) == 0
    assert "14 of 14 steps remain" in capsys.readouterr().err
    assert not list(out.glob("steps/*"))
    assert not (out / "tiny").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing-such"], "there is no study 'nothing-such'"),
        (["tiny.yaml", "--axis", "q=1"], "--axis q=1: expected AXIS=VALUE"),
        (["tiny.yaml", "--source", "u=nowhere"], "--source u=nowhere: expected NAME=DIR"),
        (["tiny.yaml", "--set", "nothing=1"], "unknown key 'nothing'"),
    ],
)
def test_wrong_options_say_what_was_expected(
    world: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(world)
    write_yaml(world / "tiny.yaml")
    assert run(["study", *arguments, "--workspace", str(world)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
