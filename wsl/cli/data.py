"""`wsl init`, `wsl stats` and `wsl shards`: workspaces, hashtag statistics, packing images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsl.cli.console import note, print_json, print_table, progress
from wsl.cli.options import HashtagsColumnOption, JsonOption, OverwriteOption

DATASETS = ("fashion-mnist", "openclipart", "none")

if TYPE_CHECKING:
    from wsl.hashtags import ZipfFit

shards = typer.Typer(no_args_is_help=True, help="Make tar shards.")


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.command("stats")(stats)
    app.add_typer(shards, name="shards")


def init(
    folder: Annotated[Path, typer.Argument(help="Folder of the workspace.")] = Path(),
    dataset: Annotated[str, typer.Option(help="fashion-mnist, openclipart or none.")] = "fashion-mnist",
    source: Annotated[
        Path | None, typer.Option(help="The full data set in its original files, instead of the carried one.")
    ] = None,
    num_labelled: Annotated[
        int, typer.Option(min=1, help="fashion-mnist: labelled images, the same number of each class.")
    ] = 500,
    overwrite: OverwriteOption = False,
) -> None:
    """Make a workspace: tar shards, records, configs and wsl.yaml."""
    from wsl import carried
    from wsl._core import UsageError

    if dataset not in DATASETS:
        raise UsageError(f"--dataset {dataset}: expected one of {', '.join(DATASETS)}")
    written = carried.make_workspace(
        folder, dataset, source=source, num_labelled=num_labelled, overwrite=overwrite
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


def stats(
    target: Annotated[Path | None, typer.Argument(help="A workspace, or an index over hashtags.")] = None,
    records: Annotated[list[str] | None, typer.Option(help="Glob of hashtag records.")] = None,
    hashtags_column: HashtagsColumnOption = "hashtags",
    separator: Annotated[
        str | None, typer.Option(help="Where a text column is split; default: white space.")
    ] = None,
    x_min: Annotated[
        int | None, typer.Option(min=1, help="Fit counts from here on; default: chosen.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the Zipf plot here (.svg, .png, .pdf).")] = None,
    top: Annotated[int, typer.Option(min=0, help="Most frequent hashtags shown.")] = 20,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count hashtags: how many, how Zipf-like, what the head holds."""
    from wsl import fit_zipf, pipeline
    from wsl._core import UsageError

    if target is None and not records:
        target = Path()
    if plot is not None and plot.suffix not in (".svg", ".png", ".pdf"):
        raise UsageError(f"--plot {plot}: expected a name that ends in .svg, .png or .pdf")
    if plot is not None and plot.exists() and not overwrite:
        raise UsageError(f"--plot {plot}: the file exists already; pass --overwrite to replace it")
    with progress("count", unit="records") as advance:
        counts = pipeline.count_records(target, records or [], hashtags_column, separator, advance)
    fit = fit_zipf(counts, x_min=x_min)
    table = counts.table()
    if plot is not None:
        from wsl.report import plots

        plots.save_zipf(
            plot,
            table["count"].to_list(),
            alpha=fit.alpha,
            x_min=fit.x_min,
            loglog_slope=fit.loglog_slope,
            title="Hashtags by rank",
        )
        note(f"plot: {plot}")
    content = {
        "records": counts.num_records,
        "hashtags": counts.num_hashtags,
        "distinct": counts.num_distinct,
        "duplicates": counts.num_duplicates,
        "rejected": counts.rejected,
        "tags_per_record": {str(size): number for size, number in counts.tags_per_record().items()},
        "top": [[tag, count] for tag, count in table.head(top).iter_rows()],
        "zipf": fit.to_dict(),
    }
    if as_json:
        print_json(content)
        return
    rows = _summary(content, fit)
    print_table("hashtags", ["", ""], [[name, f"{v:,}" if isinstance(v, int) else v] for name, v in rows])
    if top:
        print_table(
            "most frequent", ["hashtag", "records"], [list(row) for row in table.head(top).iter_rows()]
        )


def _summary(content: dict[str, Any], fit: ZipfFit) -> list[list[object]]:
    """The rows of the table: what was counted, the fit, the head."""
    rows: list[list[object]] = [
        [name, content[name]] for name in ("records", "hashtags", "distinct", "duplicates")
    ]
    rows += [[f"rejected: {cause}", number] for cause, number in content["rejected"].items() if number]
    rows += [
        ["alpha", f"{fit.alpha:.4f} ± {fit.standard_error:.4f}"],
        ["x_min", fit.x_min],
        ["Kolmogorov-Smirnov distance", f"{fit.ks_distance:.4f}"],
        ["rank exponent 1/(alpha-1)", f"{fit.rank_exponent:.4f}"],
        ["log-log slope", f"{fit.loglog_slope:.4f}"],
    ]
    rows += [[f"the {head:,} most frequent hold", f"{share:.1%}"] for head, share in fit.head_shares.items()]
    rows += [[f"{share:.0%} are held by", f"{size:,} hashtags"] for share, size in fit.head_sizes.items()]
    return rows


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
    from wsl import pack_shards

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
