"""What is in a workspace, as sections of one page."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import wsl
from wsl.report import plots
from wsl.report.page import (
    GalleryBlock,
    Group,
    Page,
    Picture,
    Section,
    SvgBlock,
    TableBlock,
    TextBlock,
)
from wsl.workspace import Workspace, is_complete, read_run

NUM_PICTURES = 10
"""Pictures shown of each class."""
MAX_CLASSES_SHOWN = 12


@dataclass(frozen=True)
class Outcome:
    """One trained network of the demo."""

    data: str
    what: str
    num_parameters: int
    num_steps: int
    accuracy: float
    """Top-1 on Fashion-MNIST, the mean of the classes' recalls on Open Clip Art."""
    measure: str
    seconds: float


def demo_page(outcomes: Sequence[Outcome], first: Path, second: Path, seconds: float) -> Page:
    """The report of the demo."""
    rows: list[list[Any]] = [
        [o.data, o.what, f"{o.num_parameters:,}", f"{o.num_steps:,}", f"{o.accuracy:.1%}", f"{o.seconds:.0f}"]
        for o in outcomes
    ]
    bars = [(f"{o.data}: {o.what}", o.accuracy, o.seconds) for o in outcomes]
    results = Section(
        "Results",
        "Accuracy on held-out images: top-1 for Fashion-MNIST, the mean over classes for Open Clip Art, "
        "whose classes are unequal. Steps count all training that a network has behind it; seconds are "
        "those of its last stage.",
        [
            TableBlock(["data", "network", "parameters", "steps", "accuracy", "seconds"], rows, ""),
            SvgBlock(plots.accuracies(bars), "Accuracy of this very run."),
        ],
    )
    return Page(
        title="wsl demo",
        subtitle="From hashtags and unlabelled images to finetuned classifiers, on the data the package "
        "carries",
        facts=[*_facts(), ("time", f"{seconds:.0f} s")],
        sections=[
            results,
            *_sections(first, "Fashion-MNIST: "),
            *_sections(second, "Open Clip Art: "),
        ],
    )


def workspace_page(folder: Path) -> Page:
    """A workspace as one page: runs, curves, hashtags, selection."""
    workspace = Workspace.find(folder)
    return Page(
        title=workspace.root.name,
        subtitle=str(workspace.root),
        facts=_facts(),
        sections=[*_runs(workspace.root), *_sections(workspace.root, "")],
    )


def _facts() -> list[tuple[str, str]]:
    return [("wsl", wsl.__version__), ("Python", platform.python_version()), ("machine", platform.machine())]


def _runs(root: Path) -> list[Section]:
    rows: list[list[Any]] = []
    for run in sorted((root / "runs").glob("*")):
        if not is_complete(run):
            continue
        info = read_run(run)
        summary, found = info["summary"], info.get("evaluation") or {}
        accuracy = [f"{found[name]:.1%}" if name in found else "-" for name in ("top1", "top5", "macro")]
        rows.append([run.name, info["stage"], f"{summary['num_steps']:,}", *accuracy])
    if not rows:
        return [Section("Runs", "No run is complete yet.", [])]
    columns = ["run", "stage", "steps", "top-1", "top-5", "macro"]
    return [Section("Runs", "", [TableBlock(columns, rows, "")])]


def _sections(root: Path, prefix: str) -> list[Section]:
    sections = []
    for title, blocks in (
        ("hashtags", _hashtags(root)),
        ("selection", _selection(root)),
        ("training", _training(root)),
        ("pseudo-labelled images", _pictures(root)),
        ("tagged images", _tagged(root)),
    ):
        if blocks:
            heading = f"{prefix}{title}" if prefix else title.capitalize()
            sections.append(Section(heading, "", blocks))
    return sections


def _hashtags(root: Path) -> list[Any]:
    workspace = Workspace.find(root)
    names = [n for n, settings in workspace.config.indexes.items() if settings.label_kind == "hashtag"]
    built = [n for n in names if (workspace.index_path(n) / "manifest.json").is_file()]
    if not built:
        return []
    from wsl.counting import sources_of

    column = workspace.index(built[0]).hashtags_column
    counts = wsl.count_hashtags(sources_of(workspace.index_path(built[0]), []), hashtags_column=column)
    fit = wsl.fit_zipf(counts)
    index = wsl.Index.open(workspace.index_path(built[0]))
    text = (
        f"{counts.num_records:,} records hold {counts.num_hashtags:,} hashtags, {counts.num_distinct:,} "
        f"distinct ones; {counts.num_duplicates:,} were doubled in their record and "
        f"{sum(counts.rejected.values()):,} rejected. The counts fall as a power law with alpha = "
        f"{fit.alpha:.2f} ± {fit.standard_error:.2f} from {fit.x_min} on (Kolmogorov-Smirnov distance "
        f"{fit.ks_distance:.3f}). The vocabulary keeps {index.num_labels:,} hashtags."
    )
    plot = plots.zipf(
        counts.multiplicities(), alpha=fit.alpha, x_min=fit.x_min, loglog_slope=fit.loglog_slope
    )
    top = [[tag, f"{count:,}"] for tag, count in counts.top(10)]
    return [
        TextBlock(text),
        SvgBlock(plot, "Hashtags by rank, with the fitted power law and the least-squares line."),
        TableBlock(["hashtag", "records"], top, "The ten most frequent hashtags."),
    ]


