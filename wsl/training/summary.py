"""The table at the end of a stage."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from wsl.runs.compare import share
from wsl.training.stages import RunSummary
from wsl.workspace.run import read_run
from wsl.workspace.stage import StageConfig

Row = tuple[str, str]


def print_summary(config: StageConfig, summary: RunSummary) -> None:
    """What a stage came to, on standard error."""
    console = Console(stderr=True)
    console.print(f"{config.stage}: {summary.run}", soft_wrap=True, highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
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
        rows.append(("corrupt images replaced", f"{summary.num_corrupt:,}"))
    return rows
