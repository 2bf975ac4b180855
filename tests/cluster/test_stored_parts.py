"""Parts that lie in an object store: the same results, and nothing is left on this machine."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import wsl
import wsl.cli
from tests.files.test_store_faults import FAULTS
from tests.help import clustered
from tests.help.parts import Here, World, both_ways
from tests.help.proxy import Fault, proxy
from tests.help.servers import SECRET, Server
from tests.help.shards import padded
from wsl import DataError
from wsl.cluster.counting import count_levels
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import merge_tree
from wsl.files import stores
from wsl.files.resources import UNLIMITED
from wsl.hashtags.counting import Columns
from wsl.hashtags.counts import HashtagCounts
from wsl.selection.topk import TopK
from wsl.workspace.config import ClusterConfig


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def written(parts: Parts, part: Part, content: bytes) -> None:
    with parts.making(part) as out:
        out.write_bytes(content)


def test_a_part_is_an_object_and_then_a_mark(bucket: str, temporary: Path) -> None:
    parts, part = Parts(f"{bucket}/a/b"), Part("count", 0, {"records": ["a"]})
    with parts.making(part) as out:
        assert out.parent.parent == temporary
        out.write_bytes(b"bytes")
        assert parts.finished(part) is None
    mark = parts.finished(part)
    assert mark is not None
    assert (mark.size, parts.marked()) == (5, {part.name})
    assert stores.read_bytes(parts.place(part.name)) == b"bytes"
    with parts.held(part.name) as (file,):
        assert file.read_bytes() == b"bytes"
    assert os.listdir(temporary) == []
    names = [one.uri.removeprefix(f"{bucket}/") for one in stores.listing(bucket)]
    assert names == [f"a/b/{part.name}", f"a/b/marks/{part.name}.json"]


def test_an_object_that_is_another_is_no_finished_part(bucket: str) -> None:
    parts, part = Parts(bucket), Part("count", 0, {})
    written(parts, part, b"bytes")
    stores.write_bytes(parts.place(part.name), b"other")
    with pytest.raises(DataError, match="not as it was written"), parts.held(part.name):
        pass
    stores.write_bytes(parts.place(part.name), b"byt")
    assert parts.finished(part) is None
    stores.delete(parts.place(part.name))
    assert parts.finished(part) is None


def test_two_writers_are_harmless_where_bytes_agree_and_stop_where_not(bucket: str) -> None:
    parts, part = Parts(bucket), Part("count", 0, {})
    with parts.making(part) as out:
        out.write_bytes(b"bytes")
        # Another one is faster; nothing asks the store to refuse the second.
        written(Parts(bucket), part, b"bytes")
    with pytest.raises(DataError, match="another worker made this part with other bytes"):
        written(parts, part, b"others")
    with parts.held(part.name) as (file,):
        assert file.read_bytes() == b"bytes"


def test_a_body_without_its_mark_is_made_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, part = Parts(bucket), Part("count", 0, {})

    def refuse(place: stores.Place, content: bytes) -> None:
        raise OSError(5, "no more", place)

    with monkeypatch.context() as patched:
        patched.setattr(stores, "write_bytes", refuse)
        with pytest.raises(OSError, match="no more"):
            written(parts, part, b"bytes")
    assert stores.read_bytes(parts.place(part.name)) == b"bytes"
    assert (parts.finished(part), parts.marked()) == (None, set())
    written(parts, part, b"bytes")
    assert parts.marked() == {part.name}


def test_the_folder_of_parts_is_a_path_or_a_uri(tmp_path: Path) -> None:
    from wsl.cli.cluster import ClusterOptions, choose_cluster

    workspace = tmp_path / "wsl.yaml"
    for said, place in [
        ("s3://bucket/parts", "s3://bucket/parts"),
        ("shared/parts", str(tmp_path / "shared" / "parts")),
        ("/shared/parts", "/shared/parts"),
    ]:
        about = {"indexes": {"all": {"shards": "*.tar"}}, "cluster": {"address": "auto", "folder": said}}
        workspace.write_text(json.dumps(about))
        chosen = choose_cluster(ClusterOptions(), tmp_path)
        assert chosen is not None
        assert chosen.folder == place
    for given, place in [("s3://other/parts", "s3://other/parts"), ("here", os.path.abspath("here"))]:
        chosen = choose_cluster(ClusterOptions(cluster_dir=given), tmp_path)
        assert chosen is not None
        assert chosen.folder == place


def test_a_failed_write_leaves_nothing(bucket: str, temporary: Path) -> None:
    parts, part = Parts(bucket), Part("count", 0, {})
    with pytest.raises(ZeroDivisionError), parts.making(part) as out:
        out.write_bytes(b"half" * (1 // len(part.inputs)))
    assert (stores.listing(bucket), os.listdir(temporary)) == ([], [])


def test_counts_in_a_store_are_the_counts(bucket: str, tmp_path: Path, temporary: Path) -> None:
    clustered.write_records(tmp_path / "records", 18, 30)
    records = sorted((tmp_path / "records").iterdir())
    levels = count_levels(list(map(str, records)), Columns(), UNLIMITED, ClusterConfig(group_bytes=1))
    here = Here(f"{bucket}/counts", 1)
    here.make(here.parts, levels)
    with here.parts.held(levels[-1][0].name) as (file,):
        HashtagCounts.load(file).save(tmp_path / "stored")
    wsl.count_hashtags([str(file) for file in records]).save(tmp_path / "local")
    assert (tmp_path / "stored").read_bytes() == (tmp_path / "local").read_bytes()
    assert len(here.made) == 21
    assert os.listdir(temporary) == []
    here.made.clear()
    here.make(here.parts, levels)
    assert here.made == []


@pytest.mark.parametrize("order", ["class-first", "image-first"])
def test_a_selection_in_a_store_is_the_selection(
    bucket: str, tmp_path: Path, temporary: Path, order: Any
) -> None:
    schema = {"sample": pl.UInt64, "class": pl.UInt32, "score": pl.Float32}
    files = []
    for number in range(5):
        rows = [
            (number * 40 + row, of, ((row * 7 + of * 5) % 31) / 31) for row in range(40) for of in range(3)
        ]
        files.append(str(tmp_path / f"scores-{number}.parquet"))
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(files[-1])
    about = {"num_classes": 3, "k": 6, "p": 2, "order": order, "columns": list(schema)}
    leaves = [
        Part("select", number, {"files": {file: stores.stamp(file)}, **about})
        for number, file in enumerate(files)
    ]
    levels = merge_tree(leaves, "mergestates", {}, {})
    here = Here(f"{bucket}/{order}", 1)
    here.make(here.parts, levels)
    with here.parts.held(levels[-1][0].name) as (file,):
        found = TopK.load(file).finish().table
    expected = TopK(3, 6, 2, order)
    for file in files:
        expected.update_pairs(pl.read_parquet(file))
    assert found.equals(expected.finish().table)
    assert os.listdir(temporary) == []


def test_an_index_whose_parts_lie_in_a_store_is_the_index(
    bucket: str, tmp_path: Path, temporary: Path
) -> None:
    world = World(tmp_path, 8, "shard", num_shards=5, num_tables=3)
    given = world.options() | {"shards": world.shards, "part_rows": 3}
    here = both_ways(tmp_path, 1, given, parts=f"{bucket}/index")
    kinds = {name.split("-")[0] for name in here.made}
    assert kinds == {"scan", "records", "samples", "join", "part"}
    assert both_ways(tmp_path, 1, given | {"overwrite": True}, parts=f"{bucket}/index").made == []
    # A part of the join that is another is found by who reads it.
    name = next(name for name in here.made if name.startswith("records-"))
    place = here.parts.place(name)
    whole = stores.read_bytes(place)
    stores.write_bytes(place, bytes([whole[0] ^ 1]) + whole[1:])
    for other in here.parts.marked():
        if other.startswith("join-"):
            stores.delete(here.parts.place("marks", f"{other}.json"))
    with pytest.raises(DataError, match=f"{place}.*run the command again"):
        both_ways(tmp_path, 1, given | {"overwrite": True}, parts=f"{bucket}/index")
    assert os.listdir(temporary) == []


def test_shards_records_and_parts_all_in_a_store(bucket: str, tmp_path: Path) -> None:
    world = World(tmp_path, 9, "global", num_shards=4, num_tables=3)
    placed = {}
    for table in world.tables:
        padded(pl.read_parquet(table)).write_parquet(table)
    for file in [*world.shards, *map(Path, world.tables)]:
        placed[file.name] = f"{bucket}/data/{file.name}"
        stores.write_bytes(placed[file.name], file.read_bytes())
    given = world.options() | {"records": [placed[Path(table).name] for table in world.tables]}
    both_ways(
        tmp_path,
        1,
        given | {"shards": [placed[shard.name] for shard in world.shards]},
        parts=f"{bucket}/parts",
    )
    alone = {"shards": [], "overwrite": True, "part_rows": 5}
    alone["limits"] = given["limits"] | {"keys_doubled": 1.0}
    here = both_ways(tmp_path, 1, given | alone, parts=f"{bucket}/parts")
    assert {name.split("-")[0] for name in here.made} == {"rows", "alone"}
    held = [stores.read_bytes(one.uri) for one in stores.listing(f"{bucket}/parts")]
    assert held
    assert not any(SECRET.encode() in content for content in held)


@pytest.mark.parametrize("name", FAULTS)
def test_parts_come_through_every_fault_of_a_store(
    name: str, server: Server, bucket: str, tmp_path: Path
) -> None:
    world = World(tmp_path, 8, "shard", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards, "part_rows": 4}
    counter = itertools.count()

    def plan(_: int, line: str) -> Fault | None:
        # Answers to reads are cut or stand still, but for some: a stalled one is waited for.
        if name in ("cut", "stall") and not line.startswith("GET "):
            return None
        number = next(counter)
        return FAULTS[name] if number % 3 == 0 and (name != "stall" or number < 30) else None

    with proxy(server.address, plan) as (url, seen):
        stores.use(server.options(url), timeout_s=0.5, retry_s=30.0)
        both_ways(tmp_path, 1, given, parts=f"{bucket}/{name}")
    assert len(seen.requests) > 100


def test_commands_on_a_cluster_keep_their_parts_in_a_store(
    tmp_path: Path, cluster: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> str:
        assert wsl.cli.run([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    def there(name: str) -> list[str]:
        return ["--cluster", cluster, "--cluster-group", "1", "--cluster-dir", f"{bucket}/{name}"]

    records = clustered.write_records(tmp_path / "records", 4, 30)
    shards = clustered.write_shards(tmp_path / "shards", 4, 30)
    given = ["index", "build", "--shards", shards, "--records", records, "--label-kind", "hashtag"]
    run(*given, "--out", tmp_path / "one")
    run(*given, "--out", tmp_path / "two", *there("index"))
    for file in sorted((tmp_path / "one").glob("[!.]*")):
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes(), file.name
    runs = json.loads(run("cluster", "status", f"{bucket}/index", "--json"))
    assert [run["complete"] for run in runs] == [True]

    alone = ["index", "build", "--records", records]
    run(*alone, "--out", tmp_path / "three")
    run(*alone, "--out", tmp_path / "four", *there("alone"))
    for file in sorted((tmp_path / "three").glob("[!.]*")):
        assert (tmp_path / "four" / file.name).read_bytes() == file.read_bytes(), file.name

    run("counts", "build", "--records", records, "--out", tmp_path / "one.counts")
    run("counts", "build", "--records", records, "--out", tmp_path / "two.counts", *there("counts"))
    assert (tmp_path / "one.counts").read_bytes() == (tmp_path / "two.counts").read_bytes()

    schema = {"sample": pl.UInt64, "class": pl.UInt32, "score": pl.Float32}
    for number in range(3):
        rows = [(number * 9 + row, of, (row * 7 + of) / 99) for row in range(9) for of in range(3)]
        pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / f"pairs-{number}.parquet")
    given = ["pseudolabel", "--predictions", str(tmp_path / "pairs-*.parquet"), "--k", "5", "--p", "2"]
    run(*given, "--out", tmp_path / "one.parquet")
    run(*given, "--out", tmp_path / "two.parquet", *there("selection"))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    left = sorted(file.name for file in tmp_path.iterdir() if file.name.endswith(".parts"))
    assert left == []
