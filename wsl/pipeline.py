"""The verbs of the command line over a workspace or over plain paths; nothing here parses or prints.

Run again with the same inputs and options, each says "up to date". No torch is loaded before a
network has to run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl._core import DataError, UsageError
from wsl.config import IndexConfig
from wsl.counting import Memory, make_vocabulary, record_files
from wsl.index import MANIFEST, VOCABULARY, Index, build_index
from wsl.vocabulary import Vocabulary
from wsl.workspace import Workspace, fingerprint, match_files

Progress = Callable[[int], object]


def _silent(_: object) -> None:
    return None


@dataclass(frozen=True)
class BuildResult:
    """What building an index came to."""

    state: str
    """built, appended or up to date."""
    index: Index


def index_jobs(workspace: Workspace, name: str | None) -> list[tuple[str, Path, IndexConfig, Path]]:
    """The indexes to build: name, folder, settings and the folder that globs start from."""
    names = list(workspace.config.indexes) if name is None else [name]
    return [(n, workspace.index_path(n), workspace.index(n), workspace.root) for n in names]


def build_one_index(
    path: Path,
    settings: IndexConfig,
    root: Path,
    *,
    num_threads: int | None = None,
    memory: Memory | None = None,
    overwrite: bool = False,
    progress: Progress = _silent,
) -> BuildResult:
    """Builds the index at `path`, appends shards that are new, or finds it up to date.

    UsageError where it was built with other options or inputs and `overwrite` is not given.
    """
    if settings.shards is None and settings.records is None:
        raise UsageError(
            f"{path}: an index needs shards, or records alone; name them with 'shards' and 'records' in "
            "wsl.yaml, or --shards and --records"
        )
    shards = [] if settings.shards is None else match_files(root, settings.shards)
    provenance = _provenance(settings, root, shards)
    vocabulary = None
    file = settings.vocabulary.file
    if file is not None:
        vocabulary = Vocabulary.read(root / file)
    state = "built"
    if (path / MANIFEST).is_file() and not overwrite:
        old = Index.open(path)
        known = old.manifest["provenance"]
        if known == provenance:
            return BuildResult("up to date", old)
        order = _appended(path, known, provenance)
        shards = [root / name for name in order]
        vocabulary, state = old.vocabulary, "appended"
    records = None if settings.records is None else record_files(root, settings.records)
    if vocabulary is None and settings.label_kind == "hashtag":
        held = records or [os.fspath(shard) for shard in shards]
        vocabulary = make_vocabulary(held, settings, root, memory=memory, num_threads=num_threads)
    index = build_index(
        path,
        shards,
        records=records,
        label_kind=settings.label_kind,
        key_column=settings.key_column,
        hashtags_column=settings.hashtags_column,
        vocabulary=vocabulary,
        class_names=_lines(root, settings.class_names) if settings.class_names else None,
        exclude=_lines(root, settings.exclude) if settings.exclude else [],
        num_threads=num_threads,
        provenance=provenance,
        overwrite=True,
        progress=progress,
    )
    return BuildResult(state, index)


def _provenance(settings: IndexConfig, root: Path, shards: list[Path]) -> dict[str, Any]:
    files = [] if settings.records is None else [Path(f) for f in record_files(root, settings.records)]
    chosen = settings.vocabulary
    lists = [settings.class_names, settings.exclude, chosen.file, chosen.synsets]
    return {
        "settings": settings.model_dump(mode="json"),
        "shards": {os.path.relpath(path, root): _stamp(path) for path in shards},
        "records": {str(path): _stamp(path) for path in files},
        "lists": {str(name): fingerprint(root / name) for name in lists if name is not None},
    }


def _stamp(path: Path) -> list[int]:
    if "://" in str(path):
        return []
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _appended(path: Path, known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The order of shards where some were only added; UsageError for every other change."""
    before, after = known.get("shards", {}), now["shards"]
    changed = [part for part in ("settings", "records", "lists") if known.get(part) != now[part]]
    gone = [name for name, stamp in before.items() if after.get(name) != stamp]
    if changed or gone:
        what = [*changed, *(f"shard {name}" for name in gone[:3])]
        raise UsageError(
            f"{path}: the index was built from other inputs ({', '.join(what)} changed since); "
            "pass --overwrite to build it anew"
        )
    return [*before, *sorted((name for name in after if name not in before), key=os.fsencode)]


def _lines(root: Path, name: Path) -> list[str]:
    try:
        return (root / name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{root / name}: expected UTF-8 text, one entry a line: {error}") from None


def get_sample(path: Path, sample: str, *, by_key: bool = False) -> tuple[dict[str, Any], bytes]:
    """What an index knows of a sample, named by ordinal or key, and its encoded image."""
    index = Index.open(path)
    number = int(sample) if sample.isascii() and sample.isdigit() and not by_key else index.find(sample)
    if number is None:
        raise UsageError(f"{path}: there is no sample with the key {sample!r}")
    row = index.row(number)
    return row, index.read([number])[0]


__all__ = ["VOCABULARY", "Workspace"]
