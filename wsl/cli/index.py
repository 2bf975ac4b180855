"""`wsl index`: build an index over tar shards, look into it, verify it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wsl.cli.console import note, print_json, print_table, progress
from wsl.cli.options import (
    HashtagsColumnOption,
    JsonOption,
    KeyColumnOption,
    MaxLabelsOption,
    MemoryOption,
    MinCountOption,
    OverwriteOption,
    SpillDirOption,
    SynsetsOption,
    ThreadsOption,
    WordNetOption,
    WorkspaceOption,
    parse_bytes,
)

app = typer.Typer(no_args_is_help=True, help="Build, inspect and verify the index over tar shards.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="index")


@app.command("build")
def build(
    name: Annotated[str | None, typer.Argument(help="One index of wsl.yaml; default: all.")] = None,
    shards: Annotated[
        list[str] | None, typer.Option(help="Glob of tar shards (no workspace needed).")
    ] = None,
    records: Annotated[str | None, typer.Option(help="Glob of hashtag records.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the index; with --shards.")] = None,
    label_kind: Annotated[str | None, typer.Option(help="hashtag or class; default: none.")] = None,
    key_column: KeyColumnOption = "key",
    hashtags_column: HashtagsColumnOption = "hashtags",
    vocabulary: Annotated[Path | None, typer.Option(help="Use this vocabulary.parquet.")] = None,
    min_count: MinCountOption = 1,
    max_labels: MaxLabelsOption = None,
    wordnet: WordNetOption = None,
    synsets: SynsetsOption = None,
    memory: MemoryOption = None,
    spill_dir: SpillDirOption = None,
    exclude: Annotated[Path | None, typer.Option(help="Text file of keys to leave out.")] = None,
    workers: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the hashtags, make the vocabulary, write the index: all of the workspace, or one."""
    from wsl import pipeline
    from wsl._core import UsageError
    from wsl.config import IndexConfig, VocabularyConfig, check
    from wsl.counting import Memory

    if shards or records:
        if out is None:
            raise UsageError("--shards and --records need --out DIR, the folder of the index to write")
        if name is not None:
            raise UsageError(f"give either an index of the workspace ({name}) or --shards, not both")
        if not shards and label_kind is None:
            label_kind = "hashtag"
        tree: dict[str, Any] = {"shards": shards, "records": records, "label_kind": label_kind}
        tree |= {"key_column": key_column, "hashtags_column": hashtags_column, "exclude": exclude}
        settings = check(IndexConfig, tree, "the options")
        settings.vocabulary = VocabularyConfig(
            min_count=min_count, max_labels=max_labels, file=vocabulary, wordnet=wordnet, synsets=synsets
        )
        jobs = [(out.name, out, settings, Path.cwd())]
    else:
        jobs = pipeline.index_jobs(pipeline.Workspace.find(workspace), name)
    limits = Memory(None if memory is None else parse_bytes(memory), spill_dir)
    built = []
    for job_name, path, settings, root in jobs:
        with progress(f"index {job_name}", unit="shards") as advance:
            result = pipeline.build_one_index(
                path,
                settings,
                root,
                num_threads=workers,
                memory=limits,
                overwrite=overwrite,
                progress=advance,
            )
        note(f"index {job_name}: {result.state}, {len(result.index):,} samples in {path}")
        built.append({"name": job_name, "path": str(path), "state": result.state, **result.index.info()})
    if as_json:
        print_json(built)


@app.command("info")
def info(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")], as_json: JsonOption = False
) -> None:
    """Say what is in an index."""
    from wsl.index import Index

    content = Index.open(index).info()
    if as_json:
        print_json(content)
    else:
        print_table(str(index), ["", ""], [[key, _plain(value)] for key, value in content.items()])


@app.command("verify")
def verify(
    index: Annotated[Path, typer.Argument(help="Folder of an index.")], as_json: JsonOption = False
) -> None:
    """Read every byte of an index and hold it, and its shards, against the recorded checksums."""
    from wsl.index import Index

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
    as_json: JsonOption = False,
) -> None:
    """Print one sample, or write its image out."""
    from wsl.pipeline import get_sample

    content, image = get_sample(index, sample, by_key=by_key)
    if out is not None:
        if out.exists():
            from wsl._core import UsageError

            raise UsageError(f"{out} exists already; choose another name for the image")
        out.write_bytes(image)
    if as_json:
        print_json(content)
    else:
        print_table("", ["", ""], [[key, _plain(value)] for key, value in content.items()])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:8])
        return shown + (f", ... ({len(value):,})" if len(value) > 8 else "")
    return value
