"""`wsl pseudolabel` and `wsl score`: layouts, limits, ranks, resumption, refusals, the report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from running import refused, wsl_json

import wsl
from wsl.cli import run
from wsl.index.shards import write_shard
from wsl.scoring import network, rank
from wsl.selection import states

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


def select(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> tuple[Any, pl.DataFrame]:
    report = wsl_json(capsys, "pseudolabel", "--out", out, "--json", *arguments)
    return report, pl.read_parquet(out)


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


def test_scores_go_straight_into_a_state_that_serves_smaller_k_and_any_p(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "RANGE", 128)
    monkeypatch.setattr(network, "SAVING_SHARE", float("inf"))
    base = ["-w", workspace, "--json"]
    report, first = select(capsys, tmp_path / "a.parquet", *base, "--k", 400, "--p", 2, "--compare-orders")
    assert 0 < report["agreement_of_orders"] < 1
    saved = list((workspace / "predictions").rglob("*.state"))
    assert len(saved) == 2
    assert not list((workspace / "predictions").rglob("*.parquet"))

    def broken(*_: object) -> None:
        raise AssertionError("the network ran again")

    with monkeypatch.context() as patch:
        patch.setattr(network, "Scorer", broken)
        _, smaller = select(capsys, tmp_path / "b.parquet", *base, "--k", 100, "--p", 1)
    # A mark is taken away, as a kill would: what it stood for is scored again, with the same end.
    for mark in (workspace / "predictions").rglob("done-*.json"):
        content = json.loads(mark.read_text())
        mark.unlink()
        assert len(content["ranges"]) > 1
    _, again = select(capsys, tmp_path / "c.parquet", *base, "--k", 400, "--p", 2)
    assert again.equals(first)
    out = workspace / "predictions" / "all"
    wsl_json(capsys, "score", "-w", workspace, "--out", out, "--json")
    _, files = select(capsys, tmp_path / "d.parquet", "--predictions", out, "--k", 100, "--p", 1)
    assert files.drop("key", strict=False).equals(smaller.drop("key"))
    other = workspace / "index" / "test"
    code, text = refused(
        capsys, "pseudolabel", "--predictions", out, "--index", other, "--k", 9, "--p", 1, "--out", out / "x"
    )
    assert (code, "the index that was scored" in text) == (2, True)
    code, text = refused(capsys, "score", "-w", workspace, "--out", out, "--temperature", 2)
    assert (code, "temperature" in text) == (2, True)


def unlabelled_shards(workspace: Path, out: Path, sizes: list[int], first: int = 0) -> None:
    """Shards of some of the workspace's images; those before `first` are passed over."""
    out.mkdir(exist_ok=True)
    index = wsl.Index.open(workspace / "index" / "unlabelled")
    for size in sizes:
        ordinals = np.arange(first, first + size)
        samples = zip(index.keys(ordinals), index.read(ordinals), strict=True)
        write_shard(out / f"{first:05}.tar", [(key, {"png": image}) for key, image in samples])
        first += size


