"""What may be handed in as records: every form gives the counts of a plain count."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import wsl
from wsl.files import tables
from wsl.index.shards import write_shard

RECORDS: list[list[str | None] | None] = [
    ["#Dog", "cat", "dog"],
    [],
    None,
    ["a-hashtag-of-more-than-fifteen-bytes", None, "cat"],
    ["été", "12-bytes-tag", "13-bytes-tags"],
    ["cat"],
]
PLAIN = Counter(tag for tags in RECORDS for tag in {t.lower().lstrip("#") for t in tags or [] if t})
TEXTS = [" ".join(tag for tag in tags or [] if tag) if tags is not None else None for tags in RECORDS]


def counts_of(found: wsl.HashtagCounts) -> Counter[str]:
    assert found.num_records == len(RECORDS)
    return Counter(dict(found.table().iter_rows()))


@pytest.mark.parametrize(
    "text", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), "dictionary"]
)
@pytest.mark.parametrize("form", ["list", "large_list", "list_view", "large_list_view", "text"])
def test_every_arrow_form_of_the_column_counts_the_same(text: Any, form: str) -> None:
    plain = pa.string() if text == "dictionary" else text
    if form == "text":
        column: pa.Array = pa.array(TEXTS, pa.string()).cast(plain)
        column = column.dictionary_encode() if text == "dictionary" else column
    else:
        column = pa.array(RECORDS, pa.list_(pa.string()))
        values = column.values.cast(plain)
        values = values.dictionary_encode() if text == "dictionary" else values
        offsets, mask = column.offsets, column.is_null()
        if form.startswith("large"):
            offsets = offsets.cast(pa.int64())
        if form.endswith("view"):
            kind = pa.LargeListViewArray if form.startswith("large") else pa.ListViewArray
            sizes = pc.subtract(offsets[1:], offsets[:-1])
            column = kind.from_arrays(offsets[:-1], sizes, values, mask=mask)
        else:
            kind = pa.LargeListArray if form.startswith("large") else pa.ListArray
            column = kind.from_arrays(offsets, values, mask=mask)
    table = pa.table({"hashtags": column})
    for batch in (table, table.slice(0, 6)):
        assert counts_of(wsl.count_hashtags(batch)) == PLAIN


def test_slices_of_a_batch_count_their_own_rows() -> None:
    table = pa.table({"hashtags": pa.array(RECORDS, pa.list_(pa.string_view()))})
    parts = [wsl.count_hashtags(table.slice(start, 2)) for start in (0, 2, 4)]
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    assert counts_of(parts[0]) == PLAIN
    fixed = pa.table({"hashtags": pa.array([["a", "b"], ["b", "c"], ["c", "#C"]], pa.list_(pa.string(), 2))})
    assert wsl.count_hashtags(fixed.slice(1)).top(9) == [("c", 2), ("b", 1)]


@pytest.mark.parametrize("separator", [None, ","])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "ndjson", "jsonl"])
def test_files_of_text_count_the_same_compressed_or_not(
    tmp_path: Path, kind: str, compression: str, separator: str | None
) -> None:
    texts = [text and text.replace(" ", separator or " ") for text in TEXTS]
    frame = pl.DataFrame({"key": [f"{row:05d}" for row in range(len(texts))], "hashtags": texts})
    path = tmp_path / f"r.{kind}"
    if kind in ("csv", "tsv"):
        frame.write_csv(path, separator="," if kind == "csv" else "\t")
    else:
        frame.write_ndjson(path)
    if compression == ".gz":
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    elif compression == ".zst":
        subprocess.run(["zstd", "-q", path], check=True)
    found = wsl.count_hashtags(f"{path}{compression}", separator=separator)
    assert counts_of(found) == PLAIN
    # Keys of text files stay text, zeros and all.
    records = tables.open_records(f"{path}{compression}", key_column="key", hashtags_column="hashtags")
    assert pl.DataFrame(records.stream)["key"].to_list() == frame["key"].to_list()


def test_files_frames_and_relations_count_the_same(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    frame = pl.DataFrame({"hashtags": RECORDS}, schema={"hashtags": pl.List(pl.String)})
    (tmp_path / "a" / "b").mkdir(parents=True)
    frame[:3].write_parquet(tmp_path / "a" / "0.parquet")
    frame[3:].write_parquet(tmp_path / "a" / "b" / "1.parquet")
    frame.write_ipc(tmp_path / "r.arrow")
    frame.write_ipc(tmp_path / "z.feather", compression="zstd")
    frame.write_ndjson(tmp_path / "lists.ndjson")
    sources = [
        f"{tmp_path}/**/*.parquet",
        [tmp_path / "a", tmp_path / "a" / "b"],
        tmp_path / "r.arrow",
        tmp_path / "z.feather",
        tmp_path / "lists.ndjson",
        frame,
        frame.lazy(),
        duckdb.sql("select * from frame"),
        frame.to_arrow().to_reader(),
    ]
    for found in sources:
        assert counts_of(wsl.count_hashtags(found)) == PLAIN


def test_options_for_object_stores_reach_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def scan(files: list[str], **options: Any) -> pl.LazyFrame:
        seen[files[0]] = options
        return pl.LazyFrame({"hashtags": [["a"]]})

    monkeypatch.setattr(pl, "scan_parquet", scan)
    options = {"aws_region": "eu-west-1"}
    counts = wsl.count_hashtags("s3://bucket/r.parquet", storage_options=options)
    assert counts.top(1) == [("a", 1)]
    assert seen == {"s3://bucket/r.parquet": {"storage_options": options}}


def json_shard(path: Path, prefix: str = "") -> None:
    samples: list[tuple[str, dict[str, bytes]]] = []
    for row, (tags, text) in enumerate(zip(RECORDS, TEXTS, strict=True)):
        members = {"jpg": b"x", "json": json.dumps({"meta": {"tags": tags}, "text": text}).encode()}
        samples.append((f"{prefix}{row:03d}", members | {"txt": (text or "").encode()}))
    write_shard(path, samples)


def test_hashtags_in_the_members_of_shards_count_the_same(tmp_path: Path) -> None:
    json_shard(tmp_path / "0.tar")
    for column in ("meta.tags", "text", ".txt"):
        found = wsl.count_hashtags(tmp_path / "*.tar", hashtags_column=column)
        assert counts_of(found) == PLAIN, column
    assert counts_of(wsl.count_hashtags(tmp_path, hashtags_column="meta.tags")) == PLAIN
    assert wsl.count_hashtags(tmp_path, hashtags_column="meta.none").num_hashtags == 0
    commas = wsl.count_hashtags(tmp_path, hashtags_column=".txt", separator="-")
    assert commas.count_of("bytes cat") == 1


def test_an_index_takes_the_hashtags_of_its_own_shards(tmp_path: Path) -> None:
    json_shard(tmp_path / "0.tar", "a/")
    index = wsl.build_index(
        tmp_path / "index",
        [tmp_path / "0.tar"],
        label_kind="hashtag",
        hashtags_column="meta.tags",
        min_count=2,
    )
    names = index.class_names
    assert names == ["cat"]
    assert [row.tolist() for row in index.labels(range(6))] == [[0], [], [], [0], [], [0]]


@pytest.mark.parametrize("threads", [1, 3])
def test_records_alone_make_an_index_without_images(tmp_path: Path, threads: int) -> None:
    tags = [
        [f"t{n % 90}" for n in range(row, row + row % 5)] + ["x" * 20] * (row % 2) for row in range(70_000)
    ]
    keys = [f"key-{row}" for row in range(len(tags))]
    frame = pl.DataFrame(
        {"key": keys, "hashtags": tags}, schema={"key": pl.String, "hashtags": pl.List(pl.String)}
    )
    index = wsl.build_index(
        tmp_path / "index",
        records=frame,
        label_kind="hashtag",
        min_count=2,
        num_threads=threads,
        exclude=["key-3"],
    )
    kept = [row for row in range(len(tags)) if row != 3]
    assert len(index) == len(kept)
    names = index.class_names
    assert names is not None
    some = [0, 1, 2, 3, 65_534, 65_535, 65_536, len(kept) - 1]
    for ordinal, labels in zip(some, index.labels(some), strict=True):
        assert {names[label] for label in labels} == set(tags[kept[ordinal]])
        assert labels.tolist() == sorted(set(labels.tolist()))
    assert index.keys(some) == [keys[kept[ordinal]] for ordinal in some]
    assert index.find("key-69999") == len(kept) - 1
    assert index.row(5)["shard"] is None
    index.verify()
    with pytest.raises(wsl.UsageError, match="built of records alone"):
        index.read([5])
    scanned = index.scan().select(pl.len(), pl.col("size").sum()).collect()
    assert scanned.row(0) == (len(kept), 0)
    assert len(wsl.repeat_factors(index)) == len(kept)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a JSON document"),
        (b'{"tags": 5}', "a list of texts or one text"),
        (b'{"tags": ["a", 5]}', "found 5 in it"),
        (b'{"tags": "' + b"y" * (1 << 20) + b'"}', "at most 1048576 bytes"),
        (b"\xff", "a JSON document"),
    ],
)
def test_wrong_members_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_shard(tmp_path / "s.tar", [("good", {"json": b'{"tags": []}'}), ("bad", {"json": content})])
    with pytest.raises(wsl.DataError, match=message) as caught:
        wsl.count_hashtags(tmp_path / "s.tar", hashtags_column="tags")
    assert 's.tar: the member "bad.json" at byte' in str(caught.value)


def test_tables_beside_shards_count_only_rows_with_an_image(tmp_path: Path) -> None:
    statuses = ["success", "failed_to_download", "success"]
    frame = pl.DataFrame({"key": ["0", "1", "2"], "caption": ["a b", "b", "b"], "status": statuses})
    frame.write_parquet(tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    found = wsl.count_hashtags(tmp_path, hashtags_column="caption")
    assert (found.num_records, found.count_of("b")) == (3, 3)
    write_shard(tmp_path / "00000.tar", [("0", {"jpg": b"x"}), ("2", {"jpg": b"x"})])
    found = wsl.count_hashtags(tmp_path, hashtags_column="caption")
    assert (found.num_records, found.count_of("b")) == (2, 2)


def test_rows_are_told_beforehand_by_footers_and_about_by_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"hashtags": [["a"]] * 70})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ipc(tmp_path / "a.arrow")
    assert tables.expected_rows(tmp_path / "a.parquet") == 70
    assert tables.expected_rows(tmp_path / "a.arrow") == 70
    lines = pl.DataFrame({"hashtags": [f"tag{i % 9}" for i in range(200_000)]})
    lines.write_csv(tmp_path / "a.csv")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    for name in ("a.csv", "a.csv.gz"):
        assert tables.expected_rows(tmp_path / name) == pytest.approx(200_000, rel=0.1)
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    assert tables.expected_rows(tmp_path / "bad.csv.gz") is None
    assert tables.expected_rows([]) == 0
    assert tables.expected_rows(tmp_path / "none.parquet") is None


def test_samples_of_shards_are_told_beforehand_about(tmp_path: Path) -> None:
    for number in range(10):
        samples = [(f"{number}-{i}", {"txt": b"a b"}) for i in range(30)]
        write_shard(tmp_path / f"{number}.tar", samples)
    assert tables.expected_rows(tmp_path) == 300
    assert tables.expected_rows(tmp_path / "1.tar") is None


def test_progress_of_text_says_how_long_it_takes(tmp_path: Path) -> None:
    seen: list[int] = []
    pl.DataFrame({"hashtags": ["a b"] * 300_000}).write_csv(tmp_path / "a.csv")
    found = wsl.count_hashtags(tmp_path / "a.csv", progress=seen.append)
    assert found.num_records == 300_000
    assert seen == sorted(seen)
    assert seen[-1] == 300_000
