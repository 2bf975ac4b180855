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
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a workspace as one self-contained page: runs, curves, hashtags, selection."""
    from wsl._core import UsageError
    from wsl.demo.page import workspace_page
    from wsl.report.page import write
    from wsl.workspace import Workspace

    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists already; pass --overwrite to replace it, or --out FILE")
    write(out, workspace_page(Workspace.find(workspace).root))
    note(f"report: {out}")
