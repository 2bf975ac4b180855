"""Building an index: joins in memory and on disk, killed builds, additions, lists, limits, takedowns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import wsl
from wsl.cli import run
from wsl.files.locking import locked
from wsl.index.build import BUILDING
from wsl.index.jobs import build_one_index
from wsl.index.shards import write_shard
from wsl.workspace.config import IndexConfig

MIB = 1 << 20


def make_shards(folder: Path, sizes: list[int], *, start: int = 0, first: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths, number = [], start
    for place, size in enumerate(sizes, start=first):
        samples = [(f"s{n:06}", {"png": f"image {n}".encode()}) for n in range(number, number + size)]
        number += size
        paths.append(folder / f"shard-{place:03}.tar")
        write_shard(paths[-1], samples)
    return paths


def make_records(num: int, *, seed: int = 0, extra: int = 0) -> pl.DataFrame:
    """Shuffled records of samples 0 to `num`, `extra` of no sample, some doubled."""
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(np.concatenate([np.arange(num + extra), rng.integers(0, num, num // 50)]))
    tags = [[f"t{t}" for t in rng.zipf(1.6, rng.integers(0, 5)) if t < 400] for _ in numbers]
    return pl.DataFrame({"key": [f"s{n:06}" for n in numbers], "hashtags": tags})


def content(index: wsl.Index) -> pl.DataFrame:
    return index.scan().select("key", "shard", "offset", "size", "labels").collect()


def joined_by_polars(index: wsl.Index, records: pl.DataFrame) -> list[list[int]]:
    """The twin: Polars joins, the first record of a key counts."""
    assert index.vocabulary is not None
    labels = {name: label for label, name in enumerate(index.vocabulary.names)}
    first = records.unique("key", keep="first", maintain_order=True)
    rows = index.scan().select("key").collect().join(first, on="key", how="left", maintain_order="left")
    tags = [row or [] for row in rows["hashtags"].to_list()]
    return [sorted({labels[tag] for tag in row if tag in labels}) for row in tags]


def test_a_join_on_disk_is_the_join_in_memory_and_polars_agrees(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [7000, 1, 6500, 900])
    records = pl.concat(
        [make_records(14000, extra=300), make_records(50).with_columns(key="x" + pl.col("key"))]
    )
    options: dict[str, Any] = {"records": records, "label_kind": "hashtag", "min_count": 2}
    large = wsl.build_index(tmp_path / "large", shards, **options)
    small = wsl.build_index(tmp_path / "small", shards, memory_bytes=MIB, **options)
    assert small.fingerprint == large.fingerprint
    assert small.manifest["counts"] == large.manifest["counts"]
    assert [r.tolist() for r in small.labels(np.arange(len(small)))] == joined_by_polars(small, records)
    counts = small.manifest["counts"]
    doubled = len(records) - records["key"].n_unique()
    assert counts["records_doubled"] == doubled > 0
    keys = set(small.keys(np.arange(len(small))))
    assert counts["samples_without_record"] == len(keys - set(records["key"])) == 101
    assert counts["records_without_sample"] == len(set(records["key"]) - keys) == 50
    assert small.find("s013999") == 13999
    small.verify()
    parts = wsl.build_index(tmp_path / "parts", shards, memory_bytes=MIB, part_rows=1000, **options)
    assert content(parts).equals(content(large))


CHILD = """
import sys, wsl
from pathlib import Path
folder, memory = Path(sys.argv[1]), int(sys.argv[2]) or None
wsl.build_index(folder / "index", sorted((folder / "data").glob("*.tar")), memory_bytes=memory,
    records=str(folder / "records.parquet"), label_kind="hashtag", part_rows=200, num_threads=1)
