"""`wsl index`: build an index over tar shards, look into it, verify it, take samples down, export it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsl._core import UsageError
from wsl.cli.cluster import ClusterOptions, choose_cluster
from wsl.cli.console import note, print_json, print_table
from wsl.cli.options import (
    HashtagsColumnOption,
    JsonOption,
    MemoryOptions,
    OverwriteOption,
    SeparatorOption,
    StorageOption,
    ThreadOptions,
    VocabularyOptions,
    WorkspaceOption,
    grouped,
)
from wsl.progress import progress, silent

if TYPE_CHECKING:
    from wsl.index.overlay import Job

app = typer.Typer(no_args_is_help=True, help="Build, inspect and verify the index over tar shards.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="index")


@dataclass(frozen=True)
class IndexSettings:
    """Settings of an index, which stand in for those that wsl.yaml has; absent ones are as it has them."""

    label_kind: Annotated[str | None, typer.Option(help="hashtag or class; default: none.")] = None
    key_column: Annotated[str | None, typer.Option(help="Column with the record's key; default: key.")] = None
    hashtags_column: HashtagsColumnOption = None
    separator: SeparatorOption = None
    key_scope: Annotated[
        str | None, typer.Option(help="global (the default), or shard: keys begin anew in every shard.")
    ] = None
    shard_column: Annotated[
        str | None, typer.Option(help="Column of the records that names their shard, in scope shard.")
    ] = None
    key_format: Annotated[
        str | None, typer.Option(help="How integer keys are written as names, such as '{:09d}'.")
    ] = None
    vocabulary: Annotated[Path | None, typer.Option(help="Use this vocabulary.parquet.")] = None
    include: Annotated[Path | None, typer.Option(help="Text file of the only keys to take.")] = None
    exclude: Annotated[Path | None, typer.Option(help="Text file of keys to leave out.")] = None


@app.command("build")
@grouped
def build(
    *,
    name: Annotated[str | None, typer.Argument(help="One index of wsl.yaml; default: all.")] = None,
    shards: Annotated[
        list[str] | None, typer.Option(help="Glob of tar shards (no workspace needed).")
    ] = None,
    records: Annotated[
        str | None, typer.Option(help="Glob of hashtag records (no workspace needed).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the index; needed with --shards and --records.")
    ] = None,
    options: IndexSettings,
    labels: VocabularyOptions,
    limit: Annotated[
        list[str] | None,
        typer.Option(help="CAUSE=SHARE above which the build is refused, such as keys_doubled=0.01."),
    ] = None,
    memory: MemoryOptions,
    threads: ThreadOptions,
    cluster: ClusterOptions,
    overwrite: OverwriteOption = False,
    storage_option: StorageOption = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the hashtags, make the vocabulary, write the index: all of the workspace, or one.

    Options of an index are used in place of its settings in wsl.yaml. Paths of options start at the current
    folder. Where several indexes are built, an option is used for each index that it can change.
    """
    from wsl.index import jobs

    given = {key: value for key, value in (vars(options) | vars(labels)).items() if value is not None}
    if limit:
        given["limits"] = _shares(limit)

    # All options are checked against all indexes before the first one is built.
    to_build = _to_build(name, shards, records, out, given, workspace)
    resources = memory.resources(threads.number)
    beside = None if out is None else out.with_name(f"{out.name}.parts")
    local = {"--threads": threads.number}
    executor = choose_cluster(
        cluster, workspace, memory_bytes=resources.memory_bytes, beside=beside, local=local
    )
    built = []
    for job_name, path, settings, root in to_build:
        # A cluster has a line of its own.
        line = progress(f"index {job_name}", unit="shards") if executor is None else nullcontext(silent)
        with line as advance:
            result = jobs.build_one_index(
                path,
                settings,
                root,
                resources=resources,
                overwrite=overwrite,
                progress=advance,
                executor=executor,
            )
        note(f"index {job_name}: {result.state}, {len(result.index):,} samples in {path}")
        built.append({"name": job_name, "path": str(path), "state": result.state, **result.index.info()})
    if as_json:
        print_json(built)


