"""Files of predictions: whose they are, what they cover, which sample a key is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import refused, wsl_json

from wsl.prediction_files import gaps

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