"""


def num_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("memory", [0, MIB])
def test_a_killed_build_goes_on_and_comes_to_the_same(tmp_path: Path, memory: int) -> None:
    shards = make_shards(tmp_path / "data", [700] * 20)
    make_records(14000).write_parquet(tmp_path / "records.parquet")
    options: dict[str, Any] = {
        "records": str(tmp_path / "records.parquet"),
        "label_kind": "hashtag",
        "part_rows": 200,
        "memory_bytes": memory or None,
    }
    whole = wsl.build_index(tmp_path / "whole", shards, **options)
    journal = tmp_path / "index" / "building.jsonl"
    kept: dict[str, int] = {}
    # Once while shards are scanned, and once while what was joined on disk is written.
    for lines in (12, 100):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), str(memory)])
        while child.poll() is None:
            if num_lines(journal) > lines:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        child.wait()
        if (tmp_path / "index" / "manifest.json").exists():
            # The signal came too late, or the child was done before.
            assert wsl.Index.open(tmp_path / "index").fingerprint == whole.fingerprint
        now = {path.name: path.stat().st_ino for path in (tmp_path / "index").glob("part-*.arrow")}
        assert all(now.get(name) == number for name, number in kept.items())
        # What was written but not noted yet is written again.
        noted = journal.read_text() if journal.exists() else ""
        kept = {name: number for name, number in now.items() if f'"{name}"' in noted}
    # A line that was cut short is passed over.
    if journal.exists():
        with journal.open("ab") as file:
            file.write(b'{"kind": "part", "fi')
    index = wsl.build_index(tmp_path / "index", shards, overwrite=True, **options)
    assert index.fingerprint == whole.fingerprint
    assert index.manifest["counts"] == whole.manifest["counts"]
    index.verify()
    left = {path.name for path in index.path.iterdir()}
    assert not [name for name in left if name.startswith(("building", "scan", ".tmp"))]


@pytest.mark.parametrize("is_plain", [True, False])
def test_records_alone_that_were_all_read_are_not_read_twice(tmp_path: Path, is_plain: bool) -> None:
    keys = [f"k{number % 190:03}" for number in range(200)]
    frame = pl.DataFrame({"key": keys, "hashtags": [[f"#t{len(set(key))}"] for key in keys]})
    file = tmp_path / ("records.parquet" if is_plain else "records.ndjson")
    (frame.write_parquet if is_plain else frame.write_ndjson)(file)
    given: dict[str, Any] = {"records": str(file), "label_kind": "hashtag", "part_rows": 60}
    with pytest.raises(wsl.DataError, match="10 of 200 samples have a key that another sample has"):
        wsl.build_index(tmp_path / "index", **given)
    given["limits"] = {"keys_doubled": 1.0}
    index = wsl.build_index(tmp_path / "index", **given)
    whole = wsl.build_index(tmp_path / "whole", **given)
    assert len(index) == 200
    assert index.fingerprint == whole.fingerprint
    assert index.manifest["counts"] == whole.manifest["counts"]


def workspace_index(tmp_path: Path, **settings: Any) -> wsl.Index:
    config = IndexConfig(shards="data/*.tar", **settings)
    return build_one_index(tmp_path / "index", config, tmp_path).index


def test_added_shards_leave_parts_ordinals_and_vocabulary_as_they_are(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [30, 20])
    records = make_records(90)
    records.write_parquet(tmp_path / "records.parquet")
    settings: dict[str, Any] = {"records": "records.parquet", "label_kind": "hashtag"}
    old = workspace_index(tmp_path, **settings)
    before = {path.name: path.read_bytes() for path in old.path.glob("part-*")}
    make_shards(tmp_path / "data", [25], start=50, first=2)
    with pytest.raises(wsl.UsageError, match="run from 0 to 49"):
        old.keys([60])
    config = IndexConfig(shards="data/*.tar", **settings)
    result = build_one_index(tmp_path / "index", config, tmp_path)
    assert result.state == "appended"
    new = result.index
    assert {name: (new.path / name).read_bytes() for name in before} == before
    assert new.vocabulary_fingerprint == old.vocabulary_fingerprint
    assert new.keys(np.arange(75)) == [f"s{n:06}" for n in range(75)]
    assert new.read([0, 50, 74]) == [b"image 0", b"image 50", b"image 74"]
    assert [r.tolist() for r in new.labels(np.arange(75))] == joined_by_polars(new, records)
    whole = wsl.build_index(
        tmp_path / "whole", sorted((tmp_path / "data").glob("*.tar")), records=records, label_kind="hashtag"
    )
    assert new.manifest["counts"] == whole.manifest["counts"]
    assert [new.find(f"s{n:06}") for n in (0, 49, 50, 74)] == [0, 49, 50, 74]
    new.verify()
    # What was opened before still reads what it had.
    assert old.keys([49]) == ["s000049"]
    assert old.labels([49])[0].tolist() == new.labels([49])[0].tolist()
    assert build_one_index(tmp_path / "index", config, tmp_path).state == "up to date"
    (tmp_path / "data" / "shard-000.tar").unlink()
    with pytest.raises(wsl.UsageError, match="shard-000"):
        build_one_index(tmp_path / "index", config, tmp_path)


def test_records_alone_are_added_to(tmp_path: Path) -> None:
    for number in range(2):
        frame = pl.DataFrame({"key": [f"{number}{n}" for n in range(3)], "hashtags": [["a"], ["b"], ["a"]]})
        frame.write_parquet(tmp_path / f"r{number}.parquet")
        config = IndexConfig(records="r*.parquet", label_kind="hashtag")
        index = build_one_index(tmp_path / "index", config, tmp_path).index
    assert index.keys(np.arange(6)) == ["00", "01", "02", "10", "11", "12"]
    assert index.manifest["counts"]["records"] == 6
    assert len(index.manifest["parts"]) == 2


def scoped(folder: Path) -> list[Path]:
    """Two shards with the same keys."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("00000", "00001"):
        write_shard(folder / f"{name}.tar", [(f"{n}", {"png": f"{name}/{n}".encode()}) for n in range(3)])
    return sorted(folder.glob("*.tar"))


