"""`wsl pseudolabel`: the top-K/top-P selection over the teacher's predictions."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from wsl._core import UsageError
from wsl.cli.cluster import ClusterOptions, choose_cluster
from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import (
    JsonOption,
    MemoryOptions,
    NetworkOptions,
    OverwriteOption,
    PlotOption,
    StorageOption,
    ThreadOptions,
    WorkspaceOption,
    check_plot,
    flags_given,
    grouped,
    refuse,
)
from wsl.progress import progress, silent

app = typer.Typer(
    invoke_without_command=True,
    help="Select the K best images of every class and the P best classes of every image.",
)

KOption = Annotated[int | None, typer.Option("--k", help="Images kept of each class.")]
SHOWN = 20
"""Classes in the table."""

POption = Annotated[int | None, typer.Option("--p", help="Classes kept of each image.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="pseudolabel")


@app.callback(invoke_without_command=True)
@grouped
def pseudolabel(
    *,
    context: typer.Context,
    k: KOption = None,
    p: POption = None,
    order: Annotated[str, typer.Option(help="class-first or image-first.")] = "class-first",
    predictions: Annotated[str | None, typer.Option(help="Glob of predictions; scores nothing.")] = None,
    network: NetworkOptions,
    out: Annotated[str | None, typer.Option(help="Output; default: pseudolabels.parquet.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Also save the selection's state, to merge parts.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Keep predictions too: classes of each image, or all; default: the state alone."),
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option(help="Accept predictions that may lack classes which matter.")
    ] = False,
    compare_orders: Annotated[
        bool, typer.Option(help="Say how far the two orders agree, also where that takes a second selection.")
    ] = False,
    truth: Annotated[
        Path | None, typer.Option(help="Table of true classes by sample or key: precision by class.")
    ] = None,
    truth_column: Annotated[str, typer.Option(help="Its column with the class, a number or name.")] = "label",
    plot: PlotOption = None,
    memory: MemoryOptions,
    threads: ThreadOptions,
    cluster: ClusterOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Select pseudo-labels; the teacher scores first where predictions are missing."""
    if context.invoked_subcommand is not None:
        _refuse_before(context, context.invoked_subcommand)
        return
    from wsl.files import stores
    from wsl.scoring import pseudolabels
    from wsl.scoring.request import SelectionRequest
    from wsl.scoring.verbs import ScoringOptions

    if k is None or p is None:
        raise UsageError(
            "--k and --p are needed: 'wsl pseudolabel --k 8000 --p 10' keeps the 8,000 best "
            "images of every class and at most 10 classes of an image"
        )

    # Options without effect are refused, since who gives one expects something of it.
    if predictions is not None:
        scoring_alone = ("checkpoint", "keep", "flip", "temperature", "num_accelerators")
        refuse(context, scoring_alone, "with --predictions nothing is scored")
    if truth is None:
        refuse(context, ["truth_column"], "there is no --truth FILE that the column could be of")
    check_plot(plot, overwrite)
    resources = memory.resources(threads.number)
    beside = None if out is None or stores.is_remote(out) else Path(f"{out}.parts")
    local = {"--threads": threads.number, "--num-accelerators": network.num_accelerators}
    executor = choose_cluster(
        cluster, workspace, memory_bytes=resources.memory_bytes, beside=beside, local=local
    )
    if cluster.cluster_group is not None and predictions is None and keep is None:
        note(
            "--cluster-group is for files of predictions; images that are scored now are divided by "
            "cluster.group_samples in wsl.yaml"
        )

    # What the options contradict in one another is checked with the request, for callers of Python too.
    request = SelectionRequest(
        k=k,
        p=p,
        order=order,
        predictions=predictions,
        checkpoint=network.checkpoint,
        index=network.index,
        out=None if out is None else stores.as_place(out),
        state=state,
        keep=keep,
        scoring=ScoringOptions(
            network.flip,
            network.temperature,
            num_accelerators=network.num_accelerators,
            executor=executor,
        ),
        allow_truncated=allow_truncated,
        compare_orders=compare_orders,
        truth=truth,
        truth_column=truth_column,
        resources=resources,
        overwrite=overwrite,
    )
    # A cluster has a line of its own.
    with progress("select", unit="rows") if executor is None else nullcontext(silent) as advance:
        report = pseudolabels.select(request, workspace, progress=advance, warn=_warn)
    _show(report, as_json, plot)


def _refuse_before(context: typer.Context, command: str) -> None:
    """UsageError for options of `wsl pseudolabel` that stand before a command of its own."""
    flags = flags_given(context, context.params)
    if flags:
        raise UsageError(
            f"{', '.join(flags)}: options of '{command}' come after it: "
            f"wsl pseudolabel {command} ... {flags[0]}"
        )


@app.command("merge")
@grouped
def merge(
    *,
    parts: Annotated[list[Path], typer.Argument(help="States saved with --state.")],
    out: Annotated[str, typer.Option(help="File of pseudo-labels to write.")],
    index: Annotated[Path | None, typer.Option(help="The index that was scored, for the keys.")] = None,
    k: KOption = None,
    p: POption = None,
    plot: PlotOption = None,
    memory: MemoryOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Join the states of parts scored apart; the result is the same however the work was split."""
    from wsl.files import stores
    from wsl.scoring import pseudolabels

    check_plot(plot, overwrite)
    report = pseudolabels.merge_states(
        parts,
        stores.as_place(out),
        index,
        k=k,
        p=p,
        resources=memory.resources(),
        overwrite=overwrite,
        warn=_warn,
    )
    _show(report, as_json, plot)


def _warn(text: str) -> None:
    note(f"warning: {text}")


def _show(report: dict[str, Any], as_json: bool, plot: Path | None) -> None:
    rows = report["classes"]
    if plot is not None:
        from wsl.figures.plots import save_selection

        save_selection(plot, rows, report["images_by_classes"])

    # With --json standard output has JSON alone.
    if as_json:
        print_json(report)
        return
    note(
        f"{report['state']}: {report['num_pairs']:,} pseudo-labels on {report['num_images']:,} images in "
        f"{report['out']}"
    )
    has_truth = "precision" in report
    columns = ["class", "wanted", "taken", "after the P cut", "lowest probability"]
    shown = [
        [row["class"], row["wanted"], row["before"], row["after"], row["lowest_probability"]]
        + ([row["precision"]] if has_truth else [])
        for row in rows[:SHOWN]
    ]
    title = "selected by class" + (f" (first {SHOWN} of {len(rows):,})" if len(rows) > SHOWN else "")
    print_table(title, columns + ["precision"] * has_truth, [[_dash(cell) for cell in row] for row in shown])
    print_table(
        "images by the number of classes that they serve",
        ["classes", "images"],
        [[int(number), images] for number, images in report["images_by_classes"].items()],
    )
    if report["num_missing"]:
        note(f"{report['num_short_classes']:,} classes are short of K, by {report['num_missing']:,} images")
    if report.get("num_dropped"):
        note(f"{report['num_dropped']:,} scored images were left out: they were taken down (wsl index drop)")
    if report["agreement_of_orders"] is not None:
        note(f"class-first and image-first agree on {report['agreement_of_orders']:.1%} of the pairs")
    if has_truth:
        note(
            f"precision {_percent(report['precision'])} on {report['num_pairs_of_known_truth']:,} pairs of "
            "known truth"
        )


def _dash(cell: Any) -> Any:
    return "-" if cell is None else cell


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"
