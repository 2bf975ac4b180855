"""Counting, statistics and vocabularies, held against Polars, DuckDB, plain Python and powerlaw."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

import wsl
from tests.help.thoroughness import Places, examples
from wsl import _core

TAGS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["#Dog", "dog", " DOG ", "##cat", "Stra\u00dfe", "strasse", "", "\ufb01sh", "\u2764\ufe0f"]
    ),
)
RECORDS = st.lists(st.lists(TAGS, max_size=5), max_size=30)


SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def slow_normalize(tag: str) -> str | None:
    """The plain twin: NFKC, case folding, NFKC; joiners dropped; trimmed of spaces and #."""
    text = tag
    for _ in range(8):
        before = text
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        text = "".join(c for c in text if c not in "\ufe0f\u200b\u200c\u200d\u2060\ufeff")
        text = text.strip(SPACES).lstrip("#" + SPACES).strip(SPACES)
        if text == before:
            break
    if not text or any(unicodedata.category(c) == "Cc" for c in text) or len(text.encode()) > 128:
        return None
    return text


def frame(records: list[list[str]]) -> pl.DataFrame:
    return pl.DataFrame({"hashtags": records}, schema={"hashtags": pl.List(pl.String)})


@given(RECORDS)
@examples(150)
def test_counts_agree_with_a_plain_count(records: list[list[str]]) -> None:
    ascii_only = [[tag for tag in tags if tag.isascii()] for tags in records]
    expected: Counter[str] = Counter()
    for tags in ascii_only:
        expected.update({n for tag in tags if (n := slow_normalize(tag)) is not None})
    counts = wsl.count_hashtags(frame(ascii_only))
    assert dict(counts.table().iter_rows()) == expected
    total = counts.num_hashtags + counts.num_duplicates + sum(counts.rejected.values())
    assert total == sum(map(len, ascii_only))
    assert counts.num_records == len(records)


@given(st.text(max_size=20))
def test_normalization_is_idempotent(tag: str) -> None:
    once = _core.normalize_hashtag(tag)
    assert once is None or _core.normalize_hashtag(once) == once


