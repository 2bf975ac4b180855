"""`wsl report`: a workspace as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.console import note
from wsl.cli.options import OverwriteOption, WorkspaceOption


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("report.html"),
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Table of the true classes of selected images: key or sample, and class; "
            "default: data/truth.parquet, where it is there."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a workspace as one self-contained page: every step's figures, sample images, studies."""
    from wsl._core import UsageError
    from wsl.figures.page import write
    from wsl.report.workspace import workspace_page

    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; pass --overwrite to replace it, or --out FILE")
    write(out, workspace_page(workspace, out, truth))
    note(f"report: {out}")
