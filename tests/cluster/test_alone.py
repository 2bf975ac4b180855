"""Records that are an index by themselves, their parts made apart: the bytes of one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import wsl
from tests.help.parts import Here, World, both_ways, quick_folder
from tests.help.thoroughness import examples
from wsl import DataError, UsageError, WslError, _core
from wsl.cluster.plan import cut
from wsl.files.resources import UNLIMITED
from wsl.index.shards import write_shard
from wsl.workspace.recipe import Recipe


@given(sizes=st.lists(st.integers(0, 9)), step=st.integers(1, 12))
def test_pieces_hold_everything_once_in_its_order(sizes: list[int], step: int) -> None:
    pieces = cut(sizes, step)
    found = [(group, row) for piece in pieces for group, first, last in piece for row in range(first, last)]
    assert found == [(group, row) for group, size in enumerate(sizes) for row in range(size)]
    lengths = [sum(last - first for _, first, last in piece) for piece in pieces]
    assert lengths[:-1] == [step] * (len(pieces) - 1)
    assert all(0 < length <= step for length in lengths)


@given(
    seed=st.integers(0, 1 << 32),
    group_bytes=st.sampled_from([1, 1500, 1 << 30]),
    part_rows=st.sampled_from([1, 3, 1 << 20]),
    lists=st.sampled_from(["none", "exclude", "include"]),
    append=st.booleans(),
)
@examples(25, suppress_health_check=list(HealthCheck))
def test_records_alone_are_indexed_as_one_machine_indexes_them(
    seed: int, group_bytes: int, part_rows: int, lists: str, append: bool
) -> None:
    with quick_folder() as folder:
        world = World(folder, seed, "global", num_shards=0, num_tables=3)
        options = world.options() | {"part_rows": part_rows, "shards": []}
        options["limits"] |= {"keys_doubled": 1.0}
        if lists != "none":
            options |= {lists: world.listed(0.2 if lists == "exclude" else 0.8)}
        steps = [options]
        if append:
            world.add_table()
            steps.append(options | {"records": world.tables[3:], "append": "new records"})
        try:
            wsl.build_index(folder / "first", **steps[0])
        except WslError:
            # No sample, or no hashtag.
            return
        both_ways(folder, group_bytes, *steps)


def test_many_rows_lie_in_many_sections(tmp_path: Path) -> None:
    tables = []
    for number, num_rows in enumerate((40_000, 1, 17_000)):
        keys = pl.format("k{}-{}", pl.lit(number), pl.int_range(num_rows))
        tags = pl.concat_list(pl.format("#t{}", pl.int_range(num_rows) % 7), pl.lit("#a"))
        tables.append(str(tmp_path / f"table-{number}.parquet"))
        pl.select(key=keys, hashtags=tags).write_parquet(tables[-1], row_group_size=9_000)
    given = {"shards": [], "records": tables, "label_kind": "hashtag", "exclude": ["k0-5"]}
    here = both_ways(tmp_path, 1, given | {"part_rows": 7_000})
    assert [name.split("-")[0] for name in here.made] == ["rows"] * 3 + ["alone"] * 9
    assert both_ways(tmp_path, 1, given | {"part_rows": 16_384, "overwrite": True}).made[0][:5] == "alone"


def test_tables_that_the_engine_does_not_read_itself(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": [1, 3, 5, 11], "tags": ["#a #b", "#a", "#c", ""]})
    columns = {"shards": [], "label_kind": "hashtag", "key_column": "id", "hashtags_column": "tags"}
    for name, more in (
        ("tags.csv", {}),
        ("tags.ndjson", {"key_format": "img_{:04d}"}),
        ("tags.parquet", {"key_format": "{:09d}", "separator": " "}),
        ("text.parquet", {"separator": " "}),
    ):
        frame.cast({"id": pl.String} if name.startswith("text") else {}).write_csv(tmp_path / "tags.csv")
        frame.write_ndjson(tmp_path / "tags.ndjson")
        frame.write_parquet(tmp_path / "tags.parquet")
        frame.cast({"id": pl.String}).write_parquet(tmp_path / "text.parquet")
        given: dict[str, Any] = columns | more | {"records": [str(tmp_path / name)], "overwrite": True}
        both_ways(tmp_path, 1, given)


def test_what_is_no_file_is_refused_and_a_changed_row_is_found(tmp_path: Path) -> None:
    frame = pl.DataFrame({"key": ["a", "b"], "hashtags": [["#a"], ["#b"]]})
    with pytest.raises(UsageError, match="a cluster reads them from files"):
        wsl.build_index(
            tmp_path / "two", records=frame, label_kind="hashtag", elsewhere=Here(tmp_path / "parts", 1)
        )
    frame.write_parquet(tmp_path / "table.parquet")
    given = {"shards": [], "records": [str(tmp_path / "table.parquet")], "label_kind": "hashtag"}
    here = both_ways(tmp_path, 1, given)
    name = next(name for name in here.made if name.startswith("rows-"))
    body = tmp_path / "parts" / name
    whole = body.read_bytes()
    body.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    for mark in (tmp_path / "parts" / "marks").glob("alone-*"):
        mark.unlink()
    with pytest.raises(DataError, match=f"{name}.*run the command again"):
        both_ways(tmp_path, 1, given | {"overwrite": True})


def test_files_of_other_things_and_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"key": ["a", "b"], "hashtags": [["#a"], ["#b"]]}).write_parquet(tmp_path / "table.parquet")
    given = {"shards": [], "records": [str(tmp_path / "table.parquet")], "label_kind": "hashtag"}
    both_ways(tmp_path, 1, given)
    (rows,) = (str(file) for file in (tmp_path / "parts").glob("rows-*"))
    _core.write_alone([(rows, (1, 2))], tmp_path / "part")
    for span in ((0, 3), (1, 1), (5, 6)):
        with pytest.raises(DataError, match=f"{rows}.*expected the rows"):
            _core.write_alone([(rows, span)], tmp_path / "none")
    for span in ((2, 1), (0, 1 << 40)):
        with pytest.raises(UsageError, match="a part holds at most"):
            _core.write_alone([(rows, span)], tmp_path / "none")
    shard = tmp_path / "shard.tar"
    write_shard(shard, [("a", {"png": b"x"})])
    _core.save_scans([str(shard)], tmp_path / "scans", Recipe())
    _core.save_samples(tmp_path / "scans", [str(shard)], tmp_path / "samples", Recipe(), resources=UNLIMITED)
    with pytest.raises(DataError, match="it holds no rows"):
        _core.write_alone([(str(tmp_path / "samples"), (0, 1))], tmp_path / "none")
    assert not (tmp_path / "none").exists()