@given(RECORDS, st.integers(1, 40), st.integers(1, 3))
@examples(60)
def test_parts_and_threads_never_change_the_counts(records: list[list[str]], size: int, threads: int) -> None:
    whole = wsl.count_hashtags(frame(records))
    merged = wsl.HashtagCounts()
    for start in range(0, len(records), size):
        merged.merge(wsl.count_hashtags(frame(records[start : start + size]), num_threads=threads))
    assert merged.table().equals(whole.table())
    assert (merged.num_hashtags, merged.rejected) == (whole.num_hashtags, whole.rejected)


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([1 << 20, 3 << 20, None]), st.integers(1, 3), st.integers(1, 9)
)
@examples(8)
def test_a_limit_of_memory_never_changes_the_table(
    seed: int, memory_bytes: int | None, threads: int, parts: int
) -> None:
    # Some 60,000 distinct tags, which need more than two MiB; one in eight is long.
    rng = np.random.default_rng(seed)
    ids = rng.zipf(1.15, 200_000) % 2**40
    texts = [f"tag-{n:x}" if n % 8 else f"a-longer-hashtag-{n:x}" for n in ids.tolist()]
    records = pl.DataFrame({"hashtags": texts}).select(pl.col("hashtags").reshape((-1, 4)).arr.to_list())
    expected = (
        records.with_row_index()
        .select("index", pl.col("hashtags").list.unique())
        .explode("hashtags")
        .group_by(pl.col("hashtags").alias("hashtag"))
        .len("count")
        .sort(["count", "hashtag"], descending=[True, False])
        .with_columns(pl.col("count").cast(pl.UInt64))
    )
    whole = wsl.HashtagCounts(_core.HashtagCounts(memory_bytes=memory_bytes))
    for number in range(parts):
        part = wsl.count_hashtags(
            records[number::parts], memory_bytes=memory_bytes, num_threads=threads, hashtags_column="hashtags"
        )
        whole.merge(part)
    assert whole.table().equals(expected)
    assert pl.DataFrame(whole.stream()).equals(expected)
    assert whole.num_distinct == len(expected)
    assert whole.num_hashtags == expected["count"].sum()
    assert whole.top(3) == list(expected.head(3).iter_rows())
    tag, count = expected.row(len(expected) // 2)
    assert whole.count_of(tag) == count
    plain = wsl.count_hashtags(records)
    assert whole.multiplicities() == plain.multiplicities()
    assert wsl.fit_zipf(whole, x_min=2) == wsl.fit_zipf(plain, x_min=2)


def test_the_least_memory_is_told() -> None:
    with pytest.raises(wsl.UsageError, match="1 MiB"):
        wsl.count_hashtags(frame([["a"]]), memory_bytes=1000)


def test_a_thousand_random_sets_agree_with_duckdb(places: Places) -> None:
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect(config={"threads": 1})
    rng = np.random.default_rng(5)
    for case in range(1000):
        names = [f"{'long-' * int(n % 5)}{n}" for n in rng.integers(0, 40, 30).tolist()]
        sizes = rng.integers(0, 7, int(rng.integers(0, 20))).tolist()
        records = frame([list(rng.choice(names, size)) for size in sizes])
        if case not in places.of(1000):
            continue
        query = """select tag as hashtag, count(*)::UBIGINT as count from (
            select unnest(list_distinct(hashtags)) tag from records) group by tag order by count desc, tag"""
        expected = connection.sql(query).pl() if len(records) else None
        found = wsl.count_hashtags(records, num_threads=1 + case % 3).table()
        assert expected is None or found.equals(expected), case


def test_every_reader_gives_the_counts_of_polars_and_duckdb(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [[f"t{n}" for n in rng.zipf(1.6, rng.integers(0, 6)) % 5000] for _ in range(3000)]
    table = frame(records).with_row_index("key")
    joined = table.with_columns(pl.col("hashtags").list.join(" "))
    table.write_parquet(tmp_path / "a.parquet")
    table.write_ndjson(tmp_path / "a.ndjson")
    table.write_ipc(tmp_path / "a.arrow")
    joined.write_csv(tmp_path / "a.csv")
    oracle = (
        table.select(pl.col("hashtags").list.unique()).explode("hashtags").drop_nulls()
        .group_by("hashtags").len().sort(["len", "hashtags"], descending=[True, False])
    )  # fmt: skip
    known = table
    query = "select tag, count(distinct key) from (select key, unnest(hashtags) tag from known) group by tag"
    same = dict(duckdb.sql(query).fetchall())
    del known
    expected = list(zip(oracle["hashtags"], oracle["len"], strict=True))
    assert dict(expected) == same
    sources: list[object] = [tmp_path / f"a.{kind}" for kind in ("parquet", "ndjson", "arrow", "csv")]
    sources += [str(tmp_path / "*.parquet"), table, table.lazy(), table.to_arrow()]
    sources += [pa.RecordBatchReader.from_batches(table.to_arrow().schema, table.to_arrow().to_batches())]
    for source in sources:
        assert list(wsl.count_hashtags(source).table().iter_rows()) == expected


def test_a_separator_splits_one_text_column() -> None:
    table = pl.DataFrame({"hashtags": ["a|b|a", "b c|", ""]})
    counts = wsl.count_hashtags(table, separator="|")
    assert dict(counts.table().iter_rows()) == {"b": 1, "a": 1, "b c": 1}
    assert counts.rejected["empty"] == 1


def test_counts_survive_a_file_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    counts = wsl.count_hashtags(frame([["a", "b"], ["a"]]))
    file = tmp_path / "counts.bin"
    counts.save(file)
    assert wsl.HashtagCounts.load(file).table().equals(counts.table())
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(wsl.DataError, match=r"counts\.bin"):
        wsl.HashtagCounts.load(file)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda folder: folder / "none.parquet", wsl.UsageError, "no file matches"),
        (lambda folder: folder / "empty.parquet", wsl.DataError, "the file is empty"),
        (lambda folder: folder / "bad.parquet", wsl.DataError, "cannot be read"),
        (lambda folder: folder / "x.docx", wsl.UsageError, "unknown kind"),
        (lambda folder: pl.DataFrame({"tags": ["a"]}), wsl.UsageError, "columns are: tags"),
        (lambda folder: 3, wsl.UsageError, "__arrow_c_stream__"),
    ],
)
def test_bad_sources_are_named(tmp_path: Path, make: object, kind: type[Exception], message: str) -> None:
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(kind, match=message):
        wsl.count_hashtags(make(tmp_path))  # type: ignore[operator]


