"""Parts of an index are drawn by a hash of the keys alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from wsl.studies.data import drawn, read_truth
from wsl.studies.spec import Draw

TABLES = st.lists(
    st.tuples(st.text("abcdef/é", min_size=1, max_size=6), st.integers(0, 3) | st.none()),
    max_size=40,
    unique_by=lambda row: row[0],
)


def table(rows: list[tuple[str, int | None]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"key": pl.String, "class": pl.UInt32}, orient="row")


def draw(**options: Any) -> Draw:
    return Draw(truth="t.parquet", **options)


@given(TABLES, st.integers(0, 40), st.integers(0, 40), st.integers(0, 5), st.randoms())
def test_a_larger_draw_holds_a_smaller_one_whatever_the_order(
    rows: list[tuple[str, int | None]], one: int, other: int, seed: int, random: Any
) -> None:
    less, more = sorted((one, other))
    shuffled = list(rows)
    random.shuffle(shuffled)
    small = drawn(table(rows), draw(num_images=less, seed=seed))
    large = drawn(table(shuffled), draw(num_images=more, seed=seed))
    assert len(small) == min(less, len(rows))
    assert set(small) <= set(large) <= {key for key, _ in rows}
    assert large == sorted(large)


@given(TABLES, st.integers(0, 6), st.integers(0, 6))
def test_classes_have_as_many_images_as_are_asked_for(
    rows: list[tuple[str, int | None]], default: int, of_two: int
) -> None:
    chosen = set(drawn(table(rows), draw(per_class=default, classes={2: of_two})))
    for label in (0, 1, 2, 3, None):
        members = {key for key, found in rows if found == label}
        wanted = of_two if label == 2 else default
        # A share below 1 is a share; 0 of them is none.
        assert len(members & chosen) == min(wanted, len(members))


@given(TABLES, st.floats(0.01, 1.0))
def test_the_rest_is_what_a_draw_leaves(rows: list[tuple[str, int | None]], share: float) -> None:
    taken = drawn(table(rows), draw(share=share))
    rest = drawn(table(rows), draw(share=share, rest=True))
    assert len(taken) == round(share * len(rows))
    assert sorted([*taken, *rest]) == sorted(key for key, _ in rows)


def test_a_share_of_single_classes_leaves_the_others_whole() -> None:
    rows: list[tuple[str, int | None]] = [(f"{label}-{n}", label) for label in range(3) for n in range(100)]
    chosen = drawn(table(rows), draw(classes={1: 0.1}))
    sizes = pl.Series([key[0] for key in chosen]).value_counts().sort("").to_dicts()
    assert [row["count"] for row in sizes] == [100, 10, 100]


def test_other_seeds_draw_others() -> None:
    rows: list[tuple[str, int | None]] = [(f"k{n}", None) for n in range(200)]
    assert drawn(table(rows), draw(num_images=20)) != drawn(table(rows), draw(num_images=20, seed=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_images": 3, "share": 0.5}, "one of num_images, share"),
        ({}, "one of num_images, share"),
        ({"num_images": 3, "of": "u"}, "either `of`, an index, or `truth`"),
    ],
)
def test_a_draw_says_one_thing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(**options)


def test_a_table_of_the_truth_needs_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "truth.parquet"
    pl.DataFrame({"key": ["a"], "label": [1]}).write_parquet(file)
    with pytest.raises(wsl.UsageError, match="expected the columns key and class"):
        read_truth(file)