def _to_build(
    name: str | None,
    shards: list[str] | None,
    records: str | None,
    out: Path | None,
    given: dict[str, Any],
    workspace: Path | None,
) -> list[Job]:
    """The indexes to build: that of --shards and --records, or those of the workspace."""
    from wsl.index import jobs
    from wsl.index.overlay import alone, overlay
    from wsl.workspace.layout import Workspace

    if not shards and not records:
        return overlay(jobs.index_jobs(Workspace.find(workspace), name), given, out)
    if out is None:
        raise UsageError("--shards and --records need --out DIR, the folder of the index to write")
    if name is not None:
        raise UsageError(f"give either an index of the workspace ({name}) or --shards, not both")
    if not shards:
        given = {"label_kind": "hashtag"} | given
    return [(out.name, out, alone(given, shards=shards, records=records), Path.cwd())]


@app.command("info")
def info(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in an index."""
    from wsl.index.mapped import Index

    content = Index.open(index).info()
    if as_json:
        print_json(content)
    else:
        print_table(str(index), ["", ""], [[key, _plain(value)] for key, value in content.items()])


@app.command("verify")
def verify(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every byte of an index and hold it, and its shards, against the recorded checksums."""
    from wsl.index.mapped import Index

    with progress("verify", unit="bytes") as advance:
        Index.open(index).verify(progress=advance)
    if as_json:
        print_json({"ok": True, "index": str(index)})
    else:
        print(f"{index}: every checksum holds")


@app.command("get")
def get(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    sample: Annotated[str, typer.Argument(help="Ordinal, or key of a sample.")],
    out: Annotated[Path | None, typer.Option(help="Write the image here.")] = None,
    by_key: Annotated[
        bool, typer.Option("--key", help="Read SAMPLE as a key even if it is a number.")
    ] = False,
    storage_option: StorageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print one sample, or write its image out."""
    from wsl.index.jobs import get_sample

    content, image = get_sample(index, sample, by_key=by_key)
    if out is not None:
        if content["dropped"]:
            raise UsageError(f"sample {content['sample']} was taken down, so there is no image to write")
        if content["shard"] is None:
            raise UsageError(
                f"{index} was built of records alone, so sample {content['sample']} has no image to write"
            )
        if out.exists():
            raise UsageError(f"{out} exists already; choose another name for the image")
        out.write_bytes(image)
    if as_json:
        print_json(content)
    else:
        print_table("", ["", ""], [[key, _plain(value)] for key, value in content.items()])


@app.command("drop")
def drop(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    keys: Annotated[list[str] | None, typer.Argument(help="Keys of samples to take down.")] = None,
    file: Annotated[Path | None, typer.Option("--keys", help="Text file of keys, one a line.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Take samples down: ordinals stay, their images and labels are given out no more."""
    from wsl.index.build import drop_samples
    from wsl.index.jobs import read_keys

    wanted = [*(keys or []), *(read_keys(file) if file is not None else [])]
    if not wanted:
        raise UsageError("name the keys to take down, or a file of them with --keys FILE")
    num_dropped, num_known, unknown = drop_samples(index, wanted)
    if as_json:
        print_json({"num_dropped": num_dropped, "num_dropped_before": num_known, "unknown_keys": unknown})
        return
    note(f"{index}: {num_dropped:,} samples taken down, {num_known:,} had been before")
    if unknown:
        shown = ", ".join(unknown[:5])
        note(f"{len(unknown):,} keys are of no sample: {shown}{', ...' if len(unknown) > 5 else ''}")


@app.command("export")
def export(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")],
    out: Annotated[Path, typer.Option(help="Folder for the files (wids: the JSON file).")],
    format: Annotated[str, typer.Option("--format", help="wids, dali or energon.")],
    storage_option: StorageOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a neighbour's index over the same shards: wids JSON, DALI .idx or Energon .tar.idx."""
    from wsl.index.export import export_index

    with progress("export", unit="shards") as advance:
        paths = export_index(index, out, format, overwrite=overwrite, progress=advance)
    if as_json:
        print_json({"files": [str(path) for path in paths]})
    else:
        note(f"{len(paths):,} files written: {paths[0]}{', ...' if len(paths) > 1 else ''}")


def _shares(texts: list[str] | None) -> dict[str, float]:
    """CAUSE=SHARE texts as a mapping."""

    found = {}
    for text in texts or []:
        name, _, share = text.partition("=")
        try:
            found[name] = float(share)
        except ValueError:
            raise UsageError(f"--limit {text}: expected CAUSE=SHARE, such as keys_doubled=0.01") from None
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:8])
        return shown + (f", ... ({len(value):,})" if len(value) > 8 else "")
    return value
