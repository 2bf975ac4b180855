"""`wsl pseudolabel` and `wsl score`: layouts, limits, ranks, resumption, refusals, the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.commands import refused, select, wsl_json
from wsl.cli import run

NUM_SAMPLES, NUM_CLASSES = 4000, 12


def scores_of(seed: int = 0) -> np.ndarray:
    """Few different values, so that most of them tie."""
    values = np.random.default_rng(seed).integers(0, 40, (NUM_SAMPLES, NUM_CLASSES))
    return (values / 8 - 2).astype(np.float32)


def selection_of(scores: np.ndarray, k: int, p: int, order: str) -> list[tuple[int, int]]:
    """The paper's selection in plain Python, both orders: (sample, class) by sample."""
    pairs = [(-float(s), i, c) for (i, c), s in np.ndenumerate(scores)]

    def cut(pairs: list[tuple[float, int, int]], by: int, most: int) -> list[tuple[float, int, int]]:
        counts: dict[int, int] = {}
        kept = []
        for pair in sorted(pairs):
            counts[pair[by]] = counts.get(pair[by], 0) + 1
            if counts[pair[by]] <= most:
                kept.append(pair)
        return kept

    steps = [(2, k), (1, p)] if order == "class-first" else [(1, p), (2, k)]
    for by, most in steps:
        pairs = cut(pairs, by, most)
    return sorted((i, c) for _, i, c in pairs)


def long_pairs(scores: np.ndarray) -> pl.DataFrame:
    samples, classes = np.indices(scores.shape)
    columns = {"sample": samples.ravel(), "class": classes.ravel(), "score": scores.ravel()}
    return pl.DataFrame(columns)


def lists(scores: np.ndarray) -> pl.DataFrame:
    return long_pairs(scores).group_by("sample", maintain_order=True).agg(classes="class", scores="score")


def dense(scores: np.ndarray) -> pl.DataFrame:
    values = pl.Series("scores", scores, dtype=pl.Array(pl.Float32, NUM_CLASSES))
    return pl.DataFrame([pl.Series("sample", np.arange(NUM_SAMPLES)), values])


@pytest.mark.parametrize("order", ["class-first", "image-first"])
def test_every_layout_selects_what_the_plain_form_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    scores = scores_of()
    expected = selection_of(scores, 300, 2, order)
    layouts: dict[str, Callable[[np.ndarray], pl.DataFrame]] = {
        "long": long_pairs,
        "lists": lists,
        "dense": dense,
        "scattered": lambda scores: long_pairs(scores).sample(fraction=1, shuffle=True, seed=1),
    }
    outcomes = []
    for name, layout in layouts.items():
        file = tmp_path / f"{name}.parquet"
        layout(scores).write_parquet(file)
        limits = ["--memory", "1MiB", "--spill-dir", tmp_path] if name == "scattered" else []
        choice = ["--predictions", file, "--k", 300, "--p", 2, "--order", order, "--workers", 2]
        report, table = select(capsys, tmp_path / f"{name}-out.parquet", *choice, *limits)
        outcomes.append(table)
        assert list(table.select("sample", "class").sort("sample", "class").iter_rows()) == expected
        assert table["sample"].is_sorted()
        assert sum(report["images_by_classes"].values()) == report["num_images"] == table["sample"].n_unique()
    assert all(table.equals(outcomes[0]) for table in outcomes)
    assert not list(tmp_path.glob(".wsl-*"))
    long_pairs(scores).write_ipc(tmp_path / "a.arrow")
    _, table = select(capsys, tmp_path / "o.parquet", "--predictions", tmp_path / "a.arrow", *choice[2:])
    assert table.equals(outcomes[0])


def test_the_report_says_what_the_selection_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = scores_of()
    scores[:, 0] = np.linspace(-9, 9, NUM_SAMPLES, dtype=np.float32)
    dense(scores).write_parquet(tmp_path / "p.parquet")
    truth = pl.DataFrame({"sample": np.arange(NUM_SAMPLES), "kind": np.arange(NUM_SAMPLES) % NUM_CLASSES})
    truth.write_parquet(tmp_path / "t.parquet")
    report, table = select(
        capsys,
        tmp_path / "o.parquet",
        *["--predictions", tmp_path / "p.parquet", "--k", 500, "--p", 1, "--plot", tmp_path / "s.svg"],
        *["--truth", tmp_path / "t.parquet", "--truth-column", "kind"],
    )
    right = (table["sample"] % NUM_CLASSES == table["class"]).mean()
    assert report["precision"] == pytest.approx(right)
    row = report["classes"][0]
    lowest = np.sort(scores[:, 0])[-500]
    assert row["before"] == row["wanted"] == 500
    assert row["lowest_score"] == pytest.approx(float(lowest))
    assert row["lowest_probability"] == pytest.approx(1 / (1 + np.exp(-float(lowest))))
    of_class = table.filter(pl.col("class") == 0)
    assert row["after"] == len(of_class)
    assert row["precision"] == pytest.approx((of_class["sample"] % NUM_CLASSES == 0).mean())
    class_first = set(selection_of(scores, 500, 1, "class-first"))
    image_first = set(selection_of(scores, 500, 1, "image-first"))
    share = len(class_first & image_first) / len(class_first | image_first)
    assert report["agreement_of_orders"] == pytest.approx(share)
    assert (tmp_path / "s.svg").read_text().lstrip().startswith("<?xml")
    assert json.loads(pl.read_parquet_metadata(tmp_path / "o.parquet")["wsl"])["report"]["precision"]
    again = ["--predictions", tmp_path / "p.parquet", "--k", 500, "--p", 1]
    code, text = refused(capsys, "pseudolabel", "--out", tmp_path / "p2.parquet", *again, "--plot", "x.gif")
    assert (code, "ends in .svg" in text) == (2, True)
    assert run([str(a) for a in ["pseudolabel", "--out", tmp_path / "n.parquet", *again]]) == 0
    shown = capsys.readouterr()
    assert "lowest probability" in shown.out
    assert "agree on" in shown.err


