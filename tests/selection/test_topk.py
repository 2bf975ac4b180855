"""Top-K/top-P selection, against Polars, DuckDB and torch."""

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import wsl
import wsl.selection.topk
from tests.help.thoroughness import examples
from wsl import _core
from wsl.selection.topk import Order, TopK

ORDERS: tuple[Order, Order] = ("class-first", "image-first")
SCHEMA = {"sample": pl.UInt64, "class": pl.UInt32, "score": pl.Float32}


def by_polars(pairs: pl.DataFrame, k: int, p: int, order: Order) -> pl.DataFrame:
    """The selection by window functions: sample, class, score, rank."""
    best = ["score", "sample", "class"]

    def cut(frame: pl.DataFrame, over: str, most: int) -> pl.DataFrame:
        ranked = frame.sort(best, descending=[True, False, False]).with_columns(
            pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).over(over).alias(f"rank_in_{over}")
        )
        return ranked.filter(pl.col(f"rank_in_{over}") <= most)

    if order == "class-first":
        chosen = cut(cut(pairs, "class", k), "sample", p)
    else:
        chosen = cut(cut(pairs, "sample", p), "class", k)
    chosen = chosen.select("sample", "class", "score", pl.col("rank_in_class").alias("rank"))
    return chosen.sort("sample", "score", "class", descending=[False, True, False])


def by_duckdb(pairs: pl.DataFrame, k: int, p: int, order: Order) -> pl.DataFrame:
    """The same in SQL."""
    of_class = "row_number() over (partition by class order by score desc, sample)"
    of_sample = "row_number() over (partition by sample order by score desc, class)"
    first, second = (
        (f"{of_class} as rank from pairs qualify rank <= {k}", f"* from a qualify {of_sample} <= {p}")
        if order == "class-first"
        else (
            f"{of_sample} as n from pairs qualify n <= {p}",
            f"*, {of_class} as rank from a qualify rank <= {k}",
        )
    )
    connection = duckdb.connect()
    connection.register("pairs", pairs.to_arrow())
    query = (
        f"with a as (select *, {first}), b as (select {second}) "
        "select sample, class, score, rank::uinteger as rank from b order by sample, score desc, class"
    )
    return pl.DataFrame(connection.sql(query).to_arrow_table())


def table_of(selection: wsl.selection.topk.Selection) -> pl.DataFrame:
    return selection.table.drop("probability")


def random_scores(num_rows: int, num_classes: int, num_values: int = 50) -> np.ndarray:
    generator = np.random.default_rng(num_rows)
    return (generator.integers(0, num_values, (num_rows, num_classes)) / 8 - 2).astype(np.float32)


def pairs_of(scores: np.ndarray, first_sample: int = 0) -> pl.DataFrame:
    num_rows, num_classes = scores.shape
    samples = np.repeat(np.arange(num_rows) + first_sample, num_classes)
    classes = np.tile(np.arange(num_classes), num_rows)
    return pl.DataFrame({"sample": samples, "class": classes, "score": scores.ravel()}, schema=SCHEMA)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("k", "p"), [(1, 1), (100, 3), (700, 2), (5000, 40)])
def test_selects_what_polars_and_duckdb_select(order: Order, k: int, p: int) -> None:
    scores = random_scores(3000, 23)
    top = TopK(23, k=k, p=p, order=order)
    top.update(range(10, 3010), scores)
    found = top.finish()
    pairs = pairs_of(scores, 10)
    assert_frame_equal(table_of(found), by_polars(pairs, k, p, order))
    assert_frame_equal(table_of(found), by_duckdb(pairs, k, p, order))
    assert found.table.schema == SCHEMA | {"probability": pl.Float32, "rank": pl.UInt32}
    counted = found.table.group_by("class").len().sort("class")
    assert found.after[counted["class"].to_numpy()].tolist() == counted["len"].to_list()
    assert found.after.sum() == len(found.table)
    assert found.before.shape == (23,)
    assert top.num_pairs == 3000 * 23


def test_matrices_of_scores_in_any_pieces_are_the_pairs_that_they_hold() -> None:
    """`update` ranks scores as they are, probabilities too, for samples in any order and type."""
    generator = np.random.default_rng(5)
    probabilities = generator.dirichlet(np.ones(9), 4000).astype(np.float32)
    samples = generator.permutation(4000) * 3 + 1
    pairs = pl.DataFrame(
        {
            "sample": np.repeat(samples, 9),
            "class": np.tile(np.arange(9), 4000),
            "score": probabilities.ravel(),
        },
        schema=SCHEMA,
    )
    for order in ORDERS:
        top = TopK(num_classes=9, k=150, p=2, order=order)
        for begin, kind in zip(range(0, 4000, 1000), (np.int64, np.uint64, np.int32, np.uint16), strict=True):
            piece = slice(begin, begin + 1000)
            top.update(samples[piece].astype(kind), probabilities[piece])
        found = table_of(top.finish())
        assert_frame_equal(found, by_polars(pairs, 150, 2, order))
        assert_frame_equal(found, by_duckdb(pairs, 150, 2, order))


