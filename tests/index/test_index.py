"""The index over tar shards, held against tarfile, Polars and pyarrow."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import wsl
from tests.help.thoroughness import examples
from wsl.cli import run
from wsl.index.shards import write_shard


def make_shards(folder: Path, sizes: list[int], *, classes: bool = True) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    paths, number = [], 0
    for place, size in enumerate(sizes):
        samples: list[tuple[str, dict[str, bytes]]] = []
        for _ in range(size):
            members = {"png": rng.bytes(int(rng.integers(1, 900)))}
            if classes:
                members["cls"] = str(number % 3).encode()
            samples.append((f"s{number:05}", members))
            number += 1
        paths.append(folder / f"shard-{place:03}.tar")
        write_shard(paths[-1], samples)
    return paths


@pytest.fixture
def built(tmp_path: Path) -> wsl.Index:
    shards = make_shards(tmp_path / "data", [5, 1, 7])
    return wsl.build_index(tmp_path / "index", shards, label_kind="class", class_names=["a", "b", "c"])


def test_every_sample_is_what_tarfile_reads(built: wsl.Index, tmp_path: Path) -> None:
    expected = []
    for path in sorted((tmp_path / "data").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".png"):
                    content = archive.extractfile(member)
                    assert content is not None
                    expected.append((member.name[:-4], member.offset_data, content.read()))
    everything = np.arange(len(built))
    assert built.keys(everything) == [key for key, _, _ in expected]
    assert built.read(everything) == [content for _, _, content in expected]
    assert built.scan().collect()["offset"].to_list() == [offset for _, offset, _ in expected]
    assert [row.tolist() for row in built.labels(everything)] == [[n % 3] for n in range(13)]
    assert all(built.find(key) == n for n, (key, _, _) in enumerate(expected))
    assert built.find("none") is None
    assert built.label_counts().tolist() == [5, 4, 4]
    assert built.row(6)["names"] == ["a"]
    built.verify()


def test_polars_and_pyarrow_read_the_parts_as_they_are(built: wsl.Index) -> None:
    part = built.path / "part-00000.arrow"
    with pa.memory_map(str(part)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.column("labels").to_pylist() == built.scan().collect()["labels"].to_list()
    assert table.num_rows == 13


def test_duckdb_reads_an_index_as_polars_does(built: wsl.Index) -> None:
    wsl.drop_samples(built.path, ["s00004"])
    samples = wsl.Index.open(built.path).scan()
    connection = duckdb.connect()
    connection.register("samples", samples)
    query = 'select sample, key, shard, "offset", size, labels from samples order by sample'
    found = pl.DataFrame(connection.sql(query).to_arrow_table())
    assert_frame_equal(found, samples.collect())
    grouped = connection.sql(
        "select label, count(*)::bigint as num, sum(size)::bigint as bytes "
        "from (select unnest(labels) as label, size from samples) group by label order by label"
    )
    expected = (
        samples.explode("labels")
        .group_by(label="labels")
        .agg(num=pl.len().cast(pl.Int64), bytes=pl.col("size").sum().cast(pl.Int64))
        .sort("label")
    )
    assert_frame_equal(pl.DataFrame(grouped.to_arrow_table()), expected.collect())


def test_an_index_takes_no_more_than_its_format_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "data", [20_000])
    index = wsl.build_index(tmp_path / "index", shards, label_kind="class")
    assert run(["index", "info", str(index.path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    in_folder = sum(path.stat().st_size for path in index.path.iterdir())
    assert shown["index_bytes"] == in_folder
    assert shown["bytes_per_sample"] == pytest.approx(in_folder / 20_000, abs=0.01)
    # 20 a sample, 4 a label, the key of 6 bytes and its offset, 8 for the look-up, little beside.
    assert in_folder <= 20_000 * (20 + 4 + 6 + 4 + 8) + 10_000


def test_hashtags_are_joined_by_key_and_everything_left_out_is_counted(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [4, 4], classes=False)
    records = pl.DataFrame(
        {
            "key": ["s00000", "s00001", "s00001", "s00007", "absent"],
            "hashtags": [["#B", "a", "b"], ["a", "rare"], ["b"], [], ["b"]],
        }
    )
    index = wsl.build_index(
        tmp_path / "index", shards, records=records, label_kind="hashtag", min_count=2, exclude=["s00003"]
    )
    assert index.class_names == ["b", "a"]
    assert [row.tolist() for row in index.labels(np.arange(7))] == [[0, 1], [1], [], [], [], [], []]
    counts = index.manifest["counts"]
    assert counts["records_doubled"] == 1
    assert counts["records_without_sample"] == 1
    assert counts["samples_without_record"] == 4
    assert counts["samples_excluded"] == 1
    assert counts["samples_without_labels"] == 5
    assert counts["hashtags_outside_the_vocabulary"] == 1


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 3))
@examples(20)
def test_threads_and_places_never_change_the_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], threads: int
) -> None:
    folder = tmp_path_factory.mktemp("index")
    shards = make_shards(folder / "data", sizes)
    one = wsl.build_index(folder / "one", shards, label_kind="class", num_threads=1)
    shutil.copytree(folder / "data", folder / "elsewhere")
    moved = [folder / "elsewhere" / shard.name for shard in shards]
    two = wsl.build_index(folder / "deeper" / "two", moved, label_kind="class", num_threads=threads)
    assert one.fingerprint == two.fingerprint
    assert wsl.Index.open(folder / "one", shard_root=folder / "elsewhere").read([0]) == one.read([0])


def test_parts_of_many_batches_are_read_at_every_border(tmp_path: Path) -> None:
    number = 65_536 * 2 + 3
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for n in range(number):
            header = tarfile.TarInfo(f"{n:07}.png")
            header.size = 1
            archive.addfile(header, io.BytesIO(bytes([n % 251])))
    index = wsl.build_index(tmp_path / "index", [tmp_path / "a.tar"])
    places = np.array([0, 65_535, 65_536, 131_071, 131_072, number - 1])
    assert index.keys(places) == [f"{n:07}" for n in places]
    assert [content[0] for content in index.read(places)] == [n % 251 for n in places]
    assert index.find("0131072") == 131_072
    with pytest.raises(wsl.UsageError, match="run from 0 to 131074"):
        index.keys([number])
    with pytest.raises(wsl.UsageError, match="no sample -1"):
        index.keys([-1])


def change(path: Path, **fields: Any) -> None:
    tree = json.loads(path.read_text())
    tree.update(fields)
    path.write_text(json.dumps(tree))


def test_damage_is_named_and_never_read_past(built: wsl.Index, tmp_path: Path) -> None:
    part = built.path / "part-00000.arrow"
    whole = part.read_bytes()
    failures = 0
    for cut in range(0, len(whole), 97):
        part.unlink()
        part.write_bytes(whole[:cut])
        with pytest.raises(wsl.DataError, match=r"part-00000\.arrow"):
            wsl.Index.open(built.path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        part.unlink()
        part.write_bytes(bytes(damaged))
        try:
            index = wsl.Index.open(built.path)
            index.keys(np.arange(13))
            index.labels(np.arange(13))
            with pytest.raises(wsl.DataError):
                index.verify()
        except wsl.DataError:
            failures += 1
    assert failures > 0


def test_other_versions_missing_files_and_replaced_shards_are_refused(
    built: wsl.Index, tmp_path: Path
) -> None:
    with pytest.raises(wsl.UsageError, match="is not an index"):
        wsl.Index.open(tmp_path)
    manifest = built.path / "manifest.json"
    text = manifest.read_text()
    change(manifest, format_version=1)
    with pytest.raises(wsl.DataError, match="format version 1"):
        wsl.Index.open(built.path)
    manifest.write_text(text[:-20])
    with pytest.raises(wsl.DataError, match=r"manifest\.json"):
        wsl.Index.open(built.path)
    manifest.write_text(text)
    make_shards(tmp_path / "data", [3, 3, 7])
    fresh = wsl.Index.open(built.path)
    with pytest.raises(wsl.DataError, match="replaced or cut"):
        fresh.read(np.arange(13))
    with pytest.raises(wsl.DataError, match="bytes"):
        fresh.verify()
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(wsl.UsageError, match="is not there"):
        wsl.Index.open(built.path).read([0])


def test_bad_shards_and_options_are_refused_and_nothing_becomes_visible(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [4, 4])
    out = tmp_path / "index"
    shards[1].write_bytes(shards[1].read_bytes()[:1500])
    with pytest.raises(wsl.DataError, match=r"shard-001\.tar: at byte"):
        wsl.build_index(out, shards, label_kind="class")
    (tmp_path / "empty.tar").touch()
    with pytest.raises(wsl.DataError, match=r"empty\.tar"):
        wsl.build_index(out, [tmp_path / "empty.tar"])
    write_shard(tmp_path / "c.tar", [("k", {"png": b"x", "cls": b"cat"})])
    with pytest.raises(wsl.DataError, match="expected a class number"):
        wsl.build_index(out, [tmp_path / "c.tar"], label_kind="class")
    with pytest.raises(wsl.DataError, match="only 2 classes have a name"):
        wsl.build_index(out, shards[:1], label_kind="class", class_names=["a", "b"])
    shutil.copy(shards[0], tmp_path / "copy.tar")
    with pytest.raises(wsl.DataError, match="a key that another sample has"):
        wsl.build_index(out, [shards[0], tmp_path / "copy.tar"])
    with pytest.raises(wsl.UsageError, match="name where the hashtags are"):
        wsl.build_index(out, shards[:1], label_kind="hashtag")
    with pytest.raises(wsl.UsageError, match="an index needs shards"):
        wsl.build_index(out, [])
    assert not (out / "manifest.json").exists()
    wsl.build_index(out, shards[:1])
    with pytest.raises(wsl.UsageError, match="overwrite"):
        wsl.build_index(out, shards[:1])


def test_repeat_factors_follow_the_formula(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "data", [40], classes=False)
    rng = np.random.default_rng(3)
    tags = [[f"t{n}" for n in rng.zipf(1.7, 3) if n < 30] for _ in range(40)]
    records = pl.DataFrame({"key": [f"s{n:05}" for n in range(40)], "hashtags": tags})
    index = wsl.build_index(tmp_path / "index", shards, records=records, label_kind="hashtag")
    share = index.label_counts() / len(index)
    for scheme, power in (("square-root", 0.5), ("uniform", 1.0)):
        found = wsl.repeat_factors(index, scheme=scheme, threshold=0.2)  # type: ignore[arg-type]
        rows = index.labels(np.arange(40))
        expected = [max([max(1.0, (0.2 / share[h]) ** power) for h in row], default=0.0) for row in rows]
        assert found == pytest.approx(expected, rel=1e-6)
        solved = wsl.repeat_factors(index, scheme=scheme, epoch_length=123.0)  # type: ignore[arg-type]
        assert float(solved.sum()) == pytest.approx(123.0, rel=1e-4)
    natural = wsl.repeat_factors(index, scheme="natural")
    assert natural.tolist() == [float(len(row) > 0) for row in index.labels(np.arange(40))]
    with pytest.raises(wsl.UsageError, match="natural, square-root, uniform or clip"):
        wsl.repeat_factors(index, scheme="cube")  # type: ignore[arg-type]
    with pytest.raises(wsl.UsageError, match="at least once"):
        wsl.repeat_factors(index, epoch_length=3.0)