def _selection(root: Path) -> list[Any]:
    file = root / "pseudolabels.parquet"
    if not file.is_file():
        return []
    about = json.loads(pl.read_parquet_metadata(file)["wsl"])
    classes = about["report"]["classes"]
    names = [row["class"] for row in classes]
    text = (
        f"K = {about['k']:,} images of every class, at most P = {about['p']:,} classes of an image "
        f"({about['order']}): {about['report']['num_pairs']:,} pseudo-labels on "
        f"{about['report']['num_images']:,} images."
    )
    right = _share_right(root, file)
    if right is not None:
        text += f" {right:.1%} of them name the class that the image really has."
    plot = plots.selection_balance(
        names, [row["before"] for row in classes], [row["after"] for row in classes]
    )
    return [TextBlock(text), SvgBlock(plot, "Images of every class before and after the P cut.")]


def _share_right(root: Path, file: Path) -> float | None:
    truth = root / "data" / "truth.parquet"
    if not truth.is_file():
        return None
    known = pl.read_parquet(truth).rename({"class": "truth"})
    joined = pl.read_parquet(file, columns=["key", "class"]).join(known, on="key")
    share = joined.select((pl.col("class") == pl.col("truth")).mean()).item()
    return None if share is None else float(share)


def _training(root: Path) -> list[Any]:
    losses: dict[str, list[tuple[float, float]]] = {}
    for file in sorted((root / "runs").glob("*/metrics.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            points = [
                (float(row["step"]), float(row["loss"])) for row in csv.DictReader(lines) if row["loss"]
            ]
        if points:
            losses[file.parent.name] = points
    if not losses:
        return []
    blocks: list[Any] = [SvgBlock(plots.curves(losses, ylabel="loss", title=""), "Training loss by step.")]
    run = root / "runs" / "finetune"
    evaluation = read_run(run).get("evaluation") if is_complete(run) else None
    if evaluation and evaluation["confusion"] and len(evaluation["confusion"]) <= 20:
        names = read_run(run).get("class_names") or [str(n) for n in range(len(evaluation["confusion"]))]
        figure = plots.confusion(names, evaluation["confusion"])
        blocks.append(SvgBlock(figure, "The finetuned network on held-out images: rows are true classes."))
    return blocks


def _pictures(root: Path) -> list[Any]:
    file = root / "pseudolabels.parquet"
    if not file.is_file():
        return []
    workspace = Workspace.find(root)
    index = wsl.Index.open(workspace.built_index(workspace.unlabelled()))
    names = json.loads(pl.read_parquet_metadata(file)["wsl"]).get("class_names") or []
    table = pl.read_parquet(file)
    groups: list[Group] = []
    for (label,), rows in table.group_by("class", maintain_order=True):
        if len(groups) == MAX_CLASSES_SHOWN:
            break
        ranked = rows.sort("rank")
        # The best, and some from the end of the selection, where mistakes are.
        half = NUM_PICTURES // 2
        shown = ranked
        if len(ranked) > NUM_PICTURES:
            shown = pl.concat([ranked.head(half), ranked.tail(half)])
        images = index.read(shown["sample"].to_numpy().astype(np.int64))
        captions = [
            f"rank {rank:,}, {probability:.0%}"
            for rank, probability in zip(shown["rank"], shown["probability"], strict=True)
        ]
        pictures = [Picture(image, caption) for image, caption in zip(images, captions, strict=True)]
        number = int(str(label))
        heading = names[number] if number < len(names) else str(number)
        groups.append(Group(heading, [("", pictures)]))
    text = "Of every class the best images of the selection, and the last that were taken."
    return [GalleryBlock(groups, text)]


def _tagged(root: Path) -> list[Any]:
    workspace = Workspace.find(root)
    names = [n for n, settings in workspace.config.indexes.items() if settings.label_kind == "hashtag"]
    if not names or not (workspace.index_path(names[0]) / "manifest.json").is_file():
        return []
    index = wsl.Index.open(workspace.index_path(names[0]))
    labels, offsets = index.flat_labels(np.arange(len(index), dtype=np.int64))
    vocabulary = index.class_names or []
    groups: list[Group] = []
    for label in range(min(MAX_CLASSES_SHOWN, len(vocabulary))):
        places = np.flatnonzero(labels == label)
        chosen = places[np.linspace(0, len(places) - 1, min(NUM_PICTURES, len(places))).astype(np.int64)]
        ordinals = (np.searchsorted(offsets, chosen, side="right") - 1).astype(np.int64)
        pictures = []
        for ordinal, image in zip(ordinals, index.read(ordinals), strict=True):
            if len(image) < 1 << 16:
                tags = [vocabulary[tag] for tag in labels[offsets[ordinal] : offsets[ordinal + 1]]]
                pictures.append(Picture(image, ", ".join(tags[:4])))
        groups.append(Group(vocabulary[label], [("", pictures)]))
    return [GalleryBlock(groups, "Images of the most frequent hashtags of the vocabulary, with their tags.")]
