"""The runs of a workspace: what each measured with its interval, their curves, recalls and confusions.

Everything comes from what run folders contain; no torch is loaded, and a run that is not complete is shown as
far as it came.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl._core import DataError
from wsl.figures import plots
from wsl.figures.charts import Chart, Point, chart
from wsl.figures.page import Block, Lines, Section, SvgBlock, TableBlock
from wsl.report.shares import measured
from wsl.runs.compare import class_name, most_confused
from wsl.workspace.run import read_run
from wsl.workspace.stage import STAGES, Stage

MEASURES = {"top1": "top-1", "top5": "top-5", "macro": "macro average"}
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
    def stage(self) -> Stage | None:
        """Its stage, where the folder has it."""
        found = self.info.get("stage")
        return found if found in STAGES else None

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """What the run measured at its end; empty where it was not evaluated."""
        return self.info.get("evaluation") or {}


def read_runs(root: Path) -> list[Run]:
    """All runs of a workspace in the order of the stages.

    Raises DataError for a `run.json` or `metrics.csv` that cannot be read.
    """
    found = []
    for folder in sorted((root / "runs").glob("*")):
        has_info = (folder / "run.json").is_file()
        if has_info or (folder / "config.yaml").is_file():
            info = read_run(folder) if has_info else {}
            found.append(Run(folder.name, info, read_curves(folder / "metrics.csv")))
    stages = [*STAGES, None]
    return sorted(found, key=lambda run: stages.index(run.stage))


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
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if run.evaluation.get("per_class_recall"):
            alike.setdefault(
                json.dumps([run.info.get("class_names"), run.info.get("num_labels")]), []
            ).append(run)
    by_class = [block for group in alike.values() for block in _by_class(group)]
    if by_class:
        sections.append(Section(f"{prefix}classes", "", by_class))
    return sections


def _overview(runs: list[Run]) -> list[Block]:
    rows = [_row(run) for run in runs]
    columns = [
        "run",
        "stage",
        "state",
        "network",
        "parameters",
        "steps",
        *MEASURES.values(),
        "loss",
        "seconds",
    ]
    words = (
        "Shares of held-out images, with 95 % intervals: Wilson's for top-1 and top-5, the normal "
        "approximation over the classes for the macro average. They speak of these images, not of other "
        "seeds."
    )
    blocks: list[Block] = [TableBlock(columns, rows, words, stack=True)]

    # A chart of one run compares nothing.
    points = [
        Point(run.name, value, *_ends(run.evaluation.get("top1_interval")))
        for run in runs
        if isinstance(value := run.evaluation.get("top1"), float)
    ]
    if len(points) > 1:
        drawn = Chart("Top-1 accuracy of the runs", {"top-1": points}, ylabel="top-1", percent=True)
        blocks.append(SvgBlock(chart(drawn), "Top-1 of each run with its 95 % interval."))
    return blocks


def _row(run: Run) -> list[Any]:
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
            measured(evaluation[key], evaluation.get(f"{key}_interval")) if key in evaluation else "-"
            for key in MEASURES
        ),
        "-" if summary.get("loss") is None else f"{summary['loss']:.4f}",
        "-" if seconds is None else f"{seconds:,.0f}",
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


def _by_class(runs: Sequence[Run]) -> list[Block]:
    """The recalls of runs over the same classes side by side, then what each takes for what."""
    names = runs[0].info.get("class_names")
    recalls = [run.evaluation["per_class_recall"] for run in runs]
    shown = list(range(len(recalls[0])))
    words = "Recall of each class on held-out images, with 95 % intervals (Wilson 1927)."
    if len(shown) > MAX_RECALLS:
        known = [label for label in shown if recalls[0][label] is not None]
        shown = sorted(known, key=lambda label: recalls[0][label])[:MAX_RECALLS]
        words += f" The {len(shown)} of {len(recalls[0]):,} classes where {runs[0].name} has the lowest."
    confusion = runs[0].evaluation.get("confusion")
    rows = [
        [
            class_name(names, label),
            f"{sum(confusion[label]):,}" if confusion else "-",
            *(_recall(run, label) for run in runs),
        ]
        for label in shown
    ]
    blocks: list[Block] = [TableBlock(["class", "images", *(run.name for run in runs)], rows, words)]
    return blocks + [block for run in runs for block in _mistakes(run, names)]


def _recall(run: Run, label: int) -> Lines | str:
    intervals = run.evaluation.get("per_class_interval")
    return measured(run.evaluation["per_class_recall"][label], intervals[label] if intervals else None)


def _mistakes(run: Run, names: Sequence[str] | None) -> list[Block]:
    confusion = run.evaluation.get("confusion")
    if confusion and len(confusion) <= MAX_CELLS:
        labels = [class_name(names, number) for number in range(len(confusion))]
        words = f"{run.name} on held-out images: rows are true classes."
        return [SvgBlock(plots.confusion(labels, confusion), words)]
    rows = most_confused(run.evaluation, names)
    words = f"The most frequent mistakes of {run.name}."
    return [TableBlock(["class", "taken for", "images"], rows, words)] if rows else []