def test_keys_may_begin_anew_in_every_shard(tmp_path: Path) -> None:
    shards = scoped(tmp_path / "data")
    with pytest.raises(wsl.DataError, match="3 of 6 samples have a key that another sample has"):
        wsl.build_index(tmp_path / "global", shards)
    records = pl.DataFrame(
        {
            "key": ["0", "1", "0", "2"],
            "where": ["00000.tar", "a/00001.tar", "00001", "00000"],
            "hashtags": [["a"], ["b"], ["c"], ["d"]],
        }
    )
    options: dict[str, Any] = {"label_kind": "hashtag", "key_scope": "shard"}
    index = wsl.build_index(
        tmp_path / "i", shards, records=records, shard_column="where", exclude=["00001:2"], **options
    )
    names = [index.row(n)["names"] for n in range(5)]
    assert names == [["a"], [], ["d"], ["c"], ["b"]]
    assert index.find_all("0") == [0, 3]
    assert index.manifest["key_scope"] == "shard"
    with pytest.raises(wsl.UsageError, match="SHARD:KEY"):
        wsl.build_index(
            tmp_path / "j", shards, records=records, shard_column="where", exclude=["2"], **options
        )
    with pytest.raises(wsl.UsageError, match="which shard it belongs to"):
        wsl.build_index(tmp_path / "k", shards, records=records, **options)
    assert wsl.drop_samples(index.path, ["00001:0", "00000:9"]) == (1, 0, ["00000:9"])
    assert wsl.Index.open(index.path).dropped.tolist() == [3]


