"""The runs of a workspace: what each measured with its interval, their curves, recalls and confusions.

Everything comes from what run folders hold; no torch is loaded, and a run that is not complete is shown as
far as it came.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl._core import DataError
from wsl.report import plots
from wsl.report.charts import Chart, Point, chart
from wsl.report.page import Block, HeadingBlock, Section, SvgBlock, TableBlock, TextBlock
from wsl.training.compare import class_name, most_confused, recall_rows, share
from wsl.workspace import read_run

MEASURES = {"top1": "top-1", "top5": "top-5", "macro": "macro-averaged recall"}
MAX_CELLS = 20
"""Classes of a confusion matrix that is drawn."""
MAX_RECALLS = 40
"""Classes whose recall is listed; of more, those with the lowest."""


@dataclass(frozen=True)
class Run:
    """A run folder as far as it can be read."""

    name: str
    info: Mapping[str, Any]
    curves: Mapping[str, list[tuple[float, float]]]
    """Points (step, value) by column of `metrics.csv`."""

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """What the run measured at its end; empty where it was not evaluated."""
        return self.info.get("evaluation") or {}


def read_runs(root: Path) -> list[Run]:
    """All runs of a workspace by name; DataError for a `run.json` or `metrics.csv` that cannot be read."""
    found = []
    for folder in sorted((root / "runs").glob("*")):
        has_info = (folder / "run.json").is_file()
        if has_info or (folder / "config.yaml").is_file():
            info = read_run(folder) if has_info else {}
            found.append(Run(folder.name, info, read_curves(folder / "metrics.csv")))
    return found


def read_curves(file: Path) -> dict[str, list[tuple[float, float]]]:
    """The columns of a `metrics.csv` by step, empty cells left out; none where there is no file."""
    found: dict[str, list[tuple[float, float]]] = {}
    if not file.is_file():
        return found
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        for number, row in enumerate(rows):
            whole = None not in row and None not in row.values()
            if not whole and number == len(rows) - 1:
                break  # A run that was killed may leave half a line.
            for name, text in row.items():
                if name != "step" and text and math.isfinite(value := float(text)):
                    found.setdefault(name, []).append((float(row["step"]), value))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"{file}: expected the metrics of a run with a column step and numbers, found: {error!r}; "
            "train the run again, or move its folder away"
        ) from None
    return found


def run_sections(runs: list[Run], prefix: str = "") -> list[Section]:
    """What all runs came to, their curves, and each evaluated one by class."""
    if not runs:
        return []
    sections = [Section(f"{prefix}runs", "", _overview(runs))]
    if curves := _curves(runs):
        sections.append(Section(f"{prefix}training", "", curves))
    by_class = [block for run in runs if run.evaluation for block in _by_class(run)]
    if by_class:
        words = "Recall of each class on held-out images, with 95 % intervals (Wilson 1927)."
        sections.append(Section(f"{prefix}classes", words, by_class))
    return sections


def _overview(runs: list[Run]) -> list[Block]:
    rows = [_row(run) for run in runs]
    columns = ["run", "stage", "state", "network", "parameters", "steps", *MEASURES.values(), "loss", "time"]
    words = (
        "Shares of held-out images, with 95 % intervals: Wilson's for top-1 and top-5, the normal "
        "approximation over the classes for the macro average. They speak of these images, not of other "
        "seeds."
    )
    blocks: list[Block] = [TableBlock(columns, rows, words, stack=True)]
    points = [
        Point(run.name, value, *_ends(run.evaluation.get("top1_interval")))
        for run in runs
        if isinstance(value := run.evaluation.get("top1"), float)
    ]
    if len(points) > 1:
        drawn = Chart("Top-1 accuracy of the runs", {"top-1": points}, ylabel="top-1", percent=True)
        blocks.append(SvgBlock(chart(drawn), "Top-1 of each run with its 95 % interval."))
    return blocks


def _row(run: Run) -> list[str]:
    summary, config = run.info.get("summary") or {}, run.info.get("config") or {}
    evaluation = run.evaluation
    steps = summary.get("num_steps") or _last_step(run)
    seconds = summary.get("seconds")
    return [
        run.name,
        str(run.info.get("stage", "-")),
        str(run.info.get("state", "not complete")),
        str((config.get("model") or {}).get("name", "-")),
        _number(summary.get("num_parameters")),
        _number(steps),
        *(
            share(evaluation[key], evaluation.get(f"{key}_interval")) if key in evaluation else "-"
            for key in MEASURES
        ),
        "-" if summary.get("loss") is None else f"{summary['loss']:.4f}",
        "-" if seconds is None else f"{seconds:,.0f} s",
    ]


def _ends(interval: Any) -> tuple[float | None, float | None]:
    return (float(interval[0]), float(interval[1])) if interval else (None, None)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"


def _last_step(run: Run) -> int | None:
    steps = [int(points[-1][0]) for points in run.curves.values() if points]
    return max(steps, default=None)


def _curves(runs: list[Run]) -> list[Block]:
    """Loss, accuracy while training, and learning rate, each run a line."""
    blocks: list[Block] = []
    for column, name, words in (
        ("loss", "loss", "Training loss by step, as it was logged: nothing is smoothed."),
        ("top1", "top-1", "Top-1 on held-out images while training."),
        ("lr", "learning rate", "The learning rate by step."),
    ):
        lines = {run.name: run.curves[column] for run in runs if len(run.curves.get(column, [])) > 1}
        if lines:
            drawn = plots.curves(lines, ylabel=name, title="")
            blocks.append(SvgBlock(drawn, words))
    return blocks


def _by_class(run: Run) -> list[Block]:
    evaluation, names = run.evaluation, run.info.get("class_names")
    blocks: list[Block] = [HeadingBlock(run.name)]
    rows = recall_rows(evaluation, names)
    if len(rows) > MAX_RECALLS:
        recalls = evaluation["per_class_recall"]
        known = [number for number, recall in enumerate(recalls) if recall is not None]
        lowest = sorted(known, key=lambda number: recalls[number])[:MAX_RECALLS]
        blocks.append(TextBlock(f"The {len(lowest)} classes of {len(rows):,} with the lowest recall."))
        rows = [rows[number] for number in lowest]
    blocks.append(TableBlock(["class", "images", "recall"], rows))
    confusion = evaluation.get("confusion")
    if confusion and len(confusion) <= MAX_CELLS:
        labels = [class_name(names, number) for number in range(len(confusion))]
        figure = plots.confusion(labels, confusion)
        blocks.append(SvgBlock(figure, f"{run.name} on held-out images: rows are true classes."))
    elif mistakes := most_confused(evaluation, names):
        words = "The most frequent mistakes."
        blocks.append(TableBlock(["class", "taken for", "images"], mistakes, words))
    return blocks