@pytest.mark.parametrize("kept", ["states", "files"])
def test_what_was_scored_stays_valid_when_the_index_is_added_to(
    workspace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
) -> None:
    monkeypatch.setattr(states, "RANGE", 64)
    seen: list[tuple[int, int]] = []
    score = network.Scorer.score

    def watched(self: network.Scorer, start: int = 0, stop: int | None = None) -> Any:
        seen.append((start, stop or 0))
        return score(self, start, stop)

    monkeypatch.setattr(network.Scorer, "score", watched)
    index = tmp_path / "index"
    build = ["index", "build", "--shards", tmp_path / "shards" / "*.tar", "--out", index, "--json"]
    teacher = ["--checkpoint", workspace / "runs" / "teacher", "--index", index]
    options = [*teacher, "--k", 30, "--p", 2, "--overwrite", *(["--keep", "all"] if kept == "files" else [])]
    unlabelled_shards(workspace, tmp_path / "shards", [90, 60])
    wsl_json(capsys, *build)
    select(capsys, tmp_path / "d.parquet", *options)
    assert sorted(seen) == [(0, 64), (64, 128), (128, 150)]
    seen.clear()
    unlabelled_shards(workspace, tmp_path / "shards", [70], first=150)
    assert wsl_json(capsys, *build)[0]["state"] == "appended"
    # Without --keep the files that are there are completed.
    report, table = select(capsys, tmp_path / "d.parquet", *options[:9])
    assert sorted(seen) == [(150, 192), (192, 220)]
    assert report["state"] == "selected"
    seen.clear()
    _, at_once = select(capsys, tmp_path / "e.parquet", *options[:4], "--k", 30, "--p", 2)
    assert sorted(seen) == [(0, 64), (64, 128), (128, 192), (192, 220)]
    # Batches of other sizes round otherwise, so that another image may be the last that a class takes.
    both = at_once.join(table, on=["sample", "key", "class"])
    assert len(both) > 0.9 * len(table)
    np.testing.assert_allclose(both["score"], both["score_right"], atol=1e-3)
    known = json.loads(pl.read_parquet_metadata(tmp_path / "d.parquet")["wsl"])
    assert known["index_fingerprint"] == wsl.Index.open(index).fingerprint
    if kept == "files":
        files = tmp_path / "d-scores"
        found = wsl_json(capsys, "score", *teacher, "--out", files, "--json")
        assert (found["state"], found["num_samples"]) == ("up to date", 220)
        for more in ([], ["--index", index]):
            given = ["--predictions", files, "--k", 30, "--p", 2, "--overwrite", *more]
            _, again = select(capsys, tmp_path / "f.parquet", *given)
            assert again.drop("key", strict=False).equals(table.drop("key"))
    # Built anew of other shards, it is another index.
    (tmp_path / "shards" / "00000.tar").unlink()
    wsl_json(capsys, *build, "--overwrite")
    if kept == "files":
        code, text = refused(capsys, "pseudolabel", *given, "--out", tmp_path / "g.parquet")
        assert (code, "the index that was scored" in text) == (2, True), text
    seen.clear()
    _, other = select(capsys, tmp_path / "d.parquet", *options[:9])
    assert sorted(seen) == [(0, 64), (64, 128), (128, 130)]
    assert other["sample"].max() < 130


@pytest.mark.timeout(300)
def test_two_ranks_write_the_files_of_one_and_a_killed_rank_goes_on(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "RANGE", 128)
    code = (
        "import sys, wsl.selection.states as s; s.RANGE = 128\n"
        "from wsl.scoring.rank import main; sys.exit(main([sys.argv[1]]))\n"
    )
    job = {
        "run": str(workspace / "runs" / "teacher"),
        "index": str(workspace / "index" / "unlabelled"),
        "flip": False,
        "temperature": 1.0,
        "batch_size": 64,
        "keep": 3,
    }

    def start(rank: int, out: Path) -> subprocess.Popen[bytes]:
        file = tmp_path / f"{out.name}.json"
        file.write_text(json.dumps(job | {"out": str(out)}))
        environment = os.environ | {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen([sys.executable, "-c", code, str(file)], env=environment)

    one, two = tmp_path / "one", tmp_path / "two"
    killed = start(0, two)
    while killed.poll() is None and not list(two.glob("scores-*")):
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    ranks = [start(0, two), start(1, two)]
    assert [process.wait() for process in ranks] == [0, 0]
    rank.run(job | {"out": str(one)}, 0, 1)
    names = sorted(path.name for path in one.glob("scores-*"))
    assert len(names) > 3
    assert names == sorted(path.name for path in two.glob("scores-*"))
    for name in names:
        assert pl.read_parquet(one / name).equals(pl.read_parquet(two / name))


@pytest.mark.timeout(300)
def test_the_launcher_starts_the_ranks(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-w", workspace, "--out", tmp_path / "p", "--num-accelerators", 2, "--no-flip", "--json"]
    report = wsl_json_of_ranks(capsys, "score", *options)
    assert report["num_samples"] == len(wsl.Index.open(workspace / "index" / "unlabelled"))
    assert len(list((tmp_path / "p").glob("scores-*.parquet"))) == 1


def wsl_json_of_ranks(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert run([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out)
