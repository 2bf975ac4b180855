"""`wsl stats`, `wsl counts`, `wsl vocabulary`, `wsl weights`: hashtags, counted, named and balanced."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from wsl._core import UsageError
from wsl.cli.cluster import ClusterOptions, choose_cluster
from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import (
    HashtagOptions,
    JsonOption,
    MemoryOptions,
    OverwriteOption,
    PlotOption,
    StorageOption,
    ThreadOptions,
    VocabularyOptions,
    check_free,
    check_plot,
    grouped,
    refuse,
)
from wsl.progress import progress, silent

if TYPE_CHECKING:
    from wsl.files.resources import Resources
    from wsl.hashtags.counting import Columns, Executor
    from wsl.hashtags.counts import HashtagCounts, ZipfFit
    from wsl.hashtags.vocabulary import Vocabulary

counts = typer.Typer(no_args_is_help=True, help="Count hashtags in parts, and join the parts.")
vocabulary = typer.Typer(no_args_is_help=True, help="Make a vocabulary: which hashtag is which label.")

CountsOption = Annotated[
    list[Path] | None, typer.Option("--counts", help="Counts made by `wsl counts`, instead of records.")
]
OF_RECORDS = ("hashtags_column", "separator", "threads", "workers")
"""Options that say how records are read, and nothing to counts that are made already."""
OF_CLUSTER = ("cluster", "cluster_dir", "cluster_group")


def register(app: typer.Typer) -> None:
    app.command("stats")(stats)
    app.add_typer(counts, name="counts")
    app.add_typer(vocabulary, name="vocabulary")
    app.command("weights")(weights)


@grouped
def stats(
    *,
    context: typer.Context,
    hashtags: HashtagOptions,
    counts: CountsOption = None,
    x_min: Annotated[
        int | None, typer.Option(min=1, help="Fit counts from here on; default: chosen.")
    ] = None,
    plot: PlotOption = None,
    top: Annotated[int, typer.Option(min=0, help="Most frequent hashtags shown.")] = 20,
    memory: MemoryOptions,
    threads: ThreadOptions,
    cluster: ClusterOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count hashtags: how many, how Zipf-like, what the head holds."""
    from wsl.hashtags.counts import fit_zipf

    # Whether the plot may be written is asked before the counting, which can take hours.
    check_plot(plot, overwrite)
    if counts:
        refuse(context, (*OF_RECORDS, *OF_CLUSTER), "with --counts no records are read")
        counted = _load(counts, hashtags, memory.resources())
    else:
        resources, local = memory.resources(threads.number), {"--threads": threads.number}
        executor = choose_cluster(
            cluster, _workspace(hashtags), memory_bytes=resources.memory_bytes, local=local
        )
        counted = _count(_sources(hashtags), _columns(hashtags), resources, executor)
    fit = fit_zipf(counted, x_min=x_min)
    if plot is not None:
        from wsl.figures import plots

        plots.save_zipf(
            plot,
            counted.multiplicities(),
            alpha=fit.alpha,
            x_min=fit.x_min,
            loglog_slope=fit.loglog_slope,
            title="Hashtags by rank",
        )
        note(f"plot: {plot}")

    # With --json standard output has JSON alone; tables are for people.
    content: dict[str, Any] = {
        "records": counted.num_records,
        "hashtags": counted.num_hashtags,
        "distinct": counted.num_distinct,
        "duplicates": counted.num_duplicates,
        "rejected": counted.rejected,
        "tags_per_record": {str(size): number for size, number in counted.tags_per_record().items()},
        "top": [list(row) for row in counted.top(top)],
        "zipf": fit.to_dict(),
    }
    if as_json:
        print_json(content)
        return
    rows = _summary(content, fit)
    print_table("hashtags", ["", ""], [[name, f"{v:,}" if isinstance(v, int) else v] for name, v in rows])
    print_table("tags of a record", ["tags", "records"], _histogram(counted.tags_per_record()))
    if top:
        print_table("most frequent", ["hashtag", "records"], content["top"])


def _histogram(sizes: dict[int, int], longest: int = 15) -> list[list[Any]]:
    """A row for each number of tags, the long tail in one."""
    rows: list[list[Any]] = [[str(size), sizes[size]] for size in sorted(sizes) if size < longest]
    rest = sum(number for size, number in sizes.items() if size >= longest)
    return [*rows, [f"{longest} and more", rest]] if rest else rows


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


