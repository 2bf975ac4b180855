"""`wsl train`, `score`, `evaluate`, `export` and `predict`: everything that runs a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.cluster import ClusterOption, ClusterOptions, choose_cluster
from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import (
    JsonOption,
    NetworkOptions,
    OverwriteOption,
    StorageOption,
    WorkspaceOption,
    grouped,
)
from wsl.training.options import TrainOptions


def register(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("score")(score)
    app.command("evaluate")(evaluate)
    app.command("export")(export)
    app.command("predict")(predict)
    app.command("compare")(compare)


@grouped
def train(
    *,
    context: typer.Context,
    options: TrainOptions,
    num_accelerators: Annotated[
        int | None, typer.Option(min=1, help="Ranks; default: one for each GPU, one on CPU.")
    ] = None,
    storage_option: StorageOption = None,
) -> int:
    """Train a stage: the same program as `deepspeed wsl/train.py`, started for you."""
    from wsl import train as program

    # `wsl --debug train` means the same as `wsl train --debug`.
    debug = options.debug or context.find_root().obj["debug"]
    return program.launch(replace(options, debug=debug), num_accelerators)


@grouped
def score(
    *,
    network: NetworkOptions,
    out: Annotated[Path | None, typer.Option(help="Folder of the predictions.")] = None,
    keep: Annotated[str, typer.Option(help="Classes kept of each image: a number, or all.")] = "all",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 256,
    cluster: ClusterOption = None,
    storage_option: StorageOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score every sample of an index with a trained network; a killed run goes on where it was."""
    from wsl.scoring import verbs

    paths = verbs.scoring_paths(network.checkpoint, network.index, out, workspace)
    kept = verbs.parse_keep(keep)
    local = {"--num-accelerators": network.num_accelerators}
    executor = choose_cluster(ClusterOptions(cluster), workspace, local=local)
    options = verbs.ScoringOptions(
        network.flip, network.temperature, batch_size, network.num_accelerators, executor
    )
    report = verbs.score(paths, keep=kept, options=options)
    if as_json:
        print_json(report)
    else:
        rate = f", {report['images_per_second']:,.0f} images/s" if report["num_scored"] else ""
        note(f"{report['num_samples']:,} samples scored in {paths.out}{rate}")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    index: Annotated[Path, typer.Option(help="Held-out index with class labels.")],
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Top-1, top-5, per-class recall and confusion of a run on held-out data."""
    from wsl.runs.compare import most_confused, recall_rows, share
    from wsl.training.evaluation import evaluate_run
    from wsl.workspace.run import read_run

    result = evaluate_run(run, index)
    if as_json:
        print_json(result.to_dict())
        return
    names = read_run(run).get("class_names")
    measures = [
        ("top-1", result.top1, result.top1_interval),
        ("top-5", result.top5, result.top5_interval),
        ("macro-averaged recall", result.macro, result.macro_interval),
    ]
    rows: list[list[object]] = [[name, share(value, interval)] for name, value, interval in measures]
    rows += [["samples", result.num_samples], ["corrupt images skipped", result.num_corrupt]]
    print_table(f"{run} on {index}, with 95 % intervals", ["measure", "value"], rows)
    print_table("recall by class", ["class", "images", "recall"], recall_rows(result.to_dict(), names))
    mistakes = most_confused(result.to_dict(), names)
    if mistakes:
        print_table("most frequent mistakes", ["class", "taken for", "images"], mistakes)


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write model.safetensors and config.json to.")],
    best: Annotated[
        bool, typer.Option("--best", help="The weights of the best evaluation (keep_best), not the last.")
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a run's weights as safetensors, the configuration that loads them, and a model card."""
    from wsl.training.export import export_run

    export_run(run, out, best=best, overwrite=overwrite)
    note(f"exported to {out}")


def predict(
    model: Annotated[Path, typer.Argument(help="Run folder or exported model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(min=1, help="Classes shown of each image.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Say the most probable classes of images."""
    from wsl.training.export import predict as predict_images

    answers = predict_images(model, images, num_best=top)
    if as_json:
        print_json(
            [
                {"image": str(image), "classes": [{"class": name, "probability": p} for name, p in classes]}
                for image, classes in zip(images, answers, strict=True)
            ]
        )
        return
    rows = [
        [str(image), name, probability]
        for image, classes in zip(images, answers, strict=True)
        for name, probability in classes
    ]
    print_table("", ["image", "class", "probability"], rows)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, complete or under way.")],
    as_json: JsonOption = False,
) -> None:
    """Show runs side by side: what they measured, and the settings in which they differ."""
    from wsl.runs.compare import compare_runs, comparison_rows, differing_settings

    found = compare_runs(runs)
    different = differing_settings(found)
    if as_json:
        print_json({"runs": found, "different": different})
        return
    columns = ["", *(str(run) for run in runs)]
    print_table("", columns, comparison_rows(found))
    if different:
        rows = [[key, *map(str, row)] for key, row in different.items()]
        print_table("settings that differ", columns, rows)