names = st.tuples(st.integers(0, 15), st.integers(0, 4))
scored = st.dictionaries(names, st.sampled_from([-1.5, -0.0, 0.0, 0.5, 2.0]), max_size=60)


@examples(60)
@given(scored, st.integers(1, 5), st.integers(1, 6), st.sampled_from(ORDERS), st.data())
def test_the_result_depends_on_the_set_of_pairs_alone(
    scored: dict[tuple[int, int], float], k: int, p: int, order: Order, data: st.DataObject
) -> None:
    rows = [(sample, kind, score) for (sample, kind), score in scored.items()]
    expected = by_polars(
        pl.DataFrame(rows, schema=SCHEMA, orient="row").with_columns(pl.col("score") + 0.0), k, p, order
    )
    rows = data.draw(st.permutations(rows))
    if order == "image-first":
        samples = [row[0] for row in rows]
        rows = sorted(rows, key=lambda row: samples.index(row[0]))
    size = data.draw(st.integers(1, 70))
    num_parts = data.draw(st.integers(1, 3))
    parts = [TopK(5, k=k, p=p, order=order) for _ in range(num_parts)]
    for number, part in enumerate(parts):
        own = [row for row in rows if row[0] % num_parts == number]
        for first in range(0, len(own), size):
            part.update_pairs(pl.DataFrame(own[first : first + size], schema=SCHEMA, orient="row"))
    for part in parts[1:]:
        parts[0].merge(part)
    assert_frame_equal(table_of(parts[0].finish()), expected)


@pytest.mark.parametrize("order", ORDERS)
def test_a_state_goes_on_from_its_file_and_equal_states_make_equal_files(
    tmp_path: Path, order: Order
) -> None:
    scores = random_scores(5000, 11)
    whole, first, second = (TopK(11, k=60, p=2, order=order) for _ in range(3))
    whole.update(range(5000), scores)
    second.update(range(2000, 5000), scores[2000:])
    second.save(tmp_path / "second.bin")
    first.update(list(range(2000)), scores[:2000])
    first.save(tmp_path / "first.bin")
    joined = TopK.load(tmp_path / "second.bin")
    joined.merge(TopK.load(str(tmp_path / "first.bin")))
    assert_frame_equal(joined.finish().table, whole.finish().table)
    joined.save(tmp_path / "joined.bin")
    whole.save(tmp_path / "whole.bin")
    assert (tmp_path / "joined.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert (joined.num_classes, joined.k, joined.p, joined.order) == (11, 60, 2, order)
    assert repr(joined) == f"TopK(num_classes=11, k=60, p=2, order='{order}', num_pairs=55000)"


def test_one_state_serves_a_sweep_of_smaller_k_and_any_p() -> None:
    scores = random_scores(2000, 7)
    top = TopK(7, k=300, p=2)
    top.update(range(2000), scores)
    for k, p in [(300, 7), (200, 1), (1, 2), (17, 3)]:
        found = top.finish(k, p)
        assert_frame_equal(table_of(found), by_polars(pairs_of(scores), k, p, "class-first"))
        assert (found.k, found.p) == (k, p)


def test_logits_become_log_odds_as_torch_computes_them() -> None:
    torch.manual_seed(0)
    logits = torch.randn(400, 9) * 8
    logits[3] = 0.0
    logits[4, 2] = 300.0
    top = TopK(9, k=400, p=9)
    top.update_logits(range(400), logits)
    table = top.finish().table.sort("sample", "class")
    wide = logits.double()
    others = torch.stack([torch.logsumexp(wide[:, [j for j in range(9) if j != c]], 1) for c in range(9)], 1)
    expected = (wide - others).numpy()
    found = table["score"].to_numpy().reshape(400, 9)
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-12)
    probability = table["probability"].to_numpy().reshape(400, 9)
    np.testing.assert_allclose(probability, torch.softmax(wide, 1).numpy(), rtol=1e-5, atol=1e-30)
    assert found[4, 2] > 250


