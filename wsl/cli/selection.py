"""`wsl pseudolabel`: the top-K/top-P selection over the teacher's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.console import note, print_json, print_table, progress
from wsl.cli.options import JsonOption, OverwriteOption, WorkspaceOption

app = typer.Typer(
    invoke_without_command=True,
    help="Select the K best images of every class and the P best classes of every image.",
)

KOption = Annotated[int | None, typer.Option("--k", help="Images kept of each class.")]
POption = Annotated[int | None, typer.Option("--p", help="Classes kept of each image.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="pseudolabel")


@app.callback(invoke_without_command=True)
def pseudolabel(
    context: typer.Context,
    k: KOption = None,
    p: POption = None,
    order: Annotated[str, typer.Option(help="class-first or image-first.")] = "class-first",
    predictions: Annotated[str | None, typer.Option(help="Glob of predictions; scores nothing.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Teacher; default: the newest teacher.")] = None,
    index: Annotated[Path | None, typer.Option(help="Index to score; default: the unlabelled one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output; default: pseudolabels.parquet.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Also save the selection's state, to merge parts.")
    ] = None,
    flip: Annotated[bool, typer.Option(help="Average scores over the mirror image.")] = True,
    allow_truncated: Annotated[
        bool, typer.Option(help="Accept predictions that may lack classes which matter.")
    ] = False,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select pseudo-labels; the teacher scores first where predictions are missing."""
    if context.invoked_subcommand is not None:
        return
    from wsl import pseudolabels
    from wsl._core import UsageError

    if k is None or p is None:
        raise UsageError(
            "--k and --p are needed: 'wsl pseudolabel --k 8000 --p 10' keeps the 8,000 best "
            "images of every class and at most 10 classes of an image"
        )
    request = pseudolabels.SelectionRequest(
        k=k,
        p=p,
        order=order,
        predictions=predictions,
        checkpoint=checkpoint,
        index=index,
        out=out,
        state=state,
        allow_truncated=allow_truncated,
        flip=flip,
        overwrite=overwrite,
    )
    with progress("select", unit="images") as advance:
        report = pseudolabels.select(request, workspace, progress=advance, warn=_warn)
    _show(report, as_json)


@app.command("merge")
def merge(
    parts: Annotated[list[Path], typer.Argument(help="States saved with --state.")],
    out: Annotated[Path, typer.Option(help="File of pseudo-labels to write.")],
    index: Annotated[Path | None, typer.Option(help="The index that was scored, for the keys.")] = None,
    k: KOption = None,
    p: POption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join the states of parts scored apart; the result is the same however the work was split."""
    from wsl import pseudolabels

    _show(pseudolabels.merge_states(parts, out, index, k=k, p=p, overwrite=overwrite, warn=_warn), as_json)


def _warn(text: str) -> None:
    note(f"warning: {text}")


def _show(report: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    note(f"{report['state']}: {report['num_pairs']:,} pseudo-labels in {report['out']}")
    rows = report.get("classes")
    if isinstance(rows, list) and rows:
        shown = rows[:20]
        print_table(
            "selected by class" + (f" (first 20 of {len(rows):,})" if len(rows) > 20 else ""),
            ["class", "before the P cut", "after"],
            [[row["class"], row["before"], row["after"]] for row in shown],
        )
