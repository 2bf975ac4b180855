"""Parts and plans, without Ray."""

from __future__ import annotations

import glob
import itertools
import json
import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.help import clustered
from wsl import DataError, UsageError, _core
from wsl.cluster import ray
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import FAN_IN, file_groups, merge_tree, missing
from wsl.cluster.status import Tally, status
from wsl.files.resources import UNLIMITED
from wsl.workspace.recipe import Recipe


def written(parts: Parts, part: Part, content: bytes) -> None:
    with parts.making(part) as out:
        out.write_bytes(content)


def body(parts: Parts, part: Part) -> bytes:
    with parts.held(part.name) as (file,):
        return file.read_bytes()


def test_a_part_is_finished_once_its_mark_is_there_and_not_before(tmp_path: Path) -> None:
    parts, part = Parts(tmp_path), Part("count", 0, {"records": ["a"]})
    with parts.making(part) as out:
        out.write_bytes(b"bytes")
        assert parts.finished(part) is None
    mark = parts.finished(part)
    assert mark is not None
    assert (mark.size, body(parts, part)) == (5, b"bytes")
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_body_that_was_cut_or_altered_is_no_finished_part(tmp_path: Path) -> None:
    parts, part = Parts(tmp_path), Part("count", 0, {})
    written(parts, part, b"bytes")
    Path(parts.place(part.name)).write_bytes(b"other")
    with pytest.raises(DataError, match="not as it was written"):
        body(parts, part)
    Path(parts.place(part.name)).write_bytes(b"byt")
    assert parts.finished(part) is None
    written(parts, part, b"bytes")
    assert body(parts, part) == b"bytes"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    parts, part = Parts(tmp_path), Part("count", 0, {})
    with pytest.raises(ZeroDivisionError), parts.making(part) as out:
        out.write_bytes(b"half" * (1 // len(part.inputs)))
    assert parts.finished(part) is None
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_what_a_killed_worker_left_goes_once_nobody_can_be_at_it(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    parts.begin()
    old, new, other = tmp_path / ".tmp-a", tmp_path / ".tmp-b", tmp_path / "count-000000-abc"
    for file in (old, new, other):
        file.write_bytes(b"half")
    for file in (old, other):
        os.utime(file, (0, 0))
    parts.tidy()
    assert [file.exists() for file in (old, new, other)] == [False, True, True]


def test_two_writers_of_one_part_are_harmless_where_bytes_agree_and_stop_where_not(tmp_path: Path) -> None:
    parts, part = Parts(tmp_path), Part("count", 0, {})
    written(parts, part, b"bytes")
    written(parts, part, b"bytes")
    with pytest.raises(DataError, match="another worker made this part with other bytes"):
        written(parts, part, b"others")
    assert body(parts, part) == b"bytes"


def _write_many(folder: str) -> None:
    for number in range(20):
        written(Parts(folder), Part("count", number, {}), b"%d" % number * 1000)


def test_writers_at_the_same_time_leave_every_part_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(str(tmp_path),)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    for number in range(20):
        part = Part("count", number, {})
        assert body(Parts(tmp_path), part) == b"%d" % number * 1000


@pytest.mark.parametrize(
    "other",
    [
        Part("merge", 0, {"a": 1}),
        Part("count", 0, {"a": 2}),
        Part("count", 0, {"a": 1}, ("input",)),
    ],
)
def test_a_name_holds_all_that_determines_the_bytes(other: Part) -> None:
    part = Part("count", 0, {"a": 1})
    assert other.name != part.name
    assert Part("count", 0, {"a": 1}, (), {"num_threads": 7}).name == part.name


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 50))
def test_groups_hold_every_file_once_in_order_and_close_at_their_size(sizes: list[int], limit: int) -> None:
    files = [f"{number}-{size}" for number, size in enumerate(sizes)]

    def size_of(file: str) -> int:
        return int(file.split("-")[1])

    groups = file_groups(files, limit, size_of)
    assert [file for group in groups for file in group] == files
    assert all(groups)
    for group in groups[:-1]:
        assert sum(map(size_of, group)) >= limit > sum(map(size_of, group[:-1]))


@given(st.integers(1, 700))
def test_a_tree_takes_every_leaf_once_and_ends_in_one_part(number: int) -> None:
    leaves = [Part("count", n, {"n": n}) for n in range(number)]
    levels = merge_tree(leaves, "mergecounts", {}, {})
    assert len(levels[-1]) == 1
    for below, level in itertools.pairwise(levels):
        assert [name for part in level for name in part.inputs] == [part.name for part in below]
        assert all(1 <= len(part.inputs) <= FAN_IN for part in level)
    names = [part.name for level in levels for part in level]
    assert len(set(names)) == len(names)


def test_only_what_the_last_part_still_asks_for_is_made(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    leaves = [Part("count", n, {"n": n}) for n in range(20)]
    levels = merge_tree(leaves, "mergecounts", {}, {})
    assert [len(level) for level in missing(levels, parts)] == [20, 2, 1]
    written(parts, leaves[3], b"x")
    written(parts, levels[1][1], b"y")
    left = missing(levels, parts)
    assert [len(level) for level in left] == [15, 1, 1]
    assert leaves[3] not in left[0]
    written(parts, levels[2][0], b"z")
    assert [len(level) for level in missing(levels, parts)] == [0, 0, 0]


@pytest.mark.parametrize("damage", ["cut", "columns", "empty", "more", "bytes"])
def test_damaged_scans_are_an_error_and_no_index(tmp_path: Path, damage: str) -> None:
    shards = [Path(path) for path in sorted(glob.glob(clustered.write_shards(tmp_path / "shards", 2, 3)))]
    scans = tmp_path / "scans"
    _core.save_scans(list(shards), scans, Recipe(label_kind="class"))
    lines = scans.read_bytes().splitlines(keepends=True)
    wrong = {
        "cut": lines[0] + lines[1][:-20],
        "columns": lines[0].replace(b'"classes":[0,', b'"classes":[') + lines[1],
        "empty": b"",
        "more": b"".join([*lines, lines[0]]),
        "bytes": lines[0].replace(b"0", b"\xff", 1) + lines[1],
    }[damage]
    assert wrong != scans.read_bytes()
    scans.write_bytes(wrong)
    names, out = [str(shard) for shard in shards], tmp_path / "samples"
    with pytest.raises(DataError, match="expected the scans of shards"):
        _core.save_samples(scans, names, out, Recipe(label_kind="hashtag"), resources=UNLIMITED)
    assert not out.exists()
    rows = 6 if damage != "more" else 7
    whole = [(scans, names, 0, 0, (0, 0), (0, rows))]
    with pytest.raises(DataError, match=r"expected the scans of shards|does not hold them"):
        _core.write_part(whole, [], out, Recipe(label_kind="class"))
    assert not out.exists()


def test_status_says_what_is_done_and_what_failed(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    leaves = [Part("count", n, {"n": n}) for n in range(3)]
    levels = merge_tree(leaves, "mergecounts", {}, {})
    parts.begin()
    parts.note_run("root", "wsl stats", [[part.name for part in level] for level in levels])
    parts.note_failure(leaves[0], "no such column")
    written(parts, leaves[1], b"x")
    (run,) = status(parts)
    assert (run["command"], run["parts"], run["done"], run["failed"]) == ("wsl stats", 4, 1, 1)
    assert run["failures"] == {leaves[0].name: "no such column"}
    assert not run["complete"]
    for part in [*leaves, levels[-1][0]]:
        written(parts, part, b"x")
    (run,) = status(parts)
    assert (run["complete"], run["failed"]) == (True, 0)
    json.dumps(run)


def test_the_line_says_how_many_how_fast_and_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 160.0)
    tally = Tally(total=200, done=80, running=2, waiting=118, failed=0, made=60, begun=100.0)
    assert tally.line() == ("80 of 200 parts done, 2 running, 118 waiting, 0 failed, 1.0 parts/s, 2:00 left")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:10001", "ray://"),
        ("127.0.0.1", "expected auto or HOST:PORT"),
        ("127.0.0.1:9", "no cluster answers there"),
    ],
)
def test_an_address_without_a_cluster_is_refused_before_ray_tries(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from wsl.cluster.ray import connect
    from wsl.workspace.config import ClusterConfig

    with pytest.raises(UsageError, match=words), connect(ClusterConfig(address=address)):
        pass


def test_an_address_beyond_loopback_needs_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsl.cluster.ray import connect
    from wsl.workspace.config import ClusterConfig

    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with (
        pytest.raises(UsageError, match="must ask for a token"),
        connect(ClusterConfig(address="10.1.2.3:6379")),
    ):
        pass


def test_without_ray_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from wsl.cluster.ray import connect
    from wsl.workspace.config import ClusterConfig

    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"pip install -e '\.\[ray\]'"),
        connect(ClusterConfig(address="127.0.0.1:1")),
    ):
        pass


def test_a_command_is_told_without_the_secrets_of_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["stats", "--storage-option", "aws_secret_access_key=abc", "--records", "s3://b/a b.csv"]
    given += ["--storage-option=aws_session_token=d=ef", "--json"]
    monkeypatch.setattr("sys.argv", ["/bin/wsl", *given])
    assert ray.command() == (
        "wsl stats --storage-option aws_secret_access_key=... --records 's3://b/a b.csv' "
        "--storage-option=aws_session_token=... --json"
    )
