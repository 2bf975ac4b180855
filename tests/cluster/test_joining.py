"""The parts of an index made apart, and the index that comes of them: the bytes of one machine."""

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
from wsl import DataError, UsageError, WslError
from wsl.cluster.parts import Parts
from wsl.index.shards import write_shard


@given(
    seed=st.integers(0, 1 << 32),
    scope=st.sampled_from(["global", "shard"]),
    added=st.sampled_from(["all records", "new records"]),
    group_bytes=st.sampled_from([1, 1500, 1 << 30]),
    part_rows=st.sampled_from([2, 5, 1 << 20]),
)
@examples(25, suppress_health_check=list(HealthCheck))
def test_shards_are_appended_as_one_machine_appends_them(
    seed: int, scope: str, added: Any, group_bytes: int, part_rows: int
) -> None:
    with quick_folder() as folder:
        world = World(folder, seed, scope, num_shards=2, num_tables=2)
        options = world.options() | {"part_rows": part_rows, "exclude": world.listed(0.1)}
        options["limits"] |= {"keys_doubled": 1.0}
        first = options | {"shards": list(world.shards)}
        world.add_shard()
        world.add_shard()
        world.add_table()
        records = world.tables if added == "all records" else world.tables[2:]
        second = options | {"shards": world.shards[2:], "records": list(records), "append": added}
        try:
            wsl.build_index(folder / "first", **first)
        except WslError:
            # No sample, or no hashtag: there is nothing to append to.
            return
        both_ways(folder, group_bytes, first, second)


def test_tables_beside_their_shards_are_joined_shard_by_shard(tmp_path: Path) -> None:
    world = World(tmp_path, 3, "global", num_shards=4, num_tables=0)
    for shard in world.shards:
        keys = [f"k{number:02}" for number in range(0, 40, 2)]
        status = ["success" if number % 3 else "failed" for number in range(20)]
        tags = [[f"#t{number % 7}"] for number in range(20)]
        frame = pl.DataFrame({"key": keys, "hashtags": tags, "status": status})
        frame.write_parquet(shard.with_suffix(".parquet"))
    tables = [str(shard.with_suffix(".parquet")) for shard in world.shards]
    given = world.options() | {
        "key_scope": "shard",
        "records": tables,
        "shards": world.shards,
        "part_rows": 4,
    }
    here = both_ways(tmp_path, 1, given)
    assert sum(name.startswith("records-") for name in here.made) == 4
    # One table whose shard is elsewhere: then every row counts, of all tables.
    alone = tmp_path / "elsewhere" / "shard-009.parquet"
    alone.parent.mkdir()
    pl.read_parquet(tables[0]).write_parquet(alone)
    here = both_ways(tmp_path, 1, given | {"records": [*tables, str(alone)], "overwrite": True})
    assert sum(name.startswith("records-") for name in here.made) == 1


def test_members_of_the_shards_are_records_too(tmp_path: Path) -> None:
    shards = []
    for number in range(3):
        shards.append(tmp_path / f"shard-{number}.tar")
        members = [
            (f"k{number}-{row}", {"png": b"x", "json": b'{"tags": ["#a", "#t%d"]}' % (row % 3)})
            for row in range(5)
        ]
        write_shard(shards[-1], members)
    for scope in ("global", "shard"):
        given = {"label_kind": "hashtag", "hashtags_column": "tags", "key_scope": scope, "overwrite": True}
        here = both_ways(tmp_path, 1, given | {"shards": shards, "part_rows": 4})
    assert sum(name.startswith("join-") for name in here.made) == 3


def test_integer_keys_are_written_as_the_format_says(tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar"
    write_shard(shard, [(f"img_{number:04}", {"png": b"x"}) for number in range(9)])
    frame = pl.DataFrame({"id": [1, 3, 5, 11], "tags": ["#a #b", "#a", "#c", "#d"]})
    frame.write_csv(tmp_path / "tags.csv")
    frame.write_parquet(tmp_path / "tags.parquet")
    given = {"label_kind": "hashtag", "key_column": "id", "hashtags_column": "tags", "shards": [shard]}
    given |= {"key_format": "img_{:04d}", "records": [str(tmp_path / "tags.parquet")], "separator": " "}
    both_ways(tmp_path, 1, given)
    with pytest.raises(UsageError, match="say how they are written there with --key-format"):
        both_ways(tmp_path, 1, given | {"key_format": None, "overwrite": True})


def test_what_was_finished_is_never_made_again(tmp_path: Path) -> None:
    world = World(tmp_path, 5, "global", num_shards=5, num_tables=3)
    given = world.options() | {"shards": world.shards, "part_rows": 3}
    here = both_ways(tmp_path, 1, given)
    kinds = [name.split("-")[0] for name in here.made]
    assert {kind: kinds.count(kind) for kind in ("scan", "records", "samples", "join")} == {
        "scan": kinds.count("scan"),
        "records": 3,
        "samples": kinds.count("scan"),
        "join": 3,
    }
    # All is there: nothing is made. Then what a killed run had not finished, and no more.
    assert both_ways(tmp_path, 1, given | {"overwrite": True}).made == []
    parts = Parts(tmp_path / "parts")
    part = next(name for name in here.made if name.startswith("part-"))
    join = next(name for name in here.made if name.startswith("join-"))
    Path(parts.place("marks", f"{part}.json")).unlink()
    assert both_ways(tmp_path, 1, given | {"overwrite": True}).made == [part]
    Path(parts.place("marks", f"{join}.json")).unlink()
    assert both_ways(tmp_path, 1, given | {"overwrite": True}).made == [join]
    # Another list of keys is another join, of the same scans.
    made = both_ways(tmp_path, 1, given | {"overwrite": True, "exclude": ["k01"]}).made
    assert not any(name.startswith("scan-") for name in made)
    assert sum(name.startswith("records-") for name in made) == 3
    Path(parts.place(next(name for name in here.made if name.startswith("scan-")))).unlink()
    assert both_ways(tmp_path, 1, given | {"overwrite": True}).made == []


def test_memory_does_not_enter_the_names_of_parts(tmp_path: Path) -> None:
    world = World(tmp_path, 6, "shard", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards}
    both_ways(tmp_path, 1, given)
    small = {"overwrite": True, "memory_bytes": 1 << 20, "spill_dir": tmp_path}
    assert both_ways(tmp_path, 1, given | small).made == []


def test_a_part_of_the_join_that_was_altered_is_named_and_no_index_appears(tmp_path: Path) -> None:
    world = World(tmp_path, 7, "global", num_shards=3, num_tables=2)
    given = world.options() | {"shards": world.shards}
    here = both_ways(tmp_path, 1, given)
    parts = Parts(tmp_path / "parts")
    after = {
        "scan": ("samples",),
        "records": ("join",),
        "samples": ("join",),
        "join": ("part",),
        "part": (),
    }
    for kind, others in after.items():
        name = next(name for name in here.made if name.startswith(f"{kind}-"))
        body = Path(parts.place(name))
        whole = body.read_bytes()
        body.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        for other in parts.marked():
            if other.split("-")[0] in others:
                Path(parts.place("marks", f"{other}.json")).unlink()
        options = {key: value for key, value in given.items() if key != "shards"}
        with pytest.raises(DataError, match=f"{name}.*run the command again"):
            wsl.build_index(tmp_path / kind, world.shards, **options, elsewhere=Here(tmp_path / "parts", 1))
        assert not (tmp_path / kind / "manifest.json").exists()
        body.write_bytes(whole)
        both_ways(tmp_path, 1, given | {"overwrite": True})
