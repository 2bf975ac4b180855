"""The indexes of a workspace, and the statistics of their hashtags."""

from __future__ import annotations

import os
from typing import Any

from wsl._core import UsageError
from wsl.figures import plots
from wsl.figures.page import Block, Lines, Section, SvgBlock, TableBlock, TextBlock
from wsl.hashtags.counts import HashtagCounts, ZipfFit, count_hashtags, fit_zipf
from wsl.index.mapped import Index
from wsl.index.sources import sources_of
from wsl.workspace.layout import Workspace

MAX_RECORD_BYTES = 4 << 30
"""Records are counted anew for the page where they are no larger than this."""
NUM_TOP = 10


def built_indexes(workspace: Workspace) -> dict[str, Index]:
    """The indexes that are built, by name; DataError for a damaged one."""
    paths = {name: workspace.index_path(name) for name in workspace.config.indexes}
    return {name: Index.open(path) for name, path in paths.items() if (path / "manifest.json").is_file()}


def index_section(workspace: Workspace, indexes: dict[str, Index], prefix: str = "") -> list[Section]:
    """What is in each index, and what was left out when it was built."""
    if not workspace.config.indexes:
        return []
    rows: list[list[Any]] = []
    for name in workspace.config.indexes:
        if name not in indexes:
            rows.append([Lines(name, ["not built yet"]), *["-"] * 5])
            continue
        info = indexes[name].info()
        counts = [f"{key.replace('_', ' ')}: {value:,}" for key, value in info["counts"].items() if value]
        if num_dropped := len(indexes[name].dropped):
            counts.append(f"taken down: {num_dropped:,}")
        rows.append(
            [
                Lines(name, counts),
                f"{info['num_samples']:,}",
                info["label_kind"] or "none",
                f"{info['num_labels']:,}" if info["label_kind"] else "-",
                f"{info['num_shards']:,}",
                f"{(info['shard_bytes'] + info['index_bytes']) / 2**20:,.1f} MiB",
            ]
        )
    columns = ["index", "samples", "labels are", "labels", "shards", "size"]
    return [Section(f"{prefix}indexes", "", [TableBlock(columns, rows, stack=True)])]


def hashtag_sections(indexes: dict[str, Index], prefix: str = "") -> list[Section]:
    """Counts, the Zipf fit and coverage of every index of hashtags."""
    tagged = {name: index for name, index in indexes.items() if index.label_kind == "hashtag"}
    more = len(tagged) > 1
    return [
        Section(f"{prefix}hashtags{f' of {name}' if more else ''}", "", _hashtags(index))
        for name, index in tagged.items()
    ]


def _hashtags(index: Index) -> list[Block]:
    counts = _count(index)
    if counts is None:
        return _vocabulary_alone(index)
    blocks: list[Block] = [TextBlock(_tally(counts, index))]
    try:
        fit = fit_zipf(counts)
    except UsageError as error:
        blocks.append(TextBlock(f"No power law is fitted: {error}"))
    else:
        blocks += _fit(counts, fit)
    top = [[tag, f"{count:,}"] for tag, count in counts.top(NUM_TOP)]
    blocks.append(TableBlock(["hashtag", "records"], top, "The most frequent hashtags."))
    return blocks


def _count(index: Index) -> HashtagCounts | None:
    """The counts of the records that the index was built from; None where they are gone, or too many."""
    try:
        sources = sources_of(index.path, [])
        size = sum(os.path.getsize(source) for source in sources)
    except (UsageError, OSError):
        return None
    if size > MAX_RECORD_BYTES:
        return None
    settings = index.manifest["provenance"].get("settings", {})
    return count_hashtags(sources, hashtags_column=settings.get("hashtags_column", "hashtags"))


def _tally(counts: HashtagCounts, index: Index) -> str:
    rejected = {cause: number for cause, number in counts.rejected.items() if number}
    causes = ", ".join(f"{number:,} {cause.replace('_', ' ')}" for cause, number in rejected.items())
    return (
        f"{counts.num_records:,} records hold {counts.num_hashtags:,} hashtags, {counts.num_distinct:,} "
        f"different ones; {counts.num_duplicates:,} were doubled in their record and "
        f"{sum(rejected.values()):,} rejected{f' ({causes})' if causes else ''}. The vocabulary keeps "
        f"{index.num_labels:,} hashtags."
    )


def _fit(counts: HashtagCounts, fit: ZipfFit) -> list[Block]:
    text = (
        f"The counts fall as a power law with alpha = {fit.alpha:.2f} ± {fit.standard_error:.2f} (standard "
        f"error) from {fit.x_min:,} on, where {fit.num_tail:,} hashtags are (Clauset, Shalizi and Newman "
        f"2009; Kolmogorov-Smirnov distance {fit.ks_distance:.3f}). That is a count by rank of r^-"
        f"{fit.rank_exponent:.2f}; the least-squares slope over all is {fit.loglog_slope:.2f}."
    )
    plot = plots.zipf(
        counts.multiplicities(), alpha=fit.alpha, x_min=fit.x_min, loglog_slope=fit.loglog_slope
    )
    heads = [[f"{number:,}", f"{part:.1%}"] for number, part in fit.head_shares.items()]
    covers = [[f"{number:,}", f"{part:.0%}"] for part, number in fit.head_sizes.items()]
    rows = sorted([*heads, *covers], key=lambda row: int(row[0].replace(",", "")))
    return [
        TextBlock(text),
        SvgBlock(plot, "Hashtags by rank, with the fitted power law and the least-squares line."),
        TableBlock(["most frequent hashtags", "of all occurrences"], rows, "Head and tail."),
    ]


def _vocabulary_alone(index: Index) -> list[Block]:
    """Where records cannot be counted again: the images of each label."""
    counts = index.label_counts()
    names = index.class_names or []
    order = sorted(range(len(names)), key=lambda label: (-int(counts[label]), label))[:NUM_TOP]
    rows = [[names[label], f"{int(counts[label]):,}"] for label in order]
    text = (
        f"The records are not counted again here (they are elsewhere, within the shards, or too large); "
        f"'wsl stats' does. The vocabulary keeps {index.num_labels:,} hashtags."
    )
    return [TextBlock(text), TableBlock(["hashtag", "images"], rows, "The most frequent labels.")]