@counts.command("build")
@grouped
def build_counts(
    *,
    hashtags: HashtagOptions,
    out: Annotated[Path, typer.Option(help="File to write the counts to.")],
    part: Annotated[
        str | None, typer.Option(help="I/N: count every N-th file only, from the I-th; join with merge.")
    ] = None,
    memory: MemoryOptions,
    threads: ThreadOptions,
    cluster: ClusterOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the hashtags of records, or of one part of the files, into a file."""
    from wsl.hashtags import counting

    resources, local = memory.resources(threads.number), {"--threads": threads.number}
    sources = counting.part_of(_sources(hashtags), part)
    beside = out.with_name(f"{out.name}.parts")
    workspace = _workspace(hashtags)
    limit = resources.memory_bytes
    executor = choose_cluster(cluster, workspace, memory_bytes=limit, beside=beside, local=local)
    with _counting(sources, executor) as advance:
        made = counting.build_counts(
            sources,
            _columns(hashtags),
            out,
            resources=resources,
            overwrite=overwrite,
            progress=advance,
            executor=executor,
        )
    _say_counts(out, made, as_json, files=len(sources))


@counts.command("merge")
@grouped
def merge_counts(
    *,
    parts: Annotated[list[Path], typer.Argument(help="Files of counts made by `wsl counts build`.")],
    out: Annotated[Path, typer.Option(help="File to write the joined counts to.")],
    memory: MemoryOptions,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join counts that were made apart."""
    from wsl.hashtags import counting

    made = counting.merge_counts(parts, out, resources=memory.resources(), overwrite=overwrite)
    _say_counts(out, made, as_json, parts=len(parts))


def _say_counts(out: Path, made: bool, as_json: bool, **content: int) -> None:
    state = "built" if made else "up to date"
    if as_json:
        print_json({"counts": str(out), "state": state, "bytes": out.stat().st_size, **content})
    else:
        number, of = next((number, name) for name, number in content.items())
        note(f"{out}: {state}, of {number:,} {of}, {out.stat().st_size:,} bytes")


@vocabulary.command("build")
@grouped
def build_vocabulary(
    *,
    context: typer.Context,
    hashtags: HashtagOptions,
    counts: CountsOption = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("vocabulary.parquet"),
    labels: VocabularyOptions,
    exclude_tags: Annotated[
        Path | None, typer.Option(help="Text file of hashtags to leave out, one a line.")
    ] = None,
    memory: MemoryOptions,
    threads: ThreadOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a vocabulary of records or counts, and say what it covers."""
    from wsl.hashtags.vocabulary import Vocabulary

    # Asked before the counting, which can take hours.
    check_free(out, overwrite)
    columns = _columns(hashtags)
    if counts:
        refuse(context, OF_RECORDS, "with --counts no records are read")
        sources, counted = [], _load(counts, hashtags, memory.resources())
    else:
        sources = _sources(hashtags)
        counted = _count(sources, columns, memory.resources(threads.number))

    # str.splitlines would split at other characters than newlines too.
    left_out = [] if exclude_tags is None else exclude_tags.read_text(encoding="utf-8").split("\n")
    min_count = labels.min_count or 1
    made = Vocabulary.build(
        counted,
        min_count=min_count,
        max_labels=labels.max_labels,
        wordnet=labels.wordnet,
        synsets=labels.synsets,
        exclude=[tag for tag in left_out if tag.strip()],
    )
    coverage = made.coverage
    if not len(made):
        raise UsageError(f"no hashtag is on --min-count {min_count} records; lower it")

    # Counts do not know which tags are on one record, so the share of records needs the records once more.
    covered = None
    if sources:
        with progress("cover", total=counted.num_records, unit="records") as advance:
            _, covered = made.cover(
                sources,
                hashtags_column=columns.hashtags,
                separator=columns.separator,
                progress=advance,
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    made.write(out)
    content: dict[str, Any] = {
        "vocabulary": str(out),
        "fingerprint": made.fingerprint,
        "labels": len(made),
        "records": counted.num_records,
        "covered_records": covered,
    }
    if coverage is not None:
        for name in ("all", "covered", "matched", "ambiguous"):
            share = getattr(coverage, name)
            content[f"{name}_tags"], content[f"{name}_hashtags"] = share.num_tags, share.num_hashtags
    if as_json:
        print_json(content)
    else:
        _show_vocabulary(made, content, merged=labels.wordnet is not None)


def _show_vocabulary(made: Vocabulary, content: dict[str, Any], merged: bool) -> None:
    """The numbers, and the labels that the most tags were merged into."""
    rows = [["labels", content["labels"]], ["records", content["records"]]]
    if content["covered_records"] is not None:
        rows.append(["records with a label", _part(content["covered_records"], content["records"])])
    for name in ("covered", "matched", "ambiguous"):
        if name == "covered" or merged:
            rows.append([f"hashtags {name}", _part(content[f"{name}_hashtags"], content["all_hashtags"])])
            rows.append([f"tags {name}", _part(content[f"{name}_tags"], content["all_tags"])])
    print_table(
        content["vocabulary"], ["", ""], [[n, f"{v:,}" if isinstance(v, int) else v] for n, v in rows]
    )
    if merged:
        import polars as pl

        table = made.table().with_columns(pl.col("tags").list.len().alias("number"))
        largest = table.filter(pl.col("number") > 1).sort("number", "tag_count", descending=True).head(10)
        lines = [
            [row["name"], row["synset"], row["tag_count"], ", ".join(row["tags"][:6])]
            for row in largest.iter_rows(named=True)
        ]
        print_table("most tags merged", ["label", "synset", "hashtags", "tags"], lines)


def weights(
    context: typer.Context,
    index: Annotated[Path, typer.Argument(help="Folder of an index with labels.")],
    scheme: Annotated[
        Literal["natural", "square-root", "uniform", "clip"] | None,
        typer.Option(
            help="How often an epoch shows rare labels, or (clip) frequent ones; default: square-root."
        ),
    ] = None,
    balance: Annotated[Literal["repeat", "clip"] | None, typer.Option(hidden=True)] = None,
    threshold: Annotated[
        float | None, typer.Option(help="t: labels on a smaller share of the samples are repeated.")
    ] = None,
    epoch_length: Annotated[
        float | None, typer.Option(help="Solve t for an epoch of so many samples instead.")
    ] = None,
    plot: PlotOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repeat factors: how often an epoch shows each sample, and what that does to the labels."""
    from wsl.index import sampling as balancing
    from wsl.index.mapped import Index
    from wsl.index.sampling import repeat_factors

    check_plot(plot, overwrite)
    opened = Index.open(index)
    name = _scheme(scheme, balance)
    if name == "natural":
        refuse(context, ("threshold", "epoch_length"), "natural sampling shows every sample once")
    factors = repeat_factors(opened, scheme=name, threshold=threshold, epoch_length=epoch_length)
    found = balancing.balance(opened, factors)
    if plot is not None:
        from wsl.figures import plots

        plots.save_balance(
            plot, found.before.tolist(), found.after.tolist(), title=f"Labels, {name} sampling"
        )
        note(f"plot: {plot}")
    if as_json:
        print_json({"index": str(index), "scheme": name, **found.to_dict()})
        return
    rows = [[text, _number(text, before), _number(text, after)] for text, before, after in found.rows()]
    rows.append(["largest factor", "1", f"{found.largest_factor:,.2f}"])
    print_table(f"{index}: {name} sampling", ["", "once each", "resampled"], rows)


def _scheme(
    scheme: Literal["natural", "square-root", "uniform", "clip"] | None,
    balance: Literal["repeat", "clip"] | None,
) -> Literal["natural", "square-root", "uniform", "clip"]:
    """The scheme, which --balance named in part before; UsageError where the two disagree."""
    if balance is None:
        return scheme or "square-root"
    if scheme is not None and (scheme == "clip") != (balance == "clip"):
        raise UsageError(
            f"--balance {balance} and --scheme {scheme} disagree: there is one choice, --scheme natural, "
            "square-root, uniform or clip"
        )
    return scheme or ("clip" if balance == "clip" else "square-root")


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.startswith("held") else f"{value:,.1f}"


def _part(number: int, of: int) -> str:
    return f"{number:,} ({number / of:.1%})" if of else f"{number:,}"


def _columns(hashtags: HashtagOptions) -> Columns:
    from wsl.hashtags.counting import Columns

    return Columns(hashtags.hashtags_column or Columns().hashtags, hashtags.separator)


def _workspace(hashtags: HashtagOptions) -> Path | None:
    """The workspace whose stores and cluster hold: that of --workspace, or the one that is counted.

    UsageError where two are named.
    """
    from wsl.workspace.layout import WORKSPACE_FILE

    target, named = hashtags.target, hashtags.workspace
    if target is None or not (target / WORKSPACE_FILE).is_file():
        return named
    if named is not None and named.resolve() != target.resolve():
        raise UsageError(f"{target} and --workspace {named}: two workspaces are named; give one of them")
    return target


def _sources(hashtags: HashtagOptions) -> list[str]:
    """The record files that are counted.

    Where neither records nor a place is named they are those of the workspace, or of the index that the
    command is started in.
    """
    from wsl.index.sources import sources_of
    from wsl.workspace.layout import ENVIRONMENT

    workspace = _workspace(hashtags)
    target = hashtags.target
    if target is None and not hashtags.records:
        target = workspace or Path(os.environ.get(ENVIRONMENT) or ".")
    return sources_of(target, hashtags.records or [])


def _load(files: list[Path], hashtags: HashtagOptions, resources: Resources) -> HashtagCounts:
    """Counts of files."""
    from wsl.hashtags import counting

    if hashtags.target is not None or hashtags.records or hashtags.workspace is not None:
        raise UsageError("--counts: give either counts or records, not both")
    return counting.load_counts(files, resources=resources)


def _count(
    sources: list[str],
    columns: Columns,
    resources: Resources,
    executor: Executor | None = None,
) -> HashtagCounts:
    """Counts of records."""
    from wsl.hashtags import counting

    with _counting(sources, executor) as advance:
        return counting.count_sources(
            sources, columns, resources=resources, progress=advance, executor=executor
        )


def _counting(
    sources: list[str], executor: Executor | None
) -> AbstractContextManager[Callable[[int], object]]:
    """The progress line of a count; an executor shows its own."""
    from wsl.files.tables import expected_rows

    if executor is not None:
        return nullcontext(silent)
    return progress("count", total=expected_rows(sources), unit="records")