def test_tables_beside_shards_are_joined_and_added_shard_by_shard(tmp_path: Path) -> None:
    scoped(tmp_path / "data")

    def table(name: str, tag: str) -> None:
        frame = pl.DataFrame(
            {
                "key": ["0", "1", "2"],
                "status": ["success", "success", "failed_to_download"],
                "hashtags": [[tag], ["x"], ["y"]],
            }
        )
        frame.write_parquet(tmp_path / "data" / f"{name}.parquet")

    table("00000", "a")
    table("00001", "b")
    settings: dict[str, Any] = {
        "records": "data/*.parquet",
        "label_kind": "hashtag",
        "key_scope": "shard",
    }
    index = workspace_index(tmp_path, **settings)
    assert [index.row(n)["names"] for n in range(6)] == [["a"], ["x"], [], ["b"], ["x"], []]
    write_shard(tmp_path / "data" / "00002.tar", [("0", {"png": b"new"})])
    table("00002", "a")
    added = workspace_index(tmp_path, **settings)
    assert [added.row(n)["names"] for n in range(7)][3:] == [["b"], ["x"], [], ["a"]]
    assert added.manifest["counts"]["records"] == 6


def test_members_are_joined_within_their_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        members = {"png": b"x", "json": json.dumps({"tags": [name, "both"]}).encode()}
        write_shard(tmp_path / f"{name}.tar", [("0", members)])
    index = wsl.build_index(
        tmp_path / "index",
        [tmp_path / "a.tar", tmp_path / "b.tar"],
        label_kind="hashtag",
        hashtags_column="tags",
        key_scope="shard",
    )
    assert [sorted(index.row(n)["names"]) for n in range(2)] == [["a", "both"], ["b", "both"]]


def test_text_members_are_joined_within_their_shard(tmp_path: Path) -> None:
    for name in ("a", "b"):
        samples = [(key, {"png": b"x", "txt": f"{name} #both {key}".encode()}) for key in ("0", "1")]
        write_shard(tmp_path / f"{name}.tar", [*samples, ("2", {"png": b"x"})])
    shards = [tmp_path / "a.tar", tmp_path / "b.tar"]
    options: dict[str, Any] = {"label_kind": "hashtag", "hashtags_column": ".txt", "key_scope": "shard"}
    for memory in (None, MIB):
        out = tmp_path / f"index-{memory}"
        index = wsl.build_index(out, shards, memory_bytes=memory, **options)
        assert [sorted(index.row(n)["names"]) for n in range(6)] == [
            ["0", "a", "both"],
            ["1", "a", "both"],
            [],
            ["0", "b", "both"],
            ["1", "b", "both"],
            [],
        ]


def test_shards_are_named_by_uri_where_they_are_given_so(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [3, 2])
    plain = wsl.build_index(tmp_path / "plain", shards)
    index = wsl.build_index(tmp_path / "index", [f"file://{shards[0]}", shards[1]])
    assert index.shards()["path"].to_list() == [f"file://{shards[0]}", "shard-001.tar"]
    assert index.fingerprint == plain.fingerprint
    assert index.read(np.arange(5)) == plain.read(np.arange(5))
    assert [path.resolve() for path in index.shard_paths()] == shards
    index.verify()
    (tmp_path / "elsewhere").mkdir()
    index.path.rename(tmp_path / "elsewhere" / "index")
    shards[1].rename(tmp_path / "elsewhere" / shards[1].name)
    moved = wsl.Index.open(tmp_path / "elsewhere" / "index", shard_root=tmp_path / "elsewhere")
    assert moved.read([0, 4]) == [b"image 0", b"image 4"]
    texts = [tmp_path / "t.tar"]
    write_shard(texts[0], [("a", {"png": b"x", "txt": b"tag"})])
    tagged = wsl.build_index(
        tmp_path / "tagged", [f"file://{texts[0]}"], label_kind="hashtag", hashtags_column=".txt"
    )
    assert tagged.row(0)["names"] == ["tag"]
    with pytest.raises(wsl.UsageError, match=r"hf://b/a\.tar lies in a store of kind 'hf'.*copy the shards"):
        wsl.build_index(tmp_path / "other", ["hf://b/a.tar"])
    assert not (tmp_path / "other").exists()
    config = IndexConfig(shards=f"file://{tmp_path}/data/*.tar")
    assert len(build_one_index(tmp_path / "by-glob", config, Path("/")).index) == 3
    with pytest.raises(wsl.UsageError, match=r"hf://b/\*\.tar lies in a store of kind 'hf'"):
        build_one_index(tmp_path / "other", IndexConfig(shards="hf://b/*.tar"), tmp_path)


