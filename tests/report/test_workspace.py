"""`wsl report`: what stands on the page of a workspace, what is left out, what is refused."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

import wsl
from wsl._core import DataError, UsageError
from wsl.cli import run
from wsl.figures.page import render
from wsl.index.shards import write_shard
from wsl.report.pictures import MAX_SIDE, thumbnail
from wsl.report.runs import read_curves
from wsl.report.selection import best_classes, disagreeing, read_selection
from wsl.report.workspace import workspace_page
from wsl.scoring import pseudolabels
from wsl.scoring.request import SelectionRequest
from wsl.studies.page import write_study
from wsl.studies.spec import StudyConfig
from wsl.workspace.layout import Workspace

NUM_IMAGES, NUM_CLASSES = 24, 3
HOSTILE = "<b>Cat & Dog</b>"
NAMES = [HOSTILE, "bird", "fish"]


def encoded(number: int, size: int = 12, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def scores_table() -> pl.DataFrame:
    """Image i is of class i % 3 by the teacher, but for every sixth, whose best class is the next one."""
    rows = []
    for sample in range(NUM_IMAGES):
        best = (sample + (sample % 6 == 0)) % NUM_CLASSES
        for label in range(NUM_CLASSES):
            score = 5.0 - sample / 10 if label == best else -1.0 - label - sample / 10
            rows.append({"sample": sample, "class": label, "score": score})
    kinds = {"sample": pl.UInt64, "class": pl.UInt32, "score": pl.Float32}
    return pl.DataFrame(rows, schema=kinds)  # type: ignore[arg-type]


def run_json(stage: str, top1: float) -> dict[str, Any]:
    evaluation = {
        "top1": top1,
        "top5": 1.0,
        "macro": top1,
        "num_samples": 30,
        "num_corrupt": 0,
        "top1_interval": [top1 - 0.1, top1 + 0.1],
        "per_class_recall": [top1, None, 1.0],
        "per_class_interval": [[0.1, 0.9], None, [0.8, 1.0]],
        "confusion": [[8, 2, 0], [0, 0, 0], [0, 0, 10]],
    }
    summary = {"num_steps": 40, "num_parameters": 1234, "seconds": 3.0, "loss": 0.5}
    known = {"class_names": NAMES, "num_labels": 3, "config": {"model": {"name": "narrow"}}}
    return {"stage": stage, "state": "complete", "summary": summary, "evaluation": evaluation, **known}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with everything in it, without training."""
    root = tmp_path_factory.mktemp("workspace") / "w"
    (root / "data").mkdir(parents=True)
    images = [(f"u{n:03}", {"png": encoded(n)}) for n in range(NUM_IMAGES)]
    images[5] = ("u005", {"png": b"no image"})
    write_shard(root / "data" / "unlabelled-0.tar", images)
    tags = [["cat", "pet"] if n % 2 else ["cat", f"tag{n}"] for n in range(NUM_IMAGES)]
    pl.DataFrame({"key": [key for key, _ in images], "hashtags": tags}).write_parquet(
        root / "data" / "tags.parquet"
    )
    (root / "wsl.yaml").write_text(
        "indexes:\n"
        "  unlabelled: {shards: data/unlabelled-*.tar}\n"
        "  hashtags: {shards: data/unlabelled-*.tar, records: data/tags.parquet, label_kind: hashtag}\n"
        "  test: {shards: data/test-*.tar, label_kind: class}\n"
    )
    assert run(["index", "build", "unlabelled", "-w", str(root)]) == 0
    assert run(["index", "build", "hashtags", "-w", str(root)]) == 0
    for stage, top1 in (("teacher", 0.6), ("student", 0.7)):
        folder = root / "runs" / stage
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(run_json(stage, top1)))
        (folder / "metrics.csv").write_text(
            "step,loss,lr,top1\n10,2.0,0.1,\n20,1.5,0.05,0.5\n40,1.0,0.0,0.6\n"
        )
    predictions = root / "predictions" / "unlabelled" / "aaa"
    predictions.mkdir(parents=True)
    scores_table().write_parquet(predictions / "scores-000000000000.parquet")
    pseudolabels.select(
        SelectionRequest(k=14, p=2, predictions=str(predictions), index=root / "index" / "unlabelled"),
        root,
    )
    config = StudyConfig.model_validate(
        {
            "title": f"Study of {HOSTILE}",
            "axes": {"k": [1, 2]},
            "runs": {"student": {"stage": "student"}},
            "figures": [{"title": "By k", "x": "k", "steps": {"student": "student"}}],
            "findings": [
                {
                    "claim": "two beat one",
                    "of": {"step": "student", "where": {"k": 2}},
                    "less": {"step": "student", "where": {"k": 1}},
                }
            ],
        }
    )
    rows = [
        {"step": "student", "k": k, "seed": seed, "top1": 0.5 + 0.1 * k} for k in (1, 2) for seed in (0, 1, 2)
    ]
    write_study(root / "studies" / "k sweep", config, pl.DataFrame(rows))
    return root


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(made, tmp_path / "w"))


