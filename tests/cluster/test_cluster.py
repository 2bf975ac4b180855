"""Commands on a cluster of one node give the bytes that they give without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

import wsl.cli
from tests.help import clustered
from wsl import _core

GROUP = ("--cluster-group", "1")


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    found = wsl.cli.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.out if code == 0 else " ".join(captured.err.split())


def same_files(one: Path, other: Path, pattern: str = "*") -> int:
    names = [file.name for file in sorted(one.glob(pattern)) if file.is_file()]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    return len(names)


def test_counts_are_the_same_and_no_finished_part_is_made_again(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = clustered.write_records(tmp_path / "records", 18, 50)
    run(capsys, "counts", "build", "--records", records, "--out", tmp_path / "one")
    there = ["--out", tmp_path / "two", "--cluster", cluster, *GROUP]
    run(capsys, "counts", "build", "--records", records, *there)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()

    parts = tmp_path / "two.parts"
    (status,) = json.loads(run(capsys, "cluster", "status", parts, "--json"))
    assert (status["complete"], status["parts"], status["done"]) == (True, 21, 21)
    # One leaf and all merges are lost: they alone are made again.
    marks = parts / "marks"
    lost = [next(marks.glob("count-000004-*")), *marks.glob("mergecounts-*")]
    kept = {file: file.stat().st_mtime_ns for file in marks.iterdir() if file not in lost}
    for file in lost:
        file.unlink()
    (tmp_path / "two").unlink()
    run(capsys, "counts", "build", "--records", records, *there)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert all(file.exists() for file in lost)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_part_that_fails_is_told_once_and_the_rest_goes_on(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = clustered.write_records(tmp_path / "records", 6, 20)
    good = (tmp_path / "records" / "records-0002.parquet").read_bytes()
    bad = tmp_path / "records" / "records-0002.parquet"
    bad.write_bytes(good[:100] + b"x" * 50 + good[150:-8] + b"\0" * 8)
    there = ["--records", records, "--out", tmp_path / "two", "--cluster", cluster, *GROUP]
    said = run(capsys, "counts", "build", *there, code=1)
    assert said.count("Traceback") == 1
    assert "records-0002.parquet" in said
    assert "run the same command again" in said
    assert not (tmp_path / "two").exists()
    (status,) = json.loads(run(capsys, "cluster", "status", tmp_path / "two.parts", "--json"))
    assert (status["done"], status["failed"], status["complete"]) == (5, 1, False)
    bad.write_bytes(good)
    run(capsys, "counts", "build", *there)
    run(capsys, "counts", "build", "--records", records, "--out", tmp_path / "one")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_part_that_is_asked_wrongly_does_not_stop_the_others(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = clustered.write_records(tmp_path / "records", 5, 20)
    other = tmp_path / "records" / "records-0003.parquet"
    good = other.read_bytes()
    pl.read_parquet(other).rename({"hashtags": "tags"}).write_parquet(other)
    there = ["--records", records, "--out", tmp_path / "two", "--cluster", cluster, *GROUP]
    monkeypatch.setattr(sys, "argv", ["wsl", "counts", "build", *map(str, there)])
    said = run(capsys, "counts", "build", *there, code=1)
    assert "no column 'hashtags'" in said or 'no column "hashtags"' in said
    assert "Traceback" not in said
    assert f"run the same command again: wsl counts build --records '{records}'" in said
    (status,) = json.loads(run(capsys, "cluster", "status", tmp_path / "two.parts", "--json"))
    assert (status["done"], status["failed"]) == (4, 1)
    other.write_bytes(good)
    run(capsys, "counts", "build", *there)


def test_ctrl_c_stops_the_tasks_and_says_how_to_go_on(tmp_path: Path, cluster: str) -> None:
    records = clustered.write_records(tmp_path / "records", 60, 2000)
    program = "import sys, wsl.cli; sys.exit(wsl.cli.run(sys.argv[1:]))"
    given = ["counts", "build", "--records", records, "--out", str(tmp_path / "two"), "--cluster", cluster]
    command = [sys.executable, "-c", program, *given, *GROUP]
    parts = tmp_path / "two.parts" / "marks"
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    deadline = time.monotonic() + 120
    while len(list(parts.glob("count-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 130, said
    assert "parts are done and stay" in said
    assert "run the same command again: wsl " in said
    assert not (tmp_path / "two").exists()
    time.sleep(1)
    kept = {mark: mark.stat().st_mtime_ns for mark in parts.iterdir()}
    assert 5 <= len(kept) < 60
    time.sleep(1)
    assert set(parts.iterdir()) == kept.keys()
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert {mark: mark.stat().st_mtime_ns for mark in kept} == kept
    one = subprocess.run(
        [sys.executable, "-c", program, *given[:4], "--out", str(tmp_path / "one")], check=False, timeout=1200
    )
    assert one.returncode == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_index_with_a_join_is_the_same(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = clustered.write_records(tmp_path / "records", 4, 30)
    shards = clustered.write_shards(tmp_path / "shards", 4, 30)
    given = ["--shards", shards, "--records", records, "--label-kind", "hashtag"]
    run(capsys, "index", "build", *given, "--out", tmp_path / "one")
    run(capsys, "index", "build", *given, "--out", tmp_path / "two", "--cluster", cluster, *GROUP)
    assert same_files(tmp_path / "one", tmp_path / "two", "[!.]*") >= 5
    classes = ["--shards", shards, "--label-kind", "class"]
    run(capsys, "index", "build", *classes, "--out", tmp_path / "three")
    # As if other nodes did not see the folder of the index.
    monkeypatch.setattr("wsl.cluster.ray.Cluster._see", lambda *_: False)
    run(capsys, "index", "build", *classes, "--out", tmp_path / "four", "--cluster", cluster, *GROUP)
    assert same_files(tmp_path / "three", tmp_path / "four", "[!.]*") >= 5


def test_a_build_is_one_run_and_what_its_end_says_is_said_as_on_one_machine(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = clustered.write_records(tmp_path / "records", 3, 30)
    run(capsys, "index", "build", "--records", records, "--out", tmp_path / "one")
    there = ["--cluster", cluster, *GROUP]
    run(capsys, "index", "build", "--records", records, "--out", tmp_path / "two", *there)
    assert same_files(tmp_path / "one", tmp_path / "two", "[!.]*") >= 5
    (status,) = json.loads(run(capsys, "cluster", "status", tmp_path / "two.parts", "--json"))
    stages = [(level["kind"], level["parts"], level["done"]) for level in status["levels"]]
    assert stages == [
        ("count", 3, 3),
        ("mergecounts", 1, 1),
        ("rows", 3, 3),
        ("alone", 1, 1),
        ("manifest", 1, 1),
    ]
    assert status["complete"]
    said = " ".join(run(capsys, "cluster", "status", tmp_path / "two.parts").split())
    assert "mergecounts 1/1" in said

    doubled = tmp_path / "records" / "records-0002.parquet"
    doubled.write_bytes((tmp_path / "records" / "records-0001.parquet").read_bytes())
    build = ["index", "build", "--records", records, "--overwrite", "--out"]
    here = run(capsys, *build, tmp_path / "one", code=3)
    assert "have a key that another sample has" in here
    assert run(capsys, *build, tmp_path / "two", *there, code=3) == here.replace("/one:", "/two:")
    found = json.loads(run(capsys, "cluster", "status", tmp_path / "two.parts", "--json"))
    assert [(one["complete"], one["failed"]) for one in sorted(found, key=lambda one: one["failed"])] == [
        (True, 0),
        (False, 1),
    ]
    lax = ["--limit", "keys_doubled=1"]
    run(capsys, *build, tmp_path / "one", *lax)
    run(capsys, *build, tmp_path / "two", *lax, *there)
    assert same_files(tmp_path / "one", tmp_path / "two", "[!.]*") >= 5


def test_scores_and_selections_are_the_same(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr("wsl.selection.states.RANGE", 16)
    shards = clustered.write_shards(tmp_path / "shards", 2, 40)
    index, teacher = tmp_path / "index", clustered.write_teacher(tmp_path / "teacher")
    run(capsys, "index", "build", "--shards", shards, "--out", index)
    given = ["--checkpoint", teacher, "--index", index]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(capsys, "score", *given, "--out", tmp_path / "one")
        run(capsys, "pseudolabel", *given, "--k", 20, "--p", 2, "--out", tmp_path / "one.parquet")
    finally:
        torch.set_num_threads(threads)
    report = json.loads(
        run(capsys, "score", *given, "--out", tmp_path / "two", "--cluster", cluster, "--json")
    )
    assert report["cluster"] == {"parts": 5, "made": 5, "kept": 0}
    assert same_files(tmp_path / "one", tmp_path / "two", "*.parquet") == 5
    there = ["--out", tmp_path / "two.parquet", "--cluster", cluster]
    run(capsys, "pseudolabel", *given, "--k", 20, "--p", 2, *there)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()

    for order in ("class-first", "image-first"):
        options = ["--predictions", tmp_path / "one", "--k", 20, "--p", 2, "--order", order]
        files = [tmp_path / f"{order}-{name}.parquet" for name in ("here", "there")]
        run(capsys, "pseudolabel", *options, "--out", files[0])
        run(capsys, "pseudolabel", *options, "--out", files[1], "--cluster", cluster, *GROUP)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_node_with_another_version_is_asked_and_refused(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import platform

    records = clustered.write_records(tmp_path / "records", 2, 5)
    given = ["counts", "build", "--records", records, "--out", tmp_path / "two", "--cluster", cluster]
    with monkeypatch.context() as other:
        other.setattr("wsl.cluster.ray.__version__", "9.9.9")
        said = run(capsys, *given, code=2)
        assert f"has wsl {_core.__version__}, and this process has wsl 9.9.9" in said
    with monkeypatch.context() as other:
        known = platform.python_version()
        other.setattr("wsl.cluster.ray.platform", SimpleNamespace(python_version=lambda: "3.99.1"))
        said = run(capsys, *given, code=2)
        assert f"has Python {known}, and this process has Python 3.99.1" in said
    assert not (tmp_path / "two").exists()


def test_a_cluster_that_asks_for_a_token_refuses_who_has_none(
    tmp_path: Path, token_cluster: tuple[str, str]
) -> None:
    address, token = token_cluster
    records = clustered.write_records(tmp_path / "records", 2, 5)
    program = "import sys, wsl.cli; sys.exit(wsl.cli.run(sys.argv[1:]))"
    given = ["counts", "build", "--records", records, "--out", str(tmp_path / "two"), "--cluster", address]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (tmp_path / "home").mkdir()
    plain |= {"HOME": str(tmp_path / "home")}
    for more, code in (
        ({}, 2),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "ab" * 32}, 2),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *given],
            env=plain | more,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == code, done.stderr[-1000:]
        assert (tmp_path / "two").exists() == (code == 0)
        assert token not in done.stderr
        if code:
            assert "did not let this process in" in " ".join(done.stderr.split())


def test_what_a_cluster_cannot_do_is_refused_before_the_first_task(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = clustered.write_records(tmp_path / "records", 1, 5)
    out: list[Any] = ["--out", tmp_path / "two", "--cluster", cluster]
    said = run(capsys, "counts", "build", "--records", records, *out, "--memory", "900GiB", code=2)
    assert "GiB of memory for Ray's tasks, and one takes 900.5 GiB" in said
    said = run(capsys, "counts", "build", "--records", records, *out, "--hashtags-column", "tags", code=2)
    assert "no column 'tags'" in said


def test_what_nodes_cannot_take_apart_this_process_selects(
    tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = {"sample": pl.UInt64, "class": pl.UInt32, "score": pl.Float32}
    rows = [(number % 20, number // 20, (7 * number % 31) / 31) for number in range(60)]
    pairs = pl.DataFrame(rows, schema=schema, orient="row")
    keyed = pairs.with_columns(pl.format("k{}", "sample").alias("key")).drop("sample")
    for name, table, words in (
        ("scattered", pairs, "may lie in several of the files"),
        ("keyed", keyed, "named by key"),
    ):
        for number in range(2):
            table[30 * number : 30 * number + 30].write_parquet(tmp_path / f"{name}-{number}.parquet")
        options = ["--predictions", tmp_path / f"{name}-*.parquet", "--k", 5, "--p", 1]
        options += ["--order", "image-first"] if name == "scattered" else []
        files = [tmp_path / f"{name}-{where}" for where in ("here.out", "there.out")]
        run(capsys, "pseudolabel", *options, "--out", files[0])
        arguments = [*options, "--out", files[1], "--cluster", cluster, *GROUP]
        assert wsl.cli.run(["pseudolabel", *map(str, arguments)]) == 0
        assert words in " ".join(capsys.readouterr().err.split())
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_node_that_differs_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    import platform

    from wsl._core import UsageError, __version__
    from wsl.cluster.ray import Cluster
    from wsl.workspace.config import ClusterConfig

    cluster = Cluster(None, ClusterConfig(), secure=True)
    good = {"wsl": __version__, "Python": platform.python_version(), "auth": "token", "missing": {}}
    cluster._check_answer("one", good, "folder", "nonce", 2)
    for change, words in [
        ({"wsl": "0.0.1"}, "the node one has wsl 0.0.1, and this process has wsl"),
        ({"Python": "3.9.1"}, "the node one has Python 3.9.1, and this process has Python"),
        ({"auth": ""}, "the node one asks for no token"),
        ({"missing": {"nonce": None}}, "the node one does not see folder as this process does"),
        ({"missing": {"/data/a": 7}}, "does not see /data/a as this process does: there it has 7 bytes"),
    ]:
        with pytest.raises(UsageError, match=words):
            cluster._check_answer("one", good | change, "folder", "nonce", 2)
