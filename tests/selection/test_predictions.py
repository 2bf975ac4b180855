"""Files of predictions: whose they are, what they cover, which sample a key is."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
import wsl.cli
from tests.help.commands import refused, wsl_json
from wsl.index.shards import write_shard
from wsl.selection.keyed import KeyedPredictions
from wsl.selection.predictions import gaps

MADE_BY = {
    "teacher_fingerprint": "one",
    "index_fingerprint": "first",
    "vocabulary_fingerprint": None,
    "num_classes": 3,
    "flip": True,
    "temperature": 1.0,
    "keep": None,
}
PARTS = [[0, 8, "a"], [8, 8, "b"]]


def write(file: Path, samples: range, **metadata: Any) -> Path:
    """Predictions of some samples, as `wsl score` writes them."""
    values = [[float(n % 7), float(n % 5), float(n % 3)] for n in samples]
    scores = pl.Series("scores", values, dtype=pl.Array(pl.Float32, 3))
    about = MADE_BY | {"first_sample": samples.start, "end_sample": samples.stop} | metadata
    table = pl.DataFrame([pl.Series("sample", list(samples), dtype=pl.UInt64), scores])
    table.write_parquet(file, metadata={"wsl": json.dumps(about)})
    return file


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"teacher_fingerprint": "two"}, "teacher_fingerprint is two, and one in"),
        ({"temperature": 2.0}, "temperature is 2.0, and 1.0 in"),
        ({"keep": 2}, "keep is 2, and None in"),
        ({"index_fingerprint": "second"}, "index_fingerprint is second, and first in"),
        ({"parts": PARTS}, "index_fingerprint is second, and first in"),
    ],
)
def test_files_of_another_teacher_or_index_in_the_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], words: str
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    write(folder / "scores-0.parquet", range(8))
    named = {"index_fingerprint": "second"} if "parts" in other else {}
    bad = write(folder / "scores-8.parquet", range(8, 16), **(other | named))
    out = tmp_path / "o.parquet"
    options = ["pseudolabel", "--predictions", folder, "--k", 2, "--p", 1, "--out", out]
    code, text = refused(capsys, *options)
    assert (code, words in text) == (2, True), text
    assert str(bad) in text
    assert not out.exists()
    bad.unlink()
    wsl_json(capsys, *options, "--json")


def test_files_over_an_index_that_was_added_to_are_taken_together_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    write(folder / "scores-0.parquet", range(8), parts=PARTS[:1], num_samples=8)
    later = {"index_fingerprint": "second", "num_samples": 16}
    second = write(folder / "scores-8.parquet", range(8, 16), parts=PARTS[1:], **later)
    out = tmp_path / "o.parquet"
    options = ["pseudolabel", "--predictions", folder, "--k", 2, "--p", 1, "--out", out]
    wsl_json(capsys, *options, "--json")
    known = json.loads(pl.read_parquet_metadata(out)["wsl"])
    assert known["index_fingerprint"] == "second"
    assert not {"parts", "num_samples", "first_sample", "end_sample"} & set(known)
    for parts in ([[0, 8, "c"]], [[4, 8, "b"]]):
        write(second, range(8, 16), parts=parts, **later)
        code, text = refused(capsys, *options, "--overwrite")
        assert (code, "one teacher over one index" in text) == (2, True), text


@given(
    st.integers(1, 100),
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=6),
)
def test_gaps_are_what_is_not_covered(num: int, size: int, found: list[tuple[int, int]]) -> None:
    covered = [(start, start + length) for start, length in found]
    ranges = list(gaps(covered, num, size))
    samples = [sample for one in ranges for sample in one]
    assert samples == [n for n in range(num) if not any(start <= n < stop for start, stop in covered)]
    assert all(len(one) and one.start // size == (one.stop - 1) // size for one in ranges)


@pytest.mark.parametrize(
    ("k", "words"),
    [
        (6, "K = 6 times 3 classes is beyond the 16 images: most images must serve several"),
        (6, "with K = 5 they need not"),
        (17, "K is beyond the 16 images, so every class takes all of them"),
    ],
)
def test_more_places_than_images_are_warned_of_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], k: int, words: str
) -> None:
    file = write(tmp_path / "p.parquet", range(16))
    options = ["--predictions", file, "--p", 1, "--json", "--overwrite"]
    report = wsl_json(capsys, "pseudolabel", *options, "--k", k, "--out", tmp_path / "o.parquet")
    assert words in report["warnings"][0]
    report = wsl_json(capsys, "pseudolabel", *options, "--k", 5, "--out", tmp_path / "o.parquet")
    assert not [text for text in report["warnings"] if "beyond" in text]
    # It is said even where the selection then fails.
    write(file, range(16), num_classes=2)
    code, text = refused(capsys, "pseudolabel", *options, "--k", 9, "--out", tmp_path / "n.parquet")
    assert code == 2
    assert "warning: K = 9 times 2 classes is beyond the 16 images" in text


def by_polars(pairs: pl.DataFrame, k: int, p: int, order: str) -> pl.DataFrame:
    """The selection by window functions, over the columns key, class, score and the order of the samples."""

    def cut(frame: pl.DataFrame, over: str, most: int) -> pl.DataFrame:
        ranked = frame.sort("score", "sample", "class", descending=[True, False, False])
        return ranked.filter(pl.int_range(pl.len()).over(over) < most)

    steps = [("class", k), ("sample", p)] if order == "class-first" else [("sample", p), ("class", k)]
    for over, most in steps:
        pairs = cut(pairs, over, most)
    return pairs.select("sample", "key", "class", "score").sort("sample", "class")


def named_pairs(num: int, seed: int = 0) -> pl.DataFrame:
    """Pairs of 7 classes in no order; keys of several lengths and letters, many ties."""
    letters = random.Random(seed)
    keys = {"".join(letters.choices("aZé/-7", k=letters.randint(0, 9))) for _ in range(num)}
    rows = [(key, kind, letters.randint(0, 9) / 4) for key in sorted(keys) for kind in range(7)]
    letters.shuffle(rows)
    schema = {"key": pl.String, "class": pl.UInt32, "score": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.mark.parametrize("order", ["class-first", "image-first"])
@pytest.mark.parametrize("memory", [[], ["--memory", "1MiB"]])
def test_keys_without_an_index_are_numbered_by_their_bytes_in_memory_and_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str, memory: list[str]
) -> None:
    pairs = named_pairs(3000)
    for part in range(3):
        pairs[part::3].write_parquet(tmp_path / f"{part}.parquet")
    out = tmp_path / "out" / "o.parquet"
    given = ["--predictions", tmp_path / "*.parquet", "--k", 500, "--p", 2, "--order", order, "--out", out]
    (tmp_path / "spill").mkdir()
    code = wsl.cli.run([str(a) for a in ["pseudolabel", *given, *memory, "--spill-dir", tmp_path / "spill"]])
    said = capsys.readouterr().err
    assert code == 0, said
    assert ("rows are sorted" in said) == bool(memory)
    assert list((tmp_path / "spill").iterdir()) == []
    keys = sorted(pairs["key"].unique().to_list(), key=str.encode)
    numbers = pl.DataFrame({"key": keys, "sample": range(len(keys))}).cast({"sample": pl.UInt64})
    expected = by_polars(pairs.join(numbers, on="key"), 500, 2, order)
    found = pl.read_parquet(out).select("sample", "key", "class", "score").sort("sample", "class")
    assert found.equals(expected)


@pytest.mark.parametrize("memory", [1 << 20, 1 << 30])
@pytest.mark.parametrize("layout", ["lists", "dense"])
def test_pieces_hold_every_row_once_with_the_samples_in_order(
    tmp_path: Path, layout: str, memory: int
) -> None:
    keys = [f"{n * 7919 % 20_011:x}" for n in range(20_000)]
    values = np.random.default_rng(0).random((len(keys), 7), dtype=np.float32)
    classes = pl.Series("classes", [list(range(7))] * len(keys), dtype=pl.List(pl.UInt32))
    dtype = pl.Array(pl.Float32, 7)
    scores = pl.Series("scores", values, dtype=dtype)
    rows = pl.DataFrame([pl.Series("key", keys), scores])
    if layout == "lists":
        rows = rows.with_columns(pl.col("scores").cast(pl.List(pl.Float32)), classes)
    rows.write_ipc(tmp_path / "p.arrow")
    expected = sorted(range(len(keys)), key=lambda n: keys[n].encode())
    with KeyedPredictions(
        [tmp_path / "p.arrow"], None, memory_bytes=memory, spill_dir=tmp_path, warn=lambda text: None
    ) as keyed:
        for _ in range(2):
            pieces = list(keyed.pieces())
            assert (len(pieces) > 3) == (memory == 1 << 20)
            whole = pl.concat(pieces)
            assert whole["sample"].to_list() == list(range(len(keys)))
            assert (whole["scores"].cast(dtype).to_numpy() == values[expected]).all()
        asked = np.sort(np.random.default_rng(1).integers(0, len(keys), 500))
        assert keyed.keys(asked) == [keys[expected[n]] for n in asked]
    assert [path.name for path in tmp_path.iterdir()] == ["p.arrow"]


@pytest.mark.parametrize("memory", [[], ["--memory", "1MiB"]])
@pytest.mark.parametrize("order", ["class-first", "image-first"])
def test_keys_are_joined_with_an_index_as_polars_joins_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str, memory: list[str]
) -> None:
    pairs = named_pairs(2500, seed=1).filter(pl.col("key").str.contains("^[aZ7é][aZ7é-]*$"))
    keys = pairs["key"].unique().shuffle(3).to_list()
    half = len(keys) // 2
    for shard, own in enumerate((keys[:half], keys[half:])):
        write_shard(tmp_path / f"{shard}.tar", [(key, {"png": b"x"}) for key in own])
    index = wsl.build_index(tmp_path / "index", sorted(tmp_path.glob("*.tar")))
    # What was taken down keeps its number, and so do those after it.
    wsl.drop_samples(index.path, [keys[0]])
    pairs = pairs.filter(pl.col("key") != keys[0])
    pairs.write_parquet(tmp_path / "p.parquet")
    truth = pl.DataFrame({"key": keys, "label": [n % 7 for n in range(len(keys))]})
    truth.write_parquet(tmp_path / "truth.parquet")
    out = tmp_path / "o.parquet"
    given = ["--predictions", tmp_path / "p.parquet", "--index", index.path, "--out", out, "--order", order]
    given += ["--spill-dir", tmp_path, "--truth", tmp_path / "truth.parquet", *memory]
    report = wsl_json(capsys, "pseudolabel", *given, "--k", 200, "--p", 2, "--json")
    numbers = pl.DataFrame({"key": keys, "sample": range(len(keys))}).cast({"sample": pl.UInt64})
    expected = by_polars(pairs.join(numbers, on="key"), 200, 2, order)
    found = pl.read_parquet(out).select("sample", "key", "class", "score").sort("sample", "class")
    assert found.equals(expected)
    assert report["precision"] == pytest.approx((expected["sample"] % 7 == expected["class"]).mean())
    pairs.vstack(pairs[:1].with_columns(key=pl.lit("none"))).write_parquet(tmp_path / "p.parquet")
    code, text = refused(capsys, "pseudolabel", *given, "--k", 3, "--p", 2, "--overwrite")
    assert (code, "'none', which is no key of the index" in text) == (3, True), text


def test_a_key_that_names_no_one_sample_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", [("a", {"png": b"x"}), (f"b{shard}", {"png": b"x"})])
    index = wsl.build_index(tmp_path / "index", sorted(tmp_path.glob("*.tar")), key_scope="shard")
    file = tmp_path / "p.parquet"
    given = ["pseudolabel", "--predictions", file, "--k", 1, "--p", 1, "--out", tmp_path / "o.parquet"]
    for key, words in (("a", "two samples share the key 'a'"), (None, "a row has no key")):
        schema = {"key": pl.String, "class": pl.UInt8, "score": pl.Float32}
        pl.DataFrame([(key, 0, 1.0)], schema=schema, orient="row").write_parquet(file)
        code, text = refused(capsys, *given, "--index", index.path)
        assert (code, words in text) == (3, True), text


@pytest.mark.parametrize("name", ["sample", "key"])
def test_images_of_pairs_from_elsewhere_are_counted_for_the_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    pairs = pl.DataFrame(
        {
            name: [str(n // 4) if name == "key" else n // 4 for n in range(400)],
            "class": [n % 4 for n in range(400)],
            "score": pl.Series(range(400), dtype=pl.Float32),
        }
    )
    pairs.write_parquet(tmp_path / "p.parquet")
    options = ["pseudolabel", "--predictions", tmp_path / "p.parquet", "--p", 1, "--json"]
    report = wsl_json(capsys, *options, "--k", 60, "--out", tmp_path / "a.parquet")
    (found,) = re.findall(r"K = 60 times 4 classes is beyond the (\d+) images", report["warnings"][0])
    assert 95 <= int(found) <= 105
    report = wsl_json(capsys, *options, "--k", 20, "--out", tmp_path / "b.parquet")
    assert not [text for text in report["warnings"] if "beyond" in text]


def test_true_classes_may_be_text_with_numbers_or_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.parquet"
    options = ["pseudolabel", "--predictions", file, "--k", 9, "--p", 1, "--json", "--overwrite"]
    options += ["--out", tmp_path / "o.parquet", "--truth", tmp_path / "t.csv"]
    precisions = []
    for names, labels in ((None, "012"), (["2", "0", "1"], "201"), (["a", "b", "c"], "abc")):
        write(file, range(16), class_names=names)
        rows = [{"sample": n, "label": labels[n % 3]} for n in range(16)]
        pl.DataFrame(rows).write_csv(tmp_path / "t.csv")
        precisions.append(wsl_json(capsys, *options)["precision"])
    assert precisions[0] == precisions[1] == precisions[2] > 0
    pl.DataFrame({"sample": [0], "label": ["3"]}).write_csv(tmp_path / "t.csv")
    code, text = refused(capsys, *options)
    assert (code, "label holds '3', which names no class" in text) == (3, True), text
