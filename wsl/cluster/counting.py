"""Counting on a cluster: a part for each group of record files, then a tree of merges."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsl import storage
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import absolute, file_groups, merge_tree, size_of
from wsl.cluster.running import Result, connect
from wsl.config import ClusterConfig
from wsl.counting import Columns, Memory
from wsl.hashtags import HashtagCounts


def count_levels(
    sources: Sequence[str], columns: Columns, memory: Memory, settings: ClusterConfig
) -> list[list[Part]]:
    """The parts of a count, the last of which holds all of it."""
    limits: dict[str, Any] = {"num_threads": settings.num_cpus, "memory_bytes": memory.limit_bytes}
    limits["spill_dir"] = None if memory.spill_dir is None else os.fspath(memory.spill_dir)
    about = {"hashtags_column": columns.hashtags, "separator": columns.separator}
    paths = [absolute(path) for path in sources]
    leaves = [
        Part("count", number, {"records": {path: storage.stamp(path) for path in group}, **about}, (), limits)
        for number, group in enumerate(file_groups(paths, settings.group_bytes, size_of))
    ]
    return merge_tree(leaves, "mergecounts", {}, limits)


def count(
    sources: Sequence[str], columns: Columns, memory: Memory, settings: ClusterConfig, folder: Path
) -> tuple[Path, Result]:
    """Counts record files on the cluster; the file of all counts in `folder`, and what was made."""
    parts = Parts(folder.absolute())
    levels = count_levels(sources, columns, memory, settings)
    with connect(settings) as cluster:
        cluster.check(parts.folder, sources)
        result = cluster.make(parts, levels, "count")
    return parts.checked(levels[-1][0].name), result


def load(
    sources: Sequence[str], columns: Columns, memory: Memory, settings: ClusterConfig, folder: Path
) -> HashtagCounts:
    """The counts of record files, counted on the cluster."""
    file, _ = count(sources, columns, memory, settings, folder)
    return HashtagCounts.load(file, **memory.options())