def text_of(root: Path, truth: Path | None = None) -> str:
    return render(workspace_page(root, root / "report.html", truth))


def write_truth(root: Path) -> Path:
    file = root / "data" / "truth.parquet"
    keys = [f"u{n:03}" for n in range(NUM_IMAGES - 4)]
    pl.DataFrame({"key": keys, "class": [n % NUM_CLASSES for n in range(NUM_IMAGES - 4)]}).write_parquet(file)
    return file


def test_every_step_stands_on_the_page(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "r.html"
    assert run(["report", "-w", str(made), "--out", str(out)]) == 0
    text = out.read_text()
    for heading in ("Runs", "Training", "Classes", "Indexes", "Hashtags", "Selection", "Tagged images"):
        assert f"<h2>{heading}</h2>" in text
    assert "<b>Cat" not in text
    assert "&lt;b&gt;Cat &amp; Dog&lt;/b&gt;" in text
    assert "50.0\u00a0to\u00a070.0" in text
    assert "not built yet" in text
    assert "24 records hold 48 hashtags" in text
    assert "K = 14 images of every class" in text
    assert '<span class="badge shown' not in text
    assert '<span class="badge good">shown</span>' in text
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    links = re.findall(r'<p><a href="([^"]+)"', text)
    assert len(links) == 1
    assert (out.parent / links[0].replace("%20", " ")).is_file()


def test_pictures_are_the_best_those_at_the_cut_and_those_that_disagree(made: Path) -> None:
    text = text_of(made)
    assert text.count("<h4>best</h4>") == NUM_CLASSES
    assert text.count("<h4>at the cut</h4>") == NUM_CLASSES
    assert "the teacher says bird" in text or "the teacher says 1" in text
    assert "images were taken down or cannot be decoded" in text
    index = wsl.Index.open(made / "index" / "unlabelled")
    best = read_selection(Workspace.find(made))
    assert best is not None
    first = best.pairs.filter(pl.col("rank") == 1)["sample"].to_list()
    for content in index.read(first):
        assert base64.b64encode(content).decode() in text


def test_disagreement_without_truth_is_the_teacher_s(made: Path) -> None:
    """Against a plain look at every pair."""
    selected = read_selection(Workspace.find(made))
    assert selected is not None
    assert not selected.has_truth
    rows = scores_table().rows()
    best = {n: max((r for r in rows if r[0] == n), key=lambda r: r[2])[1] for n in range(NUM_IMAGES)}
    teacher = best_classes(made / "predictions" / "unlabelled" / "aaa", selected.pairs["sample"])
    for label in range(NUM_CLASSES):
        samples = selected.pairs.filter(pl.col("class") == label)["sample"].to_list()
        expected = {(n, best[n]) for n in samples if best[n] != label}
        found = disagreeing(selected, label, teacher)
        assert set(found.select("sample", "other").iter_rows()) == expected
        assert found["score"].is_sorted(descending=True)
        # Where the predictions are gone, the classes that selected an image tell.
        taken = {(n, c): s for n, c, s in selected.pairs.select("sample", "class", "score").iter_rows()}
        expected = {n for n in samples if any(taken.get((n, c), -99) > taken[n, label] for c in range(3))}
        assert set(disagreeing(selected, label, None)["sample"].to_list()) == expected


def test_disagreement_with_truth_is_what_the_truth_says(workspace: Path) -> None:
    write_truth(workspace)
    selected = read_selection(Workspace.find(workspace))
    assert selected is not None
    assert selected.has_truth
    found = disagreeing(selected, 0, None)
    truly = found.filter(pl.col("why") == "truly")
    assert truly["other"].to_list() == [n % NUM_CLASSES for n in truly["sample"].to_list()]
    assert 0 not in truly["other"].to_list()
    text = text_of(workspace)
    pairs = selected.pairs.filter(pl.col("truth").is_not_null())
    right = int((pairs["truth"] == pairs["class"]).sum())
    assert f"Of {len(pairs):,} pairs whose true class is known, {right / len(pairs):.1%}" in text
    assert "truly bird" in text or "truly 1" in text


def test_dense_predictions_tell_the_same_best_classes(tmp_path: Path) -> None:
    table = scores_table()
    for name in ("long", "dense"):
        (tmp_path / name).mkdir()
    table.write_parquet(tmp_path / "long" / "scores-0.parquet")
    rows = table.sort("sample", "class")["score"].to_numpy().reshape(NUM_IMAGES, NUM_CLASSES)
    kind = pl.Array(pl.Float32, NUM_CLASSES)
    samples = pl.Series("sample", range(NUM_IMAGES), dtype=pl.UInt64)
    pl.DataFrame([samples, pl.Series("scores", rows, dtype=kind)]).write_parquet(
        tmp_path / "dense" / "scores-0.parquet"
    )
    one, other = (best_classes(tmp_path / name, samples) for name in ("long", "dense"))
    assert one is not None
    assert other is not None
    assert one.sort("sample").equals(other.sort("sample"))
    assert best_classes(tmp_path, samples) is None


def test_what_is_missing_is_left_out(workspace: Path) -> None:
    for name in ("runs", "studies", "predictions", "pseudolabels.parquet", "index", "data"):
        path = workspace / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert "<main>" in text_of(workspace)
    text = text_of(workspace)
    assert text.count("not built yet") == 3
    assert "<h2>Runs</h2>" not in text


def test_shards_that_lie_elsewhere_cost_the_pictures_alone(workspace: Path) -> None:
    (workspace / "data" / "unlabelled-0.tar").unlink()
    text = text_of(workspace)
    assert "Images cannot be shown: the shard" in text
    assert "K = 14 images of every class" in text
    assert "<img" not in text


def test_a_run_that_is_not_complete_is_shown_as_far_as_it_came(workspace: Path) -> None:
    folder = workspace / "runs" / "finetune"
    folder.mkdir()
    (folder / "config.yaml").write_text("stage: finetune\n")
    (folder / "metrics.csv").write_text("step,loss\n10,2.0\n20,1.5\n3")
    text = text_of(workspace)
    assert "not complete" in text
    assert read_curves(folder / "metrics.csv") == {"loss": [(10.0, 2.0), (20.0, 1.5)]}


def test_an_index_built_anew_shows_no_pictures_of_others(workspace: Path) -> None:
    images = [(f"other{n}", {"png": encoded(100 + n)}) for n in range(NUM_IMAGES)]
    write_shard(workspace / "data" / "unlabelled-0.tar", images)
    assert run(["index", "build", "unlabelled", "-w", str(workspace), "--overwrite"]) == 0
    shutil.rmtree(workspace / "index" / "hashtags")
    assert "was built anew since the selection" in text_of(workspace)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("runs/teacher/run.json", "{"),
        ("runs/teacher/metrics.csv", "step,loss\na,b\n10,1\n"),
        ("runs/teacher/metrics.csv", "loss\n1\n2\n"),
        ("pseudolabels.parquet", "junk"),
        ("pseudolabels.parquet", ""),
        ("studies/k sweep/results.parquet", "junk"),
        ("index/unlabelled/manifest.json", "{}"),
        ("predictions/unlabelled/aaa/scores-000000000000.parquet", "junk"),
        ("data/truth.parquet", "junk"),
    ],
)
def test_a_damaged_part_is_named(workspace: Path, file: str, content: str) -> None:
    (workspace / file).write_text(content)
    with pytest.raises(DataError, match=re.escape(str(Path(file).parent))):
        text_of(workspace)


def test_a_table_that_is_no_selection_is_refused(workspace: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(workspace / "pseudolabels.parquet", metadata={"wsl": "{}"})
    with pytest.raises(DataError, match="expected a selection"):
        text_of(workspace)


def test_a_truth_that_is_asked_for_must_be_one(workspace: Path, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError):
        text_of(workspace, file)
    pl.DataFrame({"key": ["u000"], "colour": ["red"]}).write_parquet(file)
    with pytest.raises(UsageError, match="expected columns"):
        text_of(workspace, file)


def test_a_large_picture_is_made_small_and_a_bad_one_is_none() -> None:
    large = encoded(1, 800, "PNG")
    small = thumbnail(large)
    assert small is not None
    with Image.open(io.BytesIO(small)) as image:
        assert max(image.size) == MAX_SIDE
    assert len(small) < len(large) / 10
    assert thumbnail(encoded(1)) == encoded(1)
    for content in (b"", b"junk", encoded(1)[:40]):
        assert thumbnail(content) is None
