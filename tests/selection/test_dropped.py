"""`wsl pseudolabel` over an index from which samples were taken down after they were scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.commands import refused, wsl_json
from wsl.index.shards import write_shard
from wsl.selection.dropped import Dropped

NUM, CLASSES = 300, 5


@pytest.fixture
def scored(tmp_path: Path) -> tuple[wsl.Index, np.ndarray]:
    """An index and scores of few values, so that most of them tie."""
    write_shard(tmp_path / "a.tar", [(f"s{n:03}", {"png": b"x"}) for n in range(NUM)])
    index = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    scores = np.random.default_rng(0).integers(0, 30, (NUM, CLASSES)) / 8 - 2
    return index, scores.astype(np.float32)


def pairs(scores: np.ndarray, samples: np.ndarray) -> pl.DataFrame:
    rows, classes = np.indices((len(samples), CLASSES))
    return pl.DataFrame(
        {"sample": samples[rows.ravel()], "class": classes.ravel(), "score": scores[samples].ravel()}
    )


def expected(scores: np.ndarray, dropped: list[int], k: int, p: int, order: str) -> pl.DataFrame:
    """The selection over the samples that are left, as if the others had never been."""
    left = np.setdiff1d(np.arange(NUM), dropped)
    top = wsl.TopK(CLASSES, k, p, order)  # type: ignore[arg-type]
    top.update(left, np.ascontiguousarray(scores[left]))
    return top.finish().table


@pytest.mark.parametrize("order", ["class-first", "image-first"])
@pytest.mark.parametrize("layout", ["pairs", "dense", "keys"])
def test_what_was_taken_down_is_left_out_as_if_it_had_never_been_scored(
    scored: tuple[wsl.Index, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    order: str,
    layout: str,
) -> None:
    index, scores = scored
    table = pairs(scores, np.arange(NUM))
    if layout == "dense":
        values = pl.Series("scores", scores, dtype=pl.Array(pl.Float32, CLASSES))
        table = pl.DataFrame([pl.Series("sample", np.arange(NUM)), values])
    if layout == "keys":
        names = pl.format("s{}", pl.col("sample").cast(pl.String).str.zfill(3))
        table = table.select(names.alias("key"), "class", "score")
    for part in range(2):
        half = table.slice(part * len(table) // 2, len(table) // 2)
        half.write_parquet(tmp_path / f"scores-{part}.parquet")
    given = ["--predictions", tmp_path / "scores-*.parquet", "--index", index.path, "--order", order]
    given += ["--k", 40, "--p", 2, "--json", "--out", tmp_path / "d.parquet"]
    before = wsl_json(capsys, "pseudolabel", *given)
    assert before["num_dropped"] == 0
    chosen = pl.read_parquet(tmp_path / "d.parquet")
    dropped = sorted({*chosen["sample"].unique().sort().gather_every(4).to_list(), 7, NUM - 1})
    wsl.drop_samples(index.path, [f"s{n:03}" for n in dropped])
    code, said = refused(capsys, "pseudolabel", *given)
    assert (code, "dropped differ" in said) == (2, True)
    report = wsl_json(capsys, "pseudolabel", *given, "--overwrite")
    assert report["num_dropped"] == len(dropped)
    found = pl.read_parquet(tmp_path / "d.parquet")
    assert found.drop("key").equals(expected(scores, dropped, 40, 2, order))
    assert wsl_json(capsys, "pseudolabel", *given)["state"] == "up to date"


@pytest.mark.parametrize("order", ["class-first", "image-first"])
def test_a_state_is_cut_where_it_can_be_and_refused_where_it_cannot(
    scored: tuple[wsl.Index, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    index, scores = scored
    parts = []
    for number, samples in enumerate(np.array_split(np.arange(NUM), 3)):
        top = wsl.TopK(CLASSES, 50, 2, order)  # type: ignore[arg-type]
        top.update(samples, np.ascontiguousarray(scores[samples]))
        parts.append(tmp_path / f"{number}.state")
        top.save(parts[-1])
    given = ["pseudolabel", "merge", *parts, "--index", index.path, "--json", "--out", tmp_path / "d.parquet"]
    wsl_json(capsys, *given)
    chosen = pl.read_parquet(tmp_path / "d.parquet")
    dropped = sorted(chosen.filter(pl.col("class") == 1)["sample"].head(6).to_list())
    wsl.drop_samples(index.path, [f"s{n:03}" for n in dropped])
    whole = wsl.TopK.load(parts[0])
    for part in parts[1:]:
        whole.merge(wsl.TopK.load(part))
    held = pl.DataFrame(whole.finish(50, CLASSES if order == "class-first" else 2).stream())
    lost = held.filter(pl.col("sample").is_in(dropped)).group_by("class").len()
    most = 50 - int(lost["len"].max())  # type: ignore[arg-type]
    assert most < 50
    code, said = refused(capsys, *given, "--overwrite")
    assert code == 2
    assert "the merged state" in said
    assert f"lower --k to {most}" in said
    report = wsl_json(capsys, *given, "--k", most, "--overwrite")
    assert report["num_dropped"] == len(dropped)
    found = pl.read_parquet(tmp_path / "d.parquet").drop("key")
    assert found.equals(expected(scores, dropped, most, 2, order))


def test_a_state_of_all_images_of_a_class_needs_no_more_of_them(scored: tuple[wsl.Index, np.ndarray]) -> None:
    index, scores = scored
    wsl.drop_samples(index.path, ["s000", "s123", "s299"])
    dropped = Dropped(wsl.Index.open(index.path))
    top = wsl.TopK(CLASSES, NUM + 10, CLASSES)
    top.update(range(NUM), scores)
    rest = dropped.out_of_state(top, NUM + 10, "a state")
    assert rest.finish().table.equals(expected(scores, [0, 123, 299], NUM + 10, CLASSES, "class-first"))
    assert dropped.num_left_out == 3
    wsl.drop_samples(index.path, [])
    assert Dropped(wsl.Index.open(index.path)).fingerprint == dropped.fingerprint