def test_a_matrix_of_several_blocks_may_be_a_tensor_or_any_strided_array() -> None:
    scores = random_scores(90_000, 30, 4000)
    whole = TopK(30, k=50, p=2)
    whole.update(range(90_000), scores)
    assert_frame_equal(table_of(whole.finish()), by_polars(pairs_of(scores), 50, 2, "class-first"))
    tensor = TopK(30, k=50, p=2)
    tensor.update(torch.arange(90_000, dtype=torch.int32), torch.from_numpy(scores).requires_grad_())
    assert_frame_equal(tensor.finish().table, whole.finish().table)
    strided = TopK(30, k=50, p=2)
    strided.update(np.arange(90_000, dtype=np.int64), np.asfortranarray(scores))
    assert_frame_equal(strided.finish().table, whole.finish().table)


def test_pairs_come_from_any_arrow_source_and_progress_counts_them() -> None:
    pairs = pairs_of(random_scores(500, 4))
    reports: list[int] = []
    frame, reader, narrow = (TopK(4, k=9, p=2) for _ in range(3))
    frame.update_pairs(pairs, progress=reports.append)
    assert reports[-1] == 2000
    batches = pairs.to_arrow().to_batches(max_chunksize=7)
    reader.update_pairs(pa.RecordBatchReader.from_batches(batches[0].schema, batches))
    narrow.update_pairs(
        pairs.select("score", pl.col("class").cast(pl.Int8), pl.col("sample").cast(pl.Int16), extra=1)
    )
    assert_frame_equal(frame.finish().table, reader.finish().table)
    assert_frame_equal(frame.finish().table, narrow.finish().table)


def test_classes_with_too_few_images_are_told() -> None:
    top = TopK(3, k=2, p=1)
    top.update_pairs(pl.DataFrame([(5, 0, 0.5), (6, 0, 0.25), (5, 2, 0.75)], schema=SCHEMA, orient="row"))
    found = top.finish()
    assert found.before.tolist() == [2, 0, 1]
    assert found.after.tolist() == [1, 0, 1]
    assert found.short_classes.tolist() == [1, 2]
    assert found.table.rows() == [
        (5, 2, 0.75, pytest.approx(0.6791787), 1),
        (6, 0, 0.25, pytest.approx(0.5621765), 2),
    ]


def test_nothing_makes_an_empty_table() -> None:
    for order in ORDERS:
        top = TopK(3, k=2, p=1, order=order)
        top.update([], np.empty((0, 3), np.float32))
        top.update_pairs(pl.DataFrame(schema=SCHEMA))
        found = top.finish()
        assert found.table.schema == SCHEMA | {"probability": pl.Float32, "rank": pl.UInt32}
        assert len(found.table) == 0
        assert found.before.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("scores", "samples", "message"),
    [
        (torch.zeros(1, 3, dtype=torch.bfloat16), range(1), "got bfloat16; in a lower precision"),
        (torch.zeros(1, 3, dtype=torch.float16), range(1), "got float16; in a lower precision"),
        (np.zeros((1, 3), np.float16), range(1), "got float16; in a lower precision"),
        (np.zeros((1, 3)), range(1), "got float64; cast it"),
        ([[0.0, 0.0, 0.0]], range(1), "got list; cast it"),
        (np.zeros(3, np.float32), range(1), "expected 2 dimensions"),
        (
            np.zeros((1, 4), np.float32),
            range(1),
            r"a column for each of the 3 classes, got the shape \(1, 4\)",
        ),
        (np.zeros((2, 3), np.float32), range(2**64 - 1, 2**64 + 1), "exceed 64 bits"),
        (np.zeros((1, 3), np.float32), range(2**64, 2**64 + 1), "expected integers"),
        (np.zeros((1, 3), np.float32), [1, 2], "each of the 1 rows"),
        (np.zeros((1, 3), np.float32), range(2), "each of the 1 rows"),
        (np.zeros((1, 3), np.float32), range(-1, 0), "no negative number, got -1"),
        (np.zeros((1, 3), np.float32), [-1], "no negative number, got -1"),
        (np.zeros((1, 3), np.float32), [0.5], "expected integers"),
        (np.zeros((1, 3), np.float32), 7, "expected integers"),
        (np.zeros((1, 3), np.float32), None, "expected integers"),
    ],
)
def test_wrong_matrices_are_refused_and_change_nothing(scores: object, samples: object, message: str) -> None:
    top = TopK(3, k=2, p=1)
    for update in (top.update, top.update_logits):
        with pytest.raises(wsl.UsageError, match=message):
            update(samples, scores)
    assert top.num_pairs == 0
    assert len(top.finish().table) == 0


