"""`wsl init` and `wsl shards`: workspaces, packing images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsl.cli.console import note, print_json
from wsl.cli.options import JsonOption, OverwriteOption, refuse
from wsl.progress import progress

DATASETS = ("fashion-mnist", "openclipart", "none")

shards = typer.Typer(no_args_is_help=True, help="Make tar shards.")


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.add_typer(shards, name="shards")


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the workspace.")] = Path(),
    dataset: Annotated[str, typer.Option(help="fashion-mnist, openclipart or none.")] = "fashion-mnist",
    source: Annotated[
        Path | None, typer.Option(help="The full data set in its original files, instead of the carried one.")
    ] = None,
    num_labelled: Annotated[
        int, typer.Option(min=1, help="fashion-mnist: labelled images, the same number of each class.")
    ] = 500,
    num_unlabelled: Annotated[
        int | None, typer.Option(min=1, help="fashion-mnist: so many unlabelled images; default: all.")
    ] = None,
    num_test: Annotated[
        int | None, typer.Option(min=1, help="fashion-mnist: so many test images; default: all.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a workspace: tar shards, records, configs and wsl.yaml."""
    from wsl import carried
    from wsl._core import UsageError

    if dataset not in DATASETS:
        raise UsageError(f"--dataset {dataset}: expected one of {', '.join(DATASETS)}")

    # Options without effect are refused, since who gives one expects something of it.
    if dataset != "fashion-mnist":
        refuse(context, ["num_labelled"], f"this is for --dataset fashion-mnist, and not for {dataset}")
    if dataset == "none":
        refuse(context, ["source"], "with --dataset none no data are laid out")
    written = carried.make_workspace(
        folder,
        dataset,
        source=source,
        num_labelled=num_labelled,
        num_unlabelled=num_unlabelled,
        num_test=num_test,
        overwrite=overwrite,
    )
    if not written:
        note(f"{folder}: up to date")
        return
    note(f"{folder}: a workspace with {len(written):,} new files")
    if dataset == "openclipart":
        note("next: wsl index build && wsl train --stage pretrain && wsl train --stage finetune")
    elif dataset == "fashion-mnist":
        note("next: wsl index build && wsl train --stage teacher && wsl pseudolabel --k 2000 --p 10")
        note("then: deepspeed wsl/train.py --stage student   (or: wsl train --stage student)")


@shards.command("pack")
def pack(
    folder: Annotated[Path, typer.Argument(help="ImageFolder tree: one folder for each class.")],
    out: Annotated[Path, typer.Option(help="Folder for the shards and classes.txt.")] = Path("data"),
    name: Annotated[str | None, typer.Option(help="What shards are called; default: as FOLDER.")] = None,
    max_shard_mib: Annotated[int, typer.Option(min=1, help="Largest shard, in MiB.")] = 1024,
    max_shard_samples: Annotated[int | None, typer.Option(min=1, help="Most images of a shard.")] = None,
    seed: Annotated[int | None, typer.Option(help="Shuffle the images over the shards.")] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pack an ImageFolder tree into tar shards with class labels."""
    from wsl.index.shards import pack_shards

    with progress("pack", unit="images") as advance:
        paths = pack_shards(
            folder,
            out,
            name=name,
            max_shard_bytes=max_shard_mib << 20,
            max_shard_samples=max_shard_samples,
            seed=seed,
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        print_json({"shards": [str(path) for path in paths], "classes": str(out / "classes.txt")})
    else:
        note(f"{len(paths):,} shards in {out}")
