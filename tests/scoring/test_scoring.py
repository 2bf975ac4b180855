"""Scores of a network: straight into a state or files, on several ranks, over an index that was added to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import wsl
from tests.help.commands import refused, select, wsl_json
from tests.help.forked import Forked, ForkServer
from wsl.cli import run
from wsl.index.shards import write_shard
from wsl.scoring import network, rank
from wsl.selection import states


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


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer(scores=True) as server:
        yield server


def test_two_ranks_write_the_files_of_one_and_a_killed_rank_goes_on(
    forks: ForkServer, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "RANGE", 128)
    job = {
        "run": str(workspace / "runs" / "teacher"),
        "index": str(workspace / "index" / "unlabelled"),
        "flip": False,
        "temperature": 1.0,
        "batch_size": 64,
        "keep": 3,
    }

    def start(rank: int, out: Path) -> Forked:
        file = tmp_path / f"{out.name}-{rank}.json"
        file.write_text(json.dumps(job | {"out": str(out)}))
        return forks.start(["rank", str(file)], environment={"RANK": str(rank), "WORLD_SIZE": "2"})

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
