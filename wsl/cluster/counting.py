"""Counting on a cluster: a part for each group of record files, then a tree of merges."""

from __future__ import annotations

from collections.abc import Sequence

from wsl.cluster.parts import Part, Parts, Run
from wsl.cluster.plan import Stage, absolute, merge_tree, record_groups
from wsl.cluster.ray import connect
from wsl.files import stores
from wsl.files.globs import kind_of
from wsl.files.resources import Resources
from wsl.files.tables import scan
from wsl.hashtags.counting import Columns
from wsl.hashtags.counts import HashtagCounts, count_hashtags
from wsl.workspace.config import ClusterConfig


def count_levels(
    sources: Sequence[str], columns: Columns, resources: Resources, settings: ClusterConfig
) -> list[list[Part]]:
    """The parts of a count, the last of which is all of it."""
    limits = resources.with_threads(settings.num_cpus).to_json()
    about = {"hashtags_column": columns.hashtags, "separator": columns.separator}
    paths = [absolute(path) for path in sources]
    leaves = [
        Part("count", number, {"records": {path: stores.stamp(path) for path in group}, **about}, (), limits)
        for number, group in enumerate(record_groups(paths, settings.group_bytes))
    ]
    return merge_tree(leaves, "mergecounts", {}, limits)


def _check_columns(sources: Sequence[str], columns: Columns) -> None:
    """Refuses options that no part could do anything with, as they would be refused here."""
    if sources and not stores.is_remote(sources[0]) and kind_of([sources[0]]) in ("parquet", "ipc"):
        count_hashtags(
            scan([sources[0]]).head(0), hashtags_column=columns.hashtags, separator=columns.separator
        )


def load(
    sources: Sequence[str],
    columns: Columns,
    resources: Resources,
    settings: ClusterConfig,
    folder: stores.Place,
    run: Run | None = None,
) -> HashtagCounts:
    """The counts of record files, counted on the cluster; its parts are in `folder`.

    `run` is what counting is the first stage of.
    """
    parts = Parts(folder)
    levels = count_levels(sources, columns, resources, settings)
    _check_columns(sources, columns)
    with connect(settings) as cluster:
        cluster.check(parts.folder, sources)
        cluster.make(parts, Stage("count", levels, is_last=run is None), run)
    with parts.held(levels[-1][0].name) as (file,):
        return HashtagCounts.load(file, **resources.memory())