def test_integer_keys_need_a_format_and_are_written_by_it(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [3])
    records = pl.DataFrame({"key": [0, 2], "hashtags": [["a"], ["b"]]})
    options: dict[str, Any] = {"records": records, "label_kind": "hashtag"}
    with pytest.raises(wsl.UsageError, match="--key-format"):
        wsl.build_index(tmp_path / "index", shards, **options)
    with pytest.raises(wsl.UsageError, match="'img_"):
        wsl.build_index(tmp_path / "index", shards, key_format="s{:x}", **options)
    index = wsl.build_index(tmp_path / "index", shards, key_format="s{:06d}", **options)
    assert [index.row(n)["names"] for n in range(3)] == [["a"], [], ["b"]]


def test_lists_say_which_keys_are_taken(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [6])
    (tmp_path / "take.txt").write_text("s000001\ns000002\ns000003\n")
    (tmp_path / "leave.txt").write_text("s000002\n")
    command = ["index", "build", "--shards", str(shards[0]), "--out", str(tmp_path / "index")]
    lists = ["--include", str(tmp_path / "take.txt"), "--exclude", str(tmp_path / "leave.txt")]
    assert run([*command, *lists]) == 0
    index = wsl.Index.open(tmp_path / "index")
    assert index.keys(np.arange(2)) == ["s000001", "s000003"]
    assert index.manifest["counts"]["samples_not_included"] == 3
    assert index.manifest["counts"]["samples_excluded"] == 1


def test_a_kind_of_labels_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wsl.UsageError, match="expected 'hashtag' or 'class', got 'tags'"):
        wsl.build_index(tmp_path / "index", ["a.tar"], label_kind="tags")  # type: ignore[arg-type]
    assert not (tmp_path / "index").exists()


def test_shares_above_their_limits_are_refused_and_say_which_key(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [10])
    other = pl.DataFrame({"key": [f"folder/s{n:06}" for n in range(10)], "hashtags": [["a"]] * 10})
    options: dict[str, Any] = {"label_kind": "hashtag", "records": other}
    with pytest.raises(wsl.DataError, match="written the same way") as caught:
        wsl.build_index(tmp_path / "index", shards, **options)
    assert "--limit samples_without_record=SHARE" in str(caught.value)
    loose = {"samples_without_record": 1.0, "records_without_sample": 1.0}
    assert len(wsl.build_index(tmp_path / "index", shards, limits=loose, **options)) == 10
    for memory in (None, MIB):
        with pytest.raises(wsl.DataError, match=r"10 of 10 records have a key that no sample has.*folder/s"):
            wsl.build_index(
                tmp_path / "other",
                shards,
                limits={"samples_without_record": 1.0},
                memory_bytes=memory,
                **options,
            )
    twice = pl.concat([make_records(10), make_records(10)])
    with pytest.raises(wsl.DataError, match="an earlier record has"):
        wsl.build_index(
            tmp_path / "third",
            shards,
            records=twice,
            label_kind="hashtag",
            limits={"records_doubled": 0.1},
        )
    with pytest.raises(wsl.UsageError, match='there is no limit "doubled"'):
        wsl.build_index(tmp_path / "third", shards, limits={"doubled": 0.1})
    assert not (tmp_path / "third" / "manifest.json").exists()


def test_samples_whose_members_do_not_stand_together_are_refused(tmp_path: Path) -> None:
    samples: list[tuple[str, dict[str, bytes]]] = [
        ("a", {"png": b"1"}),
        ("b", {"png": b"2"}),
        ("a", {"cls": b"3"}),
    ]
    write_shard(tmp_path / "s.tar", samples)
    with pytest.raises(wsl.DataError, match="do not stand together"):
        wsl.build_index(tmp_path / "index", [tmp_path / "s.tar"])


