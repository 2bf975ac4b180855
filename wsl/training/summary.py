"""The table at the end of a stage, and runs side by side."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from wsl._core import UsageError
from wsl.config import StageConfig
from wsl.training.stages import RunSummary
from wsl.workspace import read_run

Row = tuple[str, str]


def print_summary(config: StageConfig, summary: RunSummary) -> None:
    """What a stage came to, on standard error."""
    console = Console(stderr=True)
    table = Table(title=f"{config.stage}: {summary.run}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary_rows(config, summary):
        table.add_row(name, value)
    console.print(table)


def summary_rows(config: StageConfig, summary: RunSummary) -> list[Row]:
    """Names and values of the table."""
    rows: list[Row] = [
        ("network", f"{config.model.name}, {summary.num_parameters:,} parameters"),
        ("steps", f"{summary.num_steps:,} of {config.batch_size:,} images on {summary.world_size} ranks"),
        ("time", f"{summary.seconds:,.0f} s, {summary.images_per_second:,.0f} images/s"),
        ("waiting for images", f"{summary.waiting_share:.1%}"),
    ]
    if summary.peak_memory_bytes:
        rows.append(("peak memory of a rank", f"{max(summary.peak_memory_bytes) / 2**20:,.0f} MiB"))
    if summary.loss is not None:
        rows.append(("last loss", f"{summary.loss:.4f}"))
    evaluation = read_run(summary.run).get("evaluation") or {}
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("macro-averaged recall", "macro")):
        if key in evaluation:
            rows.append((name, share(evaluation[key], evaluation.get(f"{key}_interval"))))
    if summary.num_corrupt:
        rows.append(("corrupt images skipped", f"{summary.num_corrupt:,}"))
    return rows


def share(value: float, interval: Any) -> str:
    """A share with its 95 % interval: ``82.6 % (81.5 to 83.6)``."""
    if not interval:
        return f"{value:.1%}"
    return f"{value:.1%} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


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
                "config": _flat(info.get("config") or {}),
            }
        )
    return found


def differing_settings(compared: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value in each."""
    keys = sorted({key for run in compared for key in run["config"]})
    values = {key: [run["config"].get(key) for run in compared] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _last_step(run: Path) -> int | None:
    """The last step that `metrics.csv` tells of."""
    file = run / "metrics.csv"
    if not file.is_file():
        return None
    with file.open(encoding="utf-8", newline="") as lines:
        steps = [row["step"] for row in csv.DictReader(lines)]
    return int(steps[-1]) if steps and steps[-1].isdigit() else None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