def test_the_engine_itself_takes_only_float32_matrices() -> None:
    engine = _core.TopK(3, 2, 1)
    for wrong in (np.zeros((1, 3)), np.zeros((3, 2), np.float32).T, np.zeros((1, 3), np.float16), b"no"):
        with pytest.raises(wsl.UsageError, match="expected a C-contiguous float32 buffer of 2 dimensions"):
            engine.update(wrong, first_sample=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"score": pl.col("score").cast(pl.Float64)}, wsl.UsageError, "got Float64; cast it"),
        ({"score": pl.col("score").cast(pl.Float16)}, wsl.UsageError, "got Float16; in a lower precision"),
        ({"class": pl.col("class").cast(pl.String)}, wsl.UsageError, "to hold integers"),
        ({"sample": pl.lit(-1)}, wsl.DataError, '"sample" is -1 in row 0'),
        ({"class": pl.lit(None, pl.Int8)}, wsl.DataError, '"class" is null in row 0'),
        ({"class": pl.lit(3)}, wsl.DataError, "sample 0: the class is 3, and the selection has 3 classes"),
        ({"score": pl.lit(float("nan"), pl.Float32)}, wsl.DataError, "sample 0, class 0: the score is NaN"),
        ({"score": pl.lit(float("inf"), pl.Float32)}, wsl.DataError, "sample 0, class 0: the score is inf"),
    ],
)
def test_wrong_pairs_are_refused(changes: dict[str, pl.Expr], error: type[Exception], message: str) -> None:
    pairs = pairs_of(random_scores(2, 3))
    top = TopK(3, k=2, p=1)
    with pytest.raises(error, match=message):
        top.update_pairs(pairs.with_columns(**changes))
    if error is wsl.UsageError:
        top.update_pairs(pairs)
    else:
        with pytest.raises(wsl.UsageError, match="half updated"):
            top.update_pairs(pairs)


def test_other_wrong_usage_says_what_is_expected(tmp_path: Path) -> None:
    for numbers, message in [((0, 1, 1), "num_classes"), ((1, 0, 1), "k:"), ((1, 1, -1), "p:")]:
        with pytest.raises(wsl.UsageError, match=message):
            TopK(*numbers)
    with pytest.raises(wsl.UsageError, match='got "by-class"'):
        TopK(1, 1, 1, "by-class")  # type: ignore[arg-type]
    with pytest.raises(wsl.UsageError, match="at least 2 classes"):
        TopK(1, 1, 1).update_logits([0], np.zeros((1, 1), np.float32))
    top = TopK(2, 3, 1, "image-first")
    with pytest.raises(wsl.UsageError, match="k of at most 3"):
        top.finish(k=4)
    with pytest.raises(wsl.UsageError, match="expected p = 1, got 2"):
        top.finish(p=2)
    with pytest.raises(wsl.UsageError, match="k: expected 1 to"):
        top.finish(k=0)
    with pytest.raises(wsl.UsageError, match=r"K = 3, P = 1, image-first; got 2 classes, K = 4"):
        top.merge(TopK(2, 4, 1, "image-first"))
    with pytest.raises(wsl.UsageError, match="with itself"):
        top.merge(top)
    with pytest.raises(TypeError, match="__arrow_c_stream__"):
        top.update_pairs([1, 2])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        TopK.load(tmp_path / "none.bin")
    (tmp_path / "other.bin").write_bytes(b"something else altogether")
    with pytest.raises(wsl.DataError, match=r"other\.bin: the state of the selection cannot be read"):
        TopK.load(tmp_path / "other.bin")


def test_a_sample_given_twice_is_told() -> None:
    scores = random_scores(4, 3)
    top = TopK(3, k=8, p=1)
    top.update(range(4), scores)
    top.update(range(3, 7), scores)
    with pytest.raises(wsl.DataError, match="sample 3, class 0: the pair was scored twice"):
        top.finish()
    top = TopK(3, k=8, p=1, order="image-first")
    top.update(range(4), scores)
    with pytest.raises(wsl.DataError, match="sample 3 came back"):
        top.update(range(3, 7), scores)


def test_an_exception_from_progress_leaves_a_state_that_refuses_to_go_on() -> None:
    class StopError(Exception):
        pass

    def stop(done: int) -> None:
        raise StopError

    top = TopK(4, k=9, p=2)
    with pytest.raises(StopError):
        top.update_pairs(pairs_of(random_scores(500, 4)), progress=stop)
    with pytest.raises(wsl.UsageError, match="half updated"):
        top.finish()