def test_one_of_two_builders_is_told_of_the_other(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [3])
    index = wsl.build_index(tmp_path / "index", shards)
    with locked(tmp_path / "index", BUILDING):
        for attempt in (
            lambda: wsl.build_index(tmp_path / "index", shards, overwrite=True),
            lambda: wsl.drop_samples(index.path, ["s000000"]),
        ):
            with pytest.raises(wsl.UsageError, match="another process is building"):
                attempt()
    index.verify()
    wsl.build_index(tmp_path / "index", shards, overwrite=True).verify()


RACER = """
import sys, time, wsl
from pathlib import Path
folder = Path(sys.argv[1])
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    wsl.build_index(folder / "index", sorted((folder / "data").glob("*.tar")), part_rows=50)
    print("built")
except wsl.UsageError as error:
    print(error)
"""


def test_of_builders_started_at_once_one_wins_and_the_others_are_told(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [300] * 10)
    command = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    time.sleep(1)
    (tmp_path / "go").touch()
    outcomes = sorted(racer.communicate()[0].strip() for racer in racers)
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert outcomes.count("built") == 1
    told = [said for said in outcomes if said != "built"]
    assert all("another process is building" in said or "an index already" in said for said in told)
    index = wsl.Index.open(tmp_path / "index")
    index.verify()
    assert index.fingerprint == wsl.build_index(tmp_path / "whole", shards, part_rows=50).fingerprint
    left = {path.name for path in index.path.iterdir()}
    assert not [name for name in left if name.startswith(("building", "scan", ".tmp"))]


def test_a_build_that_fails_leaves_the_old_index_whole(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [50])
    index = wsl.build_index(tmp_path / "index", shards, part_rows=10)
    bad = tmp_path / "bad.tar"
    bad.write_bytes(shards[0].read_bytes()[:20_000])
    with pytest.raises(wsl.DataError):
        wsl.build_index(tmp_path / "index", [*shards, bad], part_rows=10, overwrite=True)
    again = wsl.Index.open(tmp_path / "index")
    again.verify()
    assert again.fingerprint == index.fingerprint
    fresh = wsl.build_index(tmp_path / "index", shards, overwrite=True)
    fresh.verify()
    assert len(list((tmp_path / "index").glob("part-*"))) == 1
    # The index that was open reads on: its files are gone by name only.
    assert index.keys([49]) == ["s000049"]


def test_samples_taken_down_keep_their_ordinals_and_stay_down(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [6])
    records = make_records(6)
    options: dict[str, Any] = {"records": records, "label_kind": "hashtag"}
    index = wsl.build_index(tmp_path / "index", shards, **options)
    (tmp_path / "keys.txt").write_text("s000004\n\nnone\n")
    assert run(["index", "drop", str(index.path), "s000001", "--keys", str(tmp_path / "keys.txt")]) == 0
    assert wsl.drop_samples(index.path, ["s000001", "s000002"]) == (1, 1, [])
    down = wsl.Index.open(index.path)
    assert down.dropped.tolist() == [1, 2, 4]
    assert down.keys(np.arange(6)) == index.keys(np.arange(6))
    assert down.read(np.arange(6)) == [b"image 0", b"", b"", b"image 3", b"", b"image 5"]
    assert all(not len(down.labels([n])[0]) for n in (1, 2, 4))
    assert down.scan().select("sample").collect()["sample"].to_list() == [0, 3, 5]
    assert down.fingerprint == index.fingerprint
    assert not wsl.repeat_factors(down, scheme="natural")[[1, 2, 4]].any()
    assert run(["index", "get", str(index.path), "1", "--out", str(tmp_path / "x.png")]) == 2
    down.verify()
    rebuilt = wsl.build_index(tmp_path / "index", shards[:1], overwrite=True, **options)
    assert rebuilt.dropped.tolist() == [1, 2, 4]
    assert rebuilt.manifest["counts"]["samples_dropped"] == 3
