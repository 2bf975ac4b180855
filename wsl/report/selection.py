"""The selection of a workspace: images of each class before and after the cut, scores, and precision.

What a pair's image really shows is known from a table of truths, where there is one. Without it, a pair
disagrees where the teacher prefers another class for its image (by its predictions, where they were kept),
or where another class selected the same image with a higher score.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from wsl._core import DataError, UsageError
from wsl.figures import plots
from wsl.figures.charts import Chart, Point, chart
from wsl.figures.page import Block, HeadingBlock, Section, SvgBlock, TableBlock, TextBlock
from wsl.files.tables import scan
from wsl.report.shares import measured
from wsl.runs.compare import class_name, share
from wsl.runs.intervals import wilson
from wsl.selection import output
from wsl.selection.keyed import look_up
from wsl.workspace.layout import Workspace

TRUTH = "data/truth.parquet"
"""Where the bundled data have the true classes of their unlabelled images."""
TRUTH_COLUMNS = ("class", "label", "truth")
NUM_BINS = 10
MAX_PREDICTION_BYTES = 8 << 30
"""The teacher's best classes are looked up in predictions that are no larger than this."""
MAX_ROWS = 60
"""Classes listed; of more, the first, and those that lack most."""


@dataclass(frozen=True)
class Selected:
    """The content of `pseudolabels.parquet`."""

    about: Mapping[str, Any]
    """Provenance and report."""
    pairs: pl.DataFrame
    """sample, key (where known), class, score, probability, rank; truth where it is known."""
    has_truth: bool

    @property
    def names(self) -> Sequence[str] | None:
        """The names of the classes."""
        return self.about.get("class_names")

    def name(self, number: int) -> str:
        """The name of a class, or its number."""
        return class_name(self.names, number)


def read_selection(workspace: Workspace, truth: Path | None = None) -> Selected | None:
    """The workspace's selection, None where there is none; `truth` is what its images really show.

    Raises DataError for a file that is no selection, UsageError for a table of truths without its columns.
    """
    file = workspace.pseudolabels
    if not file.is_file():
        return None
    try:
        about = json.loads(pl.read_parquet_metadata(file)["wsl"])
        pairs = pl.read_parquet(file)
        missing = {*output.SCHEMA} - {*pairs.columns}
        if missing or "classes" not in about["report"]:
            raise KeyError(*sorted(missing) or ["report"])
    except (pl.exceptions.PolarsError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: expected a selection as 'wsl pseudolabel' writes it, found: {error!r}; select again "
            "with --overwrite"
        ) from None
    known = _truth(workspace, truth, pairs, about.get("class_names"))
    if known is not None:
        pairs = pairs.join(known, on="sample", how="left")
    return Selected(about, pairs, known is not None)


def _truth(
    workspace: Workspace, given: Path | None, pairs: pl.DataFrame, names: list[str] | None
) -> pl.DataFrame | None:
    """The columns sample and truth, each sample once."""
    file = given or workspace.root / TRUTH
    if given is not None and not given.is_file():
        raise FileNotFoundError(2, "no such table of true classes", str(given))
    if not file.is_file():
        return None
    find = None
    if "key" in pairs.columns:
        find = functools.partial(look_up, pairs.select("key", "sample").unique("sample"))
    try:
        columns = scan(file).collect_schema().names()
        column = next((name for name in TRUTH_COLUMNS if name in columns), TRUTH_COLUMNS[0])
        found = output.Truth.read(file, column, names, find)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file}: expected a table of true classes, found: {error}") from None
    except UsageError:
        # The workspace's own file may be of something else; only one that was named has to fit.
        if given is None:
            return None
        raise
    return found.table.unique("sample", keep="any")


def selection_sections(selected: Selected | None, prefix: str = "") -> list[Section]:
    """How much was selected, of which class, how sure and how right."""
    if selected is None:
        return []
    report = selected.about["report"]
    classes = report["classes"]
    blocks: list[Block] = [TextBlock(_summary(selected))]
    if len(classes) <= plots.MAX_BARS:
        before, after = ([row[key] for row in classes] for key in ("before", "after"))
        plot = plots.selection_balance([row["class"] for row in classes], before, after)
        blocks.append(SvgBlock(plot, "Images of every class before and after the P cut."))
    else:
        plot = plots.selection(classes, report["images_by_classes"])
        words = "Classes, the largest first: images, and the probability at the cut; images by their classes."
        blocks.append(SvgBlock(plot, words))
    if selected.has_truth:
        blocks.append(
            SvgBlock(chart(_by_rank(selected)), "Pairs by their rank within the class, over all classes.")
        )
    blocks += [HeadingBlock("By class"), *_class_table(selected)]
    return [Section(f"{prefix}selection", "", blocks)]


def _summary(selected: Selected) -> str:
    about, report = selected.about, selected.about["report"]
    text = (
        f"K = {about['k']:,} images of every class, at most P = {about['p']:,} classes of an image "
        f"({about['order']}): {report['num_pairs']:,} pseudo-labels on {report['num_images']:,} images."
    )
    if report["num_missing"]:
        text += (
            f" {report['num_short_classes']:,} classes have fewer than K: {report['num_missing']:,} images "
            "are missing."
        )
    served = [
        f"{images:,} for {int(number):,}" for number, images in list(report["images_by_classes"].items())[:5]
    ]
    text += f" Images by how many classes they stand for: {', '.join(served) or 'none'}."
    agreement = report.get("agreement_of_orders")
    if agreement is not None:
        text += f" The two orders agree on {agreement:.1%} of the pairs."
    if selected.has_truth:
        right, known = _right(selected.pairs)
        foreign = len(selected.pairs) - known
        precision = share(right / max(known, 1), wilson(right, known))
        text += f" Of {known:,} pairs whose true class is known, {precision} name it"
        text += f"; of {foreign:,} it is not known." if foreign else "."
    return text


