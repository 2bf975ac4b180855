"""Parts made in this process, and worlds of shards and records that meet and miss each other."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

import wsl
from wsl import WslError
from wsl.cluster import tasks
from wsl.cluster.index_plan import plan_of
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import missing
from wsl.index.build import Wanted
from wsl.index.shards import write_shard
from wsl.workspace.config import ClusterConfig

SCHEMA = {"key": pl.String, "hashtags": pl.List(pl.String)}


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of files are synced."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


class Here:
    """Makes parts in this process, one after another, and keeps which, but for manifests."""

    def __init__(self, folder: Path | str, group_bytes: int) -> None:
        self.parts, self.settings = Parts(folder), ClusterConfig(group_bytes=group_bytes)
        self.made: list[str] = []

    def __call__(self, wanted: Wanted) -> None:
        for stage in plan_of(wanted, self.settings, self.parts).stages():
            self.make(self.parts, stage.levels)

    def make(self, parts: Parts, levels: list[list[Part]]) -> None:
        for level in missing(levels, parts):
            for part in level:
                tasks.make(parts, part)
                if part.kind != "manifest":
                    self.made.append(part.name)


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def outcome_of(build: Callable[[], object], folder: Path) -> tuple[Any, ...]:
    """What is in the folder of an index, or what was said instead."""
    try:
        build()
    except WslError as error:
        return type(error), str(error)
    return "built", content_of(folder)


class World:
    """Shards and records of a few keys, which meet and miss each other."""

    def __init__(self, folder: Path, seed: int, scope: str, *, num_shards: int, num_tables: int) -> None:
        self.folder, self.draw, self.scope = folder, random.Random(seed), scope
        self.shards: list[Path] = []
        self.tables: list[str] = []
        for _ in range(num_shards):
            self.add_shard()
        for _ in range(num_tables):
            self.add_table()

    def key(self) -> str:
        return f"k{self.draw.randrange(40):02}"

    def add_shard(self) -> None:
        path = self.folder / f"shard-{len(self.shards):03}.tar"
        keys = sorted({self.key() for _ in range(self.draw.randrange(9))})
        members = [(key, {"png": b"x" * self.draw.randrange(9), "cls": b"%d" % len(key)}) for key in keys]
        write_shard(path, members)
        self.shards.append(path)

    def add_table(self) -> None:
        keys = [self.key() for _ in range(self.draw.randrange(1, 12))]
        tags = [[f"#t{self.draw.randrange(9)}" for _ in range(self.draw.randrange(4))] for _ in keys]
        frame = pl.DataFrame({"key": keys, "hashtags": tags}, schema=SCHEMA)
        if self.scope == "shard":
            of = [f"shard-{self.draw.randrange(len(self.shards) + 1):03}.tar" for _ in keys]
            frame = frame.with_columns(pl.Series("of", of))
        path = self.folder / f"table-{len(self.tables):03}.parquet"
        frame.write_parquet(path)
        self.tables.append(str(path))

    def listed(self, share: float) -> list[str]:
        stems = ["", *(f"{shard.stem}:" for shard in self.shards)]
        prefixes = stems[1:] if self.scope == "shard" else stems[:1]
        every = [f"{prefix}k{number:02}" for prefix in prefixes for number in range(40)]
        return [key for key in every if self.draw.random() < share]

    def options(self) -> dict[str, Any]:
        names = ("keys_doubled", "samples_split", "samples_without_record", "records_without_sample")
        return {
            "records": list(self.tables),
            "label_kind": "hashtag",
            "key_scope": self.scope,
            "shard_column": "of" if self.scope == "shard" else None,
            "limits": dict.fromkeys(names, 1.0),
            "provenance": {"made": "by a test"},
        }


def both_ways(
    folder: Path, group_bytes: int, *steps: dict[str, Any], parts: Path | str | None = None
) -> Here:
    """Builds two indexes in the same steps, one of them by parts; their files are the same after each."""
    here = Here(parts or folder / "parts", group_bytes)
    for step in steps:
        given = dict(step)
        shards = given.pop("shards")
        wsl.build_index(folder / "one", shards, **given)
        wsl.build_index(folder / "two", shards, **given, elsewhere=here)
        assert content_of(folder / "one") == content_of(folder / "two")
    return here
