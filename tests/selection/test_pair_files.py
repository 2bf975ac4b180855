"""Scored pairs of Parquet files read by the engine itself: the selection through Polars, or not at all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import wsl
from tests.help.thoroughness import Places, examples
from wsl import _core
from wsl.selection.topk import TopK

NUM_CLASSES = 7
INTEGERS = [pa.int32(), pa.uint32(), pa.int64(), pa.uint64(), pa.uint16()]


def scored(num_samples: int, seed: int, num_values: int, order: str) -> pl.DataFrame:
    """Pairs of every sample with some classes, whose scores come in some order."""
    rng = np.random.default_rng(seed)
    num = rng.integers(0, NUM_CLASSES + 1, num_samples)
    samples = np.repeat(np.arange(num_samples, dtype=np.uint64), num)
    classes = np.concatenate([rng.permutation(NUM_CLASSES)[:n] for n in num] or [[]]).astype(np.uint32)
    scores = (rng.integers(0, num_values, len(samples)) / num_values - 0.5).astype(np.float32)
    pairs = pl.DataFrame({"sample": samples, "class": classes, "score": scores})
    if order == "shuffled":
        return pairs.sample(fraction=1, shuffle=True, seed=seed)
    return pairs.sort("score", descending=order == "falling") if order != "by sample" else pairs


def write(path: Path, pairs: pl.DataFrame, **options: Any) -> None:
    kinds, nullable = options.pop("kinds", (pa.uint64(), pa.uint32())), options.pop("nullable", True)
    fields = zip(("sample", "class", "score"), (*kinds, pa.float32()), strict=True)
    schema = pa.schema([pa.field(name, kind, nullable=nullable) for name, kind in fields])
    pq.write_table(pairs.to_arrow().cast(schema), path, **options)


def selected_directly(files: list[Path], k: int, p: int, **options: Any) -> pl.DataFrame:
    """A selection that Polars had no part in."""
    top = TopK(NUM_CLASSES, k=k, p=p, **options)
    assert top._engine.update_parquet(files)
    return top.finish().table


def selected(pairs: pl.DataFrame, k: int, p: int) -> pl.DataFrame:
    top = TopK(NUM_CLASSES, k=k, p=p)
    top.update_pairs(pairs)
    return top.finish().table


@examples(150)
@given(
    num_samples=st.integers(12, 400),
    seed=st.integers(0, 1 << 30),
    num_values=st.sampled_from([2, 30, 100_000]),
    order=st.sampled_from(["shuffled", "falling", "rising", "by sample"]),
    kinds=st.tuples(st.sampled_from(INTEGERS), st.sampled_from(INTEGERS)),
    nullable=st.booleans(),
    compression=st.sampled_from(["none", "snappy", "zstd"]),
    version=st.sampled_from(["1.0", "2.0"]),
    dictionary=st.sampled_from([True, False, ["class"]]),
    limit=st.sampled_from([8, 100, 1 << 20]),
    page=st.sampled_from([1, 64, 1 << 20]),
    batch=st.sampled_from([1, 7, 1024]),
    group=st.sampled_from([5, 40, 100_000]),
    k=st.sampled_from([1, 10, 100]),
    p=st.integers(1, 3),
    threads=st.integers(1, 3),
)
def test_any_layout_is_selected_as_through_polars(
    tmp_path_factory: pytest.TempPathFactory,
    num_samples: int,
    seed: int,
    num_values: int,
    order: str,
    kinds: tuple[pa.DataType, pa.DataType],
    nullable: bool,
    compression: str,
    version: str,
    dictionary: Any,
    limit: int,
    page: int,
    batch: int,
    group: int,
    k: int,
    p: int,
    threads: int,
) -> None:
    folder = tmp_path_factory.mktemp("layout")
    pairs = scored(num_samples, seed, num_values, order)
    files = [folder / "a.parquet", folder / "b.parquet"]
    for file, some in zip(files, (pairs[: len(pairs) // 3], pairs[len(pairs) // 3 :]), strict=True):
        write(
            file,
            some,
            kinds=kinds,
            nullable=nullable,
            compression=compression,
            data_page_version=version,
            use_dictionary=dictionary,
            dictionary_pagesize_limit=limit,
            data_page_size=page,
            write_batch_size=batch,
            row_group_size=group,
        )
    expected = selected(pairs, k, p)
    assert_frame_equal(selected_directly(files, k, p, num_threads=threads), expected)
    assert_frame_equal(selected_directly(files, k, p, num_threads=2, memory_bytes=1 << 20), expected)


@pytest.mark.parametrize("order", ["falling", "rising", "shuffled"])
def test_files_in_any_order_give_the_same_selection(tmp_path: Path, order: str) -> None:
    pairs = scored(40_000, 3, 1 << 20, order)
    write(tmp_path / "p.parquet", pairs, row_group_size=2000)
    for k, p in ((50, 2), (2000, 7)):
        assert_frame_equal(selected_directly([tmp_path / "p.parquet"], k, p), selected(pairs, k, p))
    told: list[int] = []
    TopK(NUM_CLASSES, k=50, p=2).update_pairs(tmp_path / "p.parquet", progress=told.append)
    assert told[-1] == len(pairs)


def test_files_of_other_writers_and_several_calls_select_the_same(tmp_path: Path) -> None:
    pairs = scored(5000, 4, 1000, "shuffled")
    pairs[:9000].write_parquet(tmp_path / "polars.parquet", row_group_size=700)
    rest = pairs[9000:]
    duckdb.sql(f"copy rest to '{tmp_path}/duckdb.parquet' (format parquet, row_group_size 2048)")
    expected = selected(pairs, 300, 2)
    assert len(rest) > 5000
    for source in (str(tmp_path / "*.parquet"), [tmp_path / "polars.parquet", tmp_path / "duckdb.parquet"]):
        top = TopK(NUM_CLASSES, k=300, p=2)
        seen: list[int] = []
        top.update_pairs(source, progress=seen.append)
        assert top.num_pairs == len(pairs) == seen[-1]
        assert_frame_equal(top.finish().table, expected)
    top = TopK(NUM_CLASSES, k=300, p=2)
    for name in ("duckdb", "polars"):
        assert top._engine.update_parquet([tmp_path / f"{name}.parquet"])
    assert_frame_equal(top.finish().table, expected)


def test_what_the_engine_does_not_know_is_left_to_polars(tmp_path: Path) -> None:
    pairs = scored(300, 5, 50, "by sample")
    file = tmp_path / "p.parquet"
    others = {
        "delta": {"use_dictionary": False, "column_encoding": {"sample": "DELTA_BINARY_PACKED"}},
        "split": {"use_dictionary": False, "column_encoding": {"score": "BYTE_STREAM_SPLIT"}},
        "gzip": {"compression": "gzip"},
    }
    for options in others.values():
        write(file, pairs, **options)
        assert not TopK(NUM_CLASSES, k=10, p=2)._engine.update_parquet([file])
        top = TopK(NUM_CLASSES, k=10, p=2)
        top.update_pairs(file)
        assert_frame_equal(top.finish().table, selected(pairs, 10, 2))
    pairs.write_parquet(file)
    top = TopK(NUM_CLASSES, k=10, p=2, order="image-first")
    assert not top._engine.update_parquet([file])
    top.update_pairs(file)
    assert top.num_pairs == len(pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, r"sample 77, class 3.*NaN"),
        ({"score": float("inf")}, r"sample 77, class 3.*inf"),
        ({"class": 7}, r"sample 77: the class is 7"),
        ({"class": 4_000_000_000}, r"sample 77: the class is 4000000000"),
        ({"class": -1}, r"-1"),
        ({"sample": -5}, r"-5"),
        ({"score": None}, r"null"),
        ({"sample": None}, r"null"),
    ],
)
@pytest.mark.parametrize("dictionary", [True, False])
def test_wrong_pairs_are_refused_as_through_polars(
    tmp_path: Path, change: dict[str, Any], message: str, dictionary: bool
) -> None:
    rows: list[dict[str, Any]] = [{"sample": n, "class": n % 7, "score": -1.0} for n in range(3000)]
    rows[2000] = {"sample": 77, "class": 3, "score": -2.0} | change
    rows[77] = {"sample": 2000, "class": 5, "score": -2.0}
    schema = {"sample": pl.Int64, "class": pl.Int64, "score": pl.Float32}
    pairs = pl.DataFrame(rows, schema=schema)
    write(
        tmp_path / "p.parquet",
        pairs,
        kinds=(pa.int64(), pa.int64()),
        use_dictionary=dictionary,
        row_group_size=200,
    )
    for source in (tmp_path / "p.parquet", pairs):
        top = TopK(NUM_CLASSES, k=5, p=2, num_threads=2)
        with pytest.raises(wsl.DataError, match=message):
            top.update_pairs(source)
        with pytest.raises(wsl.WslError, match=r"failed|half|begin anew|again"):
            top.update_pairs(pairs[:10])


def test_a_pair_that_stands_twice_is_told(tmp_path: Path) -> None:
    pairs = pl.DataFrame({"sample": [1, 2, 2], "class": [0, 1, 1], "score": [0.5, 0.25, 0.25]})
    write(tmp_path / "p.parquet", pairs)
    top = TopK(NUM_CLASSES, k=5, p=2)
    top.update_pairs(tmp_path / "p.parquet")
    with pytest.raises(wsl.DataError, match=r"twice|doubled"):
        top.finish()


def test_the_first_wrong_pair_is_told_whichever_thread_is_first(tmp_path: Path) -> None:
    pairs = scored(20_000, 6, 1000, "by sample")
    bad = pl.lit(float("nan"), pl.Float32)
    index = pl.int_range(pl.len())
    pairs = pairs.with_columns(pl.when(index % 9000 == 8999).then(bad).otherwise("score").alias("score"))
    write(tmp_path / "p.parquet", pairs, row_group_size=500)
    told = set()
    for threads in (1, 2, 3):
        with pytest.raises(wsl.DataError) as found:
            TopK(NUM_CLASSES, k=5, p=2, num_threads=threads).update_pairs(tmp_path / "p.parquet")
        told.add(str(found.value))
    assert len(told) == 1
    assert f"sample {pairs['sample'][8999]}" in told.pop()


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_changed_byte_ends_in_a_selection_or_an_error(
    tmp_path: Path, compression: str, places: Places
) -> None:
    chance = random.Random(8)
    good = tmp_path / "good.parquet"
    options: dict[str, Any] = {"write_statistics": False, "store_schema": False}
    write(
        good,
        scored(60, 7, 20, "shuffled"),
        compression=compression,
        dictionary_pagesize_limit=60,
        row_group_size=90,
        write_batch_size=16,
        **options,
    )
    content = bytearray(good.read_bytes())
    told = {"selected": 0, "refused": 0, "left": 0}
    for place in places.of(len(content)):
        for value in (0xFF, chance.randrange(256), content[place] ^ 1 << chance.randrange(8)):
            if value == content[place]:
                continue
            changed = content.copy()
            changed[place] = value
            (tmp_path / "bad.parquet").write_bytes(changed)
            engine = _core.TopK(NUM_CLASSES, 5, 2, order="class-first")
            try:
                told["selected" if engine.update_parquet([tmp_path / "bad.parquet"]) else "left"] += 1
            except wsl.DataError:
                told["refused"] += 1
    assert min(told.values()) > 50 // places.every, told