def _right(pairs: pl.DataFrame) -> tuple[int, int]:
    """Pairs that name the true class, and pairs whose true class is known."""
    known = pairs.filter(pl.col("truth").is_not_null())
    return int((known["truth"] == known["class"]).sum()), len(known)


def _by_rank(selected: Selected) -> Chart:
    """The share of right pairs by tenths of K."""
    k = int(selected.about["k"])
    place = (((pl.col("rank") - 1).cast(pl.Float64) * NUM_BINS / k).floor().cast(pl.Int64)).alias("place")
    points = []
    for (number,), pairs in selected.pairs.with_columns(place).group_by("place", maintain_order=True):
        right, known = _right(pairs)
        interval = wilson(right, known)
        if interval is not None:
            points.append(Point(round((int(str(number)) + 1) * k / NUM_BINS), right / known, *interval))
    points.sort(key=lambda point: point.x)
    return Chart(
        "Share of right pairs by rank",
        {"right": points},
        xlabel="rank within the class, up to",
        ylabel="pairs that name the true class",
        percent=True,
    )


def _class_table(selected: Selected) -> list[Block]:
    classes = selected.about["report"]["classes"]
    order = list(range(len(classes)))
    words = "The cut is the last image that the class took; its score is the softmax's log-odds."

    # With thousands of classes the table has the first ones, and those that lack most images.
    if len(order) > MAX_ROWS:
        shortest = sorted(order, key=lambda number: -classes[number]["missing"])
        lacking = [number for number in shortest[: MAX_ROWS // 2] if classes[number]["missing"]]
        order = sorted({*order[: MAX_ROWS - len(lacking)], *lacking})
        words += f" {len(order)} of {len(classes):,} classes: the first, and those that lack most."
    columns = ["class", "before P", "after P", "missing", "score at the cut", "probability"]
    right = _right_by_class(selected) if selected.has_truth else {}
    rows = []
    for number in order:
        row = classes[number]
        cells: list[Any] = [
            str(row["class"]),
            *(f"{row[key]:,}" for key in ("before", "after", "missing")),
            "-" if row["lowest_score"] is None else f"{row['lowest_score']:.2f}",
            "-" if row["lowest_probability"] is None else f"{row['lowest_probability']:.1%}",
        ]
        if selected.has_truth:
            hits, known = right.get(number, (0, 0))
            cells.append(measured(hits / known, wilson(hits, known)) if known else "-")
        rows.append(cells)
    if selected.has_truth:
        columns.append("right")
    return [TableBlock(columns, rows, words)]


def _right_by_class(selected: Selected) -> dict[int, tuple[int, int]]:
    known = selected.pairs.filter(pl.col("truth").is_not_null())
    counts = known.group_by("class").agg((pl.col("truth") == pl.col("class")).sum().alias("right"), pl.len())
    return {int(label): (int(right), int(number)) for label, right, number in counts.iter_rows()}


def disagreeing(selected: Selected, label: int, best: pl.DataFrame | None) -> pl.DataFrame:
    """The pairs of a class whose image is rather of another one, the surest first.

    `best` is the class that the teacher likes best for samples, as `best_classes` finds it.

    Adds the columns other (a class) and why: "truly", "the teacher says" or "also selected for".
    """
    # The surest reason comes first, and a pair that has one is not asked for another.
    pairs = selected.pairs.filter(pl.col("class") == label)
    found = []
    if selected.has_truth:
        wrong = pairs.filter(pl.col("truth") != label)
        found.append(
            wrong.with_columns(pl.col("truth").cast(pl.UInt32).alias("other"), pl.lit("truly").alias("why"))
        )
        pairs = pairs.filter(pl.col("truth").is_null())
    if best is not None:
        joined = pairs.join(best, on="sample").filter(pl.col("other") != label)
        found.append(joined.with_columns(pl.lit("the teacher says").alias("why")))
        pairs = pairs.join(best, on="sample", how="anti")
    others = selected.pairs.filter(pl.col("class") != label)
    rivals = others.select("sample", pl.col("class").alias("other"), pl.col("score").alias("rival"))
    joined = pairs.join(rivals, on="sample").filter(pl.col("rival") > pl.col("score"))
    highest = joined.sort("rival", descending=True).unique("sample", keep="first", maintain_order=True)
    found.append(highest.with_columns(pl.lit("also selected for").alias("why")))
    columns = ["sample", "score", "probability", "rank", "other", "why"]
    table = pl.concat([frame.select(columns) for frame in found])
    return table.sort("score", "sample", descending=[True, False])


def best_classes(folder: Path, samples: pl.Series) -> pl.DataFrame | None:
    """The teacher's best class of samples (columns sample and other), from its kept predictions.

    None where the folder has none, or more than the page may read. Raises DataError for files that are no
    predictions.
    """
    files = sorted(folder.glob("scores-*.parquet"))
    if not files or sum(file.stat().st_size for file in files) > MAX_PREDICTION_BYTES:
        return None
    try:
        frame = pl.scan_parquet(files).filter(pl.col("sample").is_in(samples.unique().to_list()))
        schema = frame.collect_schema()
        if "class" in schema:
            ordered = frame.sort("score", "class", descending=[True, False])
            best = ordered.group_by("sample", maintain_order=True).agg(pl.col("class").first().alias("other"))
        else:
            best = frame.select("sample", pl.col("scores").arr.arg_max().alias("other"))
        return best.with_columns(pl.col("sample").cast(pl.UInt64), pl.col("other").cast(pl.UInt32)).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{folder}: expected predictions as 'wsl score' writes them, found: {error}; remove the "
            "folder and score again"
        ) from None