def powerlaw_fit(data: list[int], x_min: int) -> tuple[float, float]:
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import powerlaw

        fit = powerlaw.Fit(
            data,
            discrete=True,
            xmin=x_min,
            estimate_discrete=False,
            verbose=False,
            parameter_ranges={"alpha": [1.01, 6.0]},
        )
        return float(fit.power_law.alpha), float(fit.power_law.D)


def plain_distance(data: list[int], x_min: int, alpha: float) -> float:
    """The largest distance of the two distribution functions over all integers up to the largest count."""
    tail = np.sort(np.array([n for n in data if n >= x_min]))
    places = np.arange(x_min, tail[-1] + 1)
    empirical = np.searchsorted(tail, places, side="right") / len(tail)
    model = 1 - special.zeta(alpha, places + 1.0) / special.zeta(alpha, x_min)
    return float(np.abs(empirical - model).max())


@pytest.mark.parametrize("x_min", [1, 2, 7, 40])
def test_alpha_and_distance_agree_with_powerlaw(x_min: int) -> None:
    data = [int(n) for n in np.random.default_rng(x_min).zipf(2.1, 4000) if n < 10**6]
    counts = counts_of(data)
    fit = wsl.fit_zipf(counts, x_min=x_min)
    alpha, distance = powerlaw_fit(data, x_min)
    assert fit.alpha == pytest.approx(alpha, abs=2e-4)
    assert fit.ks_distance == pytest.approx(plain_distance(data, x_min, fit.alpha), abs=1e-9)
    # powerlaw looks at the counts that occur only, on one side of each step.
    assert fit.ks_distance == pytest.approx(distance, abs=1.5 / fit.num_tail)
    assert fit.rank_exponent == pytest.approx(1 / (fit.alpha - 1))


def counts_of(data: list[int]) -> wsl.HashtagCounts:
    """Counts in which tag i has data[i]: each row of a frame repeats its tags that many times."""
    capped = [min(n, 20_000) for n in data]
    rows = np.repeat(np.arange(len(capped)), capped)
    tags = pl.Series([f"t{number}" for number in range(len(capped))])
    data[:] = capped
    return wsl.count_hashtags(pl.DataFrame({"hashtags": tags.gather(rows)}))


def test_x_min_minimizes_the_distance_and_slope_is_least_squares() -> None:
    data = [int(n) for n in np.random.default_rng(5).zipf(1.9, 500)]
    counts = counts_of(data)
    fit = wsl.fit_zipf(counts)
    values = sorted(set(data))[:-1]
    distances = {x: wsl.fit_zipf(counts, x_min=x).ks_distance for x in values}
    assert fit.ks_distance == min(distances.values())
    frequencies = np.log(np.array(sorted(data, reverse=True)))
    slope = np.polyfit(np.log(np.arange(1, len(data) + 1)), frequencies, 1)[0]
    assert fit.loglog_slope == pytest.approx(slope)
    ranked = np.sort(np.array(data))[::-1]
    assert fit.head_shares[10] == pytest.approx(ranked[:10].sum() / ranked.sum())
    size = int(np.searchsorted(np.cumsum(ranked), 0.8 * ranked.sum())) + 1
    assert fit.head_sizes[0.8] == size


def test_a_fit_of_too_little_is_refused() -> None:
    with pytest.raises(wsl.UsageError, match="two different counts"):
        wsl.fit_zipf(wsl.count_hashtags(frame([["a"], ["b"]])))


def test_a_vocabulary_ranks_by_count_and_survives_a_file(tmp_path: Path) -> None:
    counts = wsl.count_hashtags(frame([["b", "a"], ["b", "c"], ["a", "d"]]))
    vocabulary = wsl.Vocabulary.build(counts, min_count=1, max_labels=3)
    assert vocabulary.names == ["a", "b", "c"]
    assert vocabulary.encode("#B") == 1
    vocabulary.write(tmp_path / "vocabulary.parquet")
    again = wsl.Vocabulary.read(tmp_path / "vocabulary.parquet")
    assert again.fingerprint == vocabulary.fingerprint
    (tmp_path / "vocabulary.parquet").write_bytes(b"no")
    with pytest.raises(wsl.DataError, match="expected a vocabulary"):
        wsl.Vocabulary.read(tmp_path / "vocabulary.parquet")