def test_keys_stand_for_samples_and_ties_go_by_their_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("b", 0, 1.0), ("é", 0, 1.0), ("a", 0, 0.5), ("Z", 1, 2.0), ("b", 1, 2.0)]
    frame = pl.DataFrame(
        rows, schema={"key": pl.String, "class": pl.Int32, "score": pl.Float32}, orient="row"
    )
    frame.write_parquet(tmp_path / "p.parquet")
    options = ["--predictions", tmp_path / "p.parquet", "--k", 1, "--p", 2]
    _, table = select(capsys, tmp_path / "o.parquet", *options)
    assert table.select("key", "class").rows() == [("Z", 1), ("b", 0)]


def test_parts_merge_to_the_same_bytes_and_a_part_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = long_pairs(scores_of())
    states = []
    for part in range(3):
        own = pairs.filter(pl.col("sample") % 3 == part)
        own.write_parquet(tmp_path / f"{part}.parquet")
        states.append(tmp_path / f"{part}.state")
        options = ["--predictions", tmp_path / f"{part}.parquet", "--k", 200, "--p", 3]
        select(capsys, tmp_path / f"o{part}.parquet", *options, "--state", states[-1])
    merge = ["pseudolabel", "merge", "--json", "--k", 150, "--p", 2]
    wsl_json(capsys, *merge, *states, "--out", tmp_path / "a.parquet")
    wsl_json(capsys, *merge, *states[::-1], "--out", tmp_path / "b.parquet", "--memory", "1MiB")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = pl.read_parquet(tmp_path / "a.parquet").select("sample", "class").sort("sample", "class")
    assert list(found.iter_rows()) == selection_of(scores_of(), 150, 2, "class-first")
    code, text = refused(capsys, *merge, states[0], states[0], "--out", tmp_path / "c.parquet")
    assert (code, "counts once" in text) == (3, True)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (pl.lit(float("nan"), pl.Float32).alias("score"), 3, "the score is NaN"),
        (pl.lit(float("-inf"), pl.Float32).alias("score"), 3, "the score is -inf"),
        (pl.col("score").cast(pl.Float16), 2, "in a lower precision many scores tie"),
        (pl.col("class").cast(pl.String), 2, "integers"),
        (pl.lit(0).alias("sample"), 3, "the pair was scored twice"),
    ],
)
def test_bad_predictions_are_refused_with_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: pl.Expr, code: int, words: str
) -> None:
    file = tmp_path / "p.parquet"
    long_pairs(scores_of()).with_columns(change).write_parquet(file)
    options = ["--predictions", file, "--k", 20, "--p", 1, "--out", tmp_path / "o.parquet"]
    found, text = refused(capsys, "pseudolabel", *options)
    assert (found, words in text) == (code, True), text
    assert not (tmp_path / "o.parquet").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_what_makes_no_sense_is_said_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.parquet").touch()
    where = ["--k", 20, "--p", 1, "--out", tmp_path / "o.parquet"]
    code, text = refused(capsys, "pseudolabel", "--predictions", tmp_path / "empty.parquet", *where)
    assert (code, "the file is empty" in text) == (3, True)
    dense(scores_of()).head(0).write_parquet(tmp_path / "none.parquet")
    report, _ = select(capsys, tmp_path / "n.parquet", "--predictions", tmp_path / "none.parquet", *where[:4])
    assert report["num_missing"] == 20 * NUM_CLASSES
    code, text = refused(
        capsys, "pseudolabel", "--predictions", tmp_path / "none.parquet", *where, "--memory", "1KiB"
    )
    assert (code, "at least" in text) == (2, True)


def test_a_killed_selection_leaves_no_result_and_its_folder_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np, wsl\n"
        "top = wsl.TopK(12, k=300, p=2, spill_dir=sys.argv[1])\n"
        "top.update(range(500), np.zeros((500, 12), np.float32)); top.spill()\n"
        "print(os.listdir(sys.argv[1]), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert ".wsl-runs-" in done.stdout
    assert len(os.listdir(tmp_path)) == 1
    top = wsl.TopK(12, k=300, p=2, spill_dir=tmp_path)
    top.update(range(500), np.zeros((500, 12), np.float32))
    top.spill()
    assert len(os.listdir(tmp_path)) == 1
    del top
    assert os.listdir(tmp_path) == []
