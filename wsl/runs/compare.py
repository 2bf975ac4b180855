"""Runs side by side, from what their folders contain; no torch is loaded."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsl._core import UsageError
from wsl.workspace.run import read_run
from wsl.workspace.settings import flat


def share(value: float, interval: Any) -> str:
    """A share with its 95 % interval: ``82.6 % (81.5 to 83.6)``."""
    if not interval:
        return f"{value:.1%}"
    return f"{value:.1%} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def recall_rows(evaluation: Mapping[str, Any], names: Sequence[str] | None) -> list[list[Any]]:
    """For each class its name, its number of images (where known) and its recall with the interval."""
    rows: list[list[Any]] = []
    intervals, confusion = evaluation.get("per_class_interval"), evaluation.get("confusion")
    for number, recall in enumerate(evaluation["per_class_recall"]):
        interval = intervals[number] if intervals else None
        shown = "-" if recall is None else share(recall, interval)
        rows.append([class_name(names, number), sum(confusion[number]) if confusion else "-", shown])
    return rows


def most_confused(
    evaluation: Mapping[str, Any], names: Sequence[str] | None, num: int = 10
) -> list[list[Any]]:
    """The cells off the diagonal of the confusion matrix with most images: class, taken for, images."""
    cells = [
        (count, label, other)
        for label, row in enumerate(evaluation.get("confusion") or [])
        for other, count in enumerate(row)
        if count and label != other
    ]
    best = sorted(cells, key=lambda cell: (-cell[0], cell[1], cell[2]))[:num]
    return [[class_name(names, label), class_name(names, other), count] for count, label, other in best]


def class_name(names: Sequence[str] | None, number: int) -> str:
    """The name of a class, or its number."""
    return names[number] if names and number < len(names) else str(number)


def compare_runs(runs: list[Path]) -> list[dict[str, Any]]:
    """What each run measured and which settings it has; UsageError for a folder that is no run."""
    found = []
    for run in runs:
        if not (run / "run.json").is_file():
            raise UsageError(f"{run} is no run: it has no run.json; name folders such as runs/teacher")
        info = read_run(run)
        summary, evaluation = info.get("summary") or {}, info.get("evaluation") or {}
        kept = ("num_steps", "num_parameters", "seconds", "images_per_second", "waiting_share", "world_size")
        measured = ("top1", "top1_interval", "top5", "top5_interval", "macro", "macro_interval")
        found.append(
            {
                "run": str(run),
                "stage": info.get("stage"),
                "state": info.get("state"),
                "step": _last_step(run),
                "loss": summary.get("loss"),
                "peak_memory_bytes": max(summary.get("peak_memory_bytes") or [0]) or None,
                **{key: summary.get(key) for key in kept},
                **{key: evaluation.get(key) for key in measured},
                "config": flat(info.get("config") or {}),
            }
        )
    return found


def comparison_rows(compared: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of the table: a measure, and its value in each run."""

    def row(name: str, show: Any) -> list[str]:
        return [name, *(show(run) for run in compared)]

    def number(key: str, form: str = ",") -> Any:
        return lambda run: "-" if run[key] is None else format(run[key], form)

    def measure(key: str) -> Any:
        return lambda run: "-" if run[key] is None else share(run[key], run[f"{key}_interval"])

    return [
        row("stage", lambda run: str(run["stage"])),
        row("state", lambda run: str(run["state"])),
        row("network", lambda run: str(run["config"].get("model.name", "-"))),
        row("parameters", number("num_parameters")),
        row("step", number("step")),
        row("loss", number("loss", ".4f")),
        row("top-1", measure("top1")),
        row("top-5", measure("top5")),
        row("macro-averaged recall", measure("macro")),
        row("ranks", number("world_size")),
        row("images/s", number("images_per_second", ",.0f")),
        row("waiting for images", number("waiting_share", ".1%")),
        row("seconds", number("seconds", ",.0f")),
        row("peak memory, MiB", lambda run: _mebibytes(run["peak_memory_bytes"])),
    ]


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f}"


def differing_settings(compared: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value in each."""
    keys = sorted({key for run in compared for key in run["config"]})
    values = {key: [run["config"].get(key) for run in compared] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _last_step(run: Path) -> int | None:
    """The last step in `metrics.csv`."""
    file = run / "metrics.csv"
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", newline="") as lines:
        steps = [row["step"] for row in csv.DictReader(lines)]
    return int(steps[-1]) if steps and steps[-1].isdigit() else None
