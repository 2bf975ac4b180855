"""Parquet files read by the engine itself: the same counts and indexes as through Polars, or not at all."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from tests.help.thoroughness import Places, examples
from wsl import _core
from wsl.files.resources import Resources
from wsl.workspace.recipe import Recipe

TEXTS = [
    "a",
    "A",
    "#a",
    "bb",
    "Straße",
    "STRASSE",
    "é",
    "e\u0301",
    "x" * 13,
    "longer-than-a-view",
    "#Longer-than-a-view",
]
TEXTS += [
    "",
    " # ",
    "\u200b",
    "tab\tinside",
    "y" * 129,
    "Y" * 16,
    "naïve",
    "日本語のとても長いタグ",
    *[f"tag{n}" for n in range(40)],
]

tags = st.none() | st.sampled_from(TEXTS)
records = st.lists(st.none() | st.lists(tags, max_size=9), min_size=1, max_size=120)


def counted(source: object, **options: Any) -> tuple[Any, ...]:
    return facts(wsl.count_hashtags(source, **options))


def facts(counts: wsl.HashtagCounts) -> tuple[Any, ...]:
    return (
        counts.table().rows(),
        counts.num_records,
        counts.num_duplicates,
        counts.rejected,
        counts.tags_per_record(),
    )


def counted_directly(path: Path, **options: Any) -> tuple[Any, ...]:
    """Counts that Polars had no part in."""
    core = _core.HashtagCounts(memory_bytes=options.pop("memory_bytes", None))
    assert core.update_parquet([path], hashtags_column="hashtags", **options)
    return facts(wsl.HashtagCounts(core))


def counted_for_an_index(path: Path, **options: Any) -> tuple[Any, ...]:
    """Counts of records that are read once, for an index."""
    read = _core.Spool.read([path], Recipe(), resources=Resources(**options))
    assert read is not None
    return facts(wsl.HashtagCounts(read[0]))


def write(path: Path, lists: list[Any], **options: Any) -> None:
    kind = options.pop("kind", pa.list_(pa.string()))
    table = pa.table({"key": [f"k{n}" for n in range(len(lists))], "hashtags": pa.array(lists, kind)})
    pq.write_table(table, path, **options)


@examples(150)
@given(
    lists=records,
    compression=st.sampled_from(["none", "snappy", "zstd"]),
    version=st.sampled_from(["1.0", "2.0"]),
    dictionary=st.booleans(),
    limit=st.sampled_from([8, 100, 1 << 20]),
    page=st.sampled_from([1, 64, 1 << 20]),
    batch=st.sampled_from([1, 3, 7, 1024]),
    group=st.sampled_from([1, 13, 1000]),
    threads=st.integers(1, 3),
)
def test_any_layout_counts_as_through_polars(
    tmp_path_factory: pytest.TempPathFactory,
    lists: list[Any],
    compression: str,
    version: str,
    dictionary: bool,
    limit: int,
    page: int,
    batch: int,
    group: int,
    threads: int,
) -> None:
    path = tmp_path_factory.mktemp("layout") / "r.parquet"
    write(
        path,
        lists,
        compression=compression,
        data_page_version=version,
        use_dictionary=dictionary,
        dictionary_pagesize_limit=limit,
        data_page_size=page,
        write_batch_size=batch,
        row_group_size=group,
    )
    found = counted_directly(path, num_threads=threads)
    assert found == counted(pl.scan_parquet(path))
    assert found == counted_directly(path, num_threads=1, memory_bytes=1 << 20)
    assert found == counted_for_an_index(path, num_threads=threads)
    assert found == counted_for_an_index(path, num_threads=1, memory_bytes=1 << 20)


def test_files_of_other_writers_count_the_same(tmp_path: Path) -> None:
    chance = random.Random(5)
    lists = [[chance.choice(TEXTS) for _ in range(chance.randrange(6))] for _ in range(5000)]
    frame = pl.DataFrame({"n": range(len(lists)), "hashtags": lists, "z": [{"a": 1, "b": [2]}] * len(lists)})
    frame.write_parquet(tmp_path / "polars.parquet", row_group_size=700)
    frame.write_parquet(tmp_path / "plain.parquet", compression="uncompressed", data_page_size=512)
    options = "format parquet, row_group_size 2048"
    duckdb.sql(f"copy (select n, hashtags from frame) to '{tmp_path}/duckdb.parquet' ({options})")
    duckdb.sql(f"copy (select n, hashtags from frame) to '{tmp_path}/zstd.parquet' ({options}, codec zstd)")
    write(
        tmp_path / "required.parquet", lists, kind=pa.list_(pa.field("element", pa.string(), nullable=False))
    )
    write(tmp_path / "large.parquet", lists, kind=pa.large_list(pa.large_string()))
    expected = counted(frame)
    for path in sorted(tmp_path.iterdir()):
        assert counted_directly(path, num_threads=2) == expected, path
    several = counted(str(tmp_path / "*.parquet"))
    assert several[1] == 6 * expected[1]
    assert several[0] == [(tag, 6 * count) for tag, count in expected[0]]


def test_a_record_may_span_many_pages_and_a_dictionary_that_ends(tmp_path: Path) -> None:
    long = [f"tag-{n % 3000}" for n in range(40_000)]
    lists = [["a"], long, [], None, ["b", "b"], long[:2000]]
    path = tmp_path / "r.parquet"
    write(path, lists, dictionary_pagesize_limit=4096, data_page_size=1024, write_batch_size=64)
    found = counted_directly(path, num_threads=2)
    assert found == counted(pl.scan_parquet(path))
    assert found[4] == {0: 2, 1: 2, 2000: 1, 3000: 1}


def test_bytes_that_are_no_text_are_rejected_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    for dictionary in (True, False):
        lists = [[b"ok", b"\xff\xfe", b"nul\x00inside", b"x" * (1 << 20), None, b"OK", b"\xff\xfe"], None]
        write(path, lists, kind=pa.list_(pa.binary()), use_dictionary=dictionary)
        found = counted_directly(path)
        assert found[:3] == ([("ok", 1)], 2, 1)
        expected = {"not_utf8": 2, "control_character": 1, "empty": 0, "too_long": 1, "null": 1}
        assert found[3] == expected


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pa.list_(pa.string()), {"compression": "gzip"}),
        (
            pa.list_(pa.string()),
            {"use_dictionary": False, "column_encoding": {"hashtags.list.element": "DELTA_BYTE_ARRAY"}},
        ),
        (pa.string(), {}),
    ],
)
def test_what_the_engine_does_not_know_is_left_to_polars(
    tmp_path: Path, kind: pa.DataType, options: dict[str, Any]
) -> None:
    values = ["a b", "a"] if kind == pa.string() else [["a", "b"], ["a"]]
    path = tmp_path / "r.parquet"
    write(path, values, kind=kind, **options)
    core = _core.HashtagCounts()
    assert not core.update_parquet([path], hashtags_column="hashtags")
    assert core.tally()["records"] == 0
    assert wsl.count_hashtags(path).table().rows() == [("a", 2), ("b", 1)]


def test_missing_columns_and_files_are_left_to_polars(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    write(path, [["a"]])
    core = _core.HashtagCounts()
    assert not core.update_parquet([path], hashtags_column="tags")
    assert not core.update_parquet([path, tmp_path / "none.parquet"], hashtags_column="hashtags")
    with pytest.raises(wsl.UsageError, match="no column 'tags'"):
        wsl.count_hashtags(path, hashtags_column="tags")


CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from pathlib import Path
from wsl import _core
good = Path(sys.argv[1]).read_bytes()
told = {"counted": 0, "left": 0, "refused": 0}
path = Path(sys.argv[2])
for place in range(int(sys.argv[4]), len(good), int(sys.argv[3])):
    for flipped in (0x01, 0x80, 0xff):
        bad = bytearray(good)
        bad[place] ^= flipped
        path.write_bytes(bad)
        core = _core.HashtagCounts()
        try:
            read = core.update_parquet([path], hashtags_column="hashtags", num_threads=1)
            tally = core.tally()
            told["counted" if read else "left"] += 1
        except _core.DataError as error:
            assert str(path) in str(error) and "make or copy" in str(error), error
            assert core.tally()["records"] == 0
            told["refused"] += 1
print(told)
"""


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_no_changed_byte_ends_the_process_or_takes_the_memory(
    tmp_path: Path, compression: str, places: Places
) -> None:
    chance = random.Random(1)
    lists = [[chance.choice(TEXTS) for _ in range(chance.randrange(5))] for _ in range(60)]
    good = tmp_path / "good.parquet"
    options: dict[str, Any] = {"write_statistics": False, "store_schema": False, "data_page_version": "2.0"}
    if compression != "none":
        options["data_page_version"] = "1.0"
    write(good, lists, compression=compression, dictionary_pagesize_limit=200, write_batch_size=16, **options)
    command = [sys.executable, "-c", CHILD, str(good), str(tmp_path / "bad.parquet")]
    command += [str(places.every), str(places.first)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = eval(done.stdout)
    assert min(told.values()) > 50 // places.every, told


def test_an_index_of_parquet_is_the_one_through_polars(tmp_path: Path) -> None:
    chance = random.Random(7)
    names = [f"tag{n}" for n in range(300)] + TEXTS
    lists = [
        None if n % 50 == 0 else [names[int(len(names) * chance.random() ** 3)] for _ in range(n % 7)]
        for n in range(6000)
    ]
    keys = [f"k{n % 5 if n > 5990 else n}" for n in range(len(lists))]
    table = pa.table({"key": keys, "hashtags": pa.array(lists, pa.list_(pa.string()))})
    for number, dictionary in enumerate((True, ["hashtags.list.element"], False)):
        pq.write_table(
            table.slice(2000 * number, 2000),
            tmp_path / f"{number}.parquet",
            row_group_size=700,
            dictionary_pagesize_limit=1500,
            write_batch_size=100,
            use_dictionary=dictionary,
            compression="zstd",
        )
    everything = wsl.Vocabulary.build(wsl.count_hashtags(tmp_path / "*.parquet"))
    some = wsl.Vocabulary.build(wsl.count_hashtags(tmp_path / "*.parquet"), min_count=20)
    for number, (vocabulary, exclude) in enumerate([(everything, ()), (some, ()), (some, ["k3", "k77"])]):
        built = []
        min_count = 1 if vocabulary is everything else 20
        for name, source, made in (
            ("direct", str(tmp_path / "*.parquet"), vocabulary),
            ("polars", pl.scan_parquet(tmp_path / "*.parquet"), vocabulary),
            ("once", str(tmp_path / "*.parquet"), None),
            ("little", str(tmp_path / "*.parquet"), None),
        ):
            index = wsl.build_index(
                tmp_path / f"{name}{number}",
                records=source,
                label_kind="hashtag",
                vocabulary=made,
                min_count=min_count,
                exclude=exclude,
                limits={"keys_doubled": 1.0},
                part_rows=1100,
                num_threads=3,
                memory_bytes=1 << 20 if name == "little" else None,
            )
            built.append(
                (index.fingerprint, index.manifest["counts"], (index.path / "keys.idx").read_bytes())
            )
        assert built[1:] == built[:1] * 3
        assert built[0][1].get("hashtags_outside_the_vocabulary", 0) > 0 or vocabulary is everything


def test_records_are_read_twice_where_once_takes_too_much(tmp_path: Path) -> None:
    lists = [[f"tag{n}", f"a-longer-tag-{n}"] for n in range(20_000)]
    write(tmp_path / "r.parquet", lists)
    for resources, is_read in (
        (Resources(memory_bytes=1 << 20), False),
        (Resources(spill_dir=tmp_path / "nowhere"), False),
        (Resources(memory_bytes=1 << 26), True),
    ):
        read = _core.Spool.read([tmp_path / "r.parquet"], Recipe(), resources=resources)
        assert (read is not None) == is_read
    built = [
        wsl.build_index(
            tmp_path / str(limit),
            records=tmp_path / "r.parquet",
            label_kind="hashtag",
            memory_bytes=limit,
        ).fingerprint
        for limit in (1 << 20, 1 << 26)
    ]
    assert built[0] == built[1]


def test_an_index_of_parquet_wants_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    for keys, message in (
        (["a", None], "without a key"),
        ([b"a", b"\xff"], "UTF-8|cannot be read|must be text"),
    ):
        table = pa.table({"key": pa.array(keys), "hashtags": [["x"], ["y"]]})
        pq.write_table(table, path)
        with pytest.raises(wsl.WslError, match=message):
            wsl.build_index(tmp_path / "out", records=path, label_kind="hashtag")
