"""The verbs of `wsl index`: what a workspace names becomes an index, is added to, or is up to date."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import DataError, UsageError
from wsl.files import stores
from wsl.files.globs import fingerprint, match_files
from wsl.files.resources import UNLIMITED, Resources
from wsl.hashtags.counting import Columns
from wsl.hashtags.counts import HashtagCounts
from wsl.hashtags.vocabulary import Vocabulary
from wsl.index.build import Append, Counter, Executor, build_by
from wsl.index.mapped import MANIFEST, Index
from wsl.index.sources import record_files
from wsl.progress import silent
from wsl.workspace.config import IndexConfig
from wsl.workspace.layout import Workspace
from wsl.workspace.recipe import Recipe
from wsl.workspace.settings import check, flat

Progress = Callable[[int], object]


@dataclass(frozen=True)
class BuildResult:
    """What building an index came to."""

    state: str
    """built, appended or up to date."""
    index: Index


@dataclass(frozen=True)
class _Inputs:
    """Files of an index, all of them or those that are new."""

    shards: list[Path | str]
    records: list[str] | None
    append: Append | None = None


def index_jobs(workspace: Workspace, name: str | None) -> list[tuple[str, Path, IndexConfig, Path]]:
    """The indexes to build: name, folder, settings and the folder that globs start from."""
    names = list(workspace.config.indexes) if name is None else [name]
    return [(n, workspace.index_path(n), workspace.index(n), workspace.root) for n in names]


def build_one_index(
    path: Path,
    settings: IndexConfig,
    root: Path,
    *,
    resources: Resources = UNLIMITED,
    overwrite: bool = False,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> BuildResult:
    """Builds the index at `path`, adds shards that are new, finds it up to date, or resumes it.

    An `executor` does all of it, in stages of one run.

    UsageError where it was built with other options or inputs and `overwrite` is not given.
    """
    if settings.shards is None and settings.records is None:
        raise UsageError(
            f"{path}: an index needs shards, or records alone; name them with 'shards' and 'records' in "
            "wsl.yaml, or --shards and --records"
        )
    shards = [] if settings.shards is None else match_files(root, settings.shards)
    records = None if settings.records is None else record_files(root, settings.records)

    # The provenance determines the index. By it one that is there is up to date, to be added to, or another.
    provenance = _provenance(settings, root, shards, records)
    inputs = _Inputs(shards, records)
    state = "built"
    if (path / MANIFEST).is_file() and not overwrite:
        old = Index.open(path)
        known = _with_defaults(old.manifest["provenance"])
        if known == provenance:
            return BuildResult("up to date", old)
        inputs = _new_inputs(path, root, settings, known, provenance, records)
        state = "appended"

    # Without records the hashtags are in members of the shards.
    held = inputs.records or [os.fspath(shard) for shard in inputs.shards]
    run = _run(path, provenance)

    # An index that is there was judged above, so from here on it may be replaced.
    index = build_by(
        recipe_of(settings, root),
        path,
        inputs.shards,
        records=inputs.records,
        vocabulary=_vocabulary(settings, root, held, resources, executor, run),
        resources=resources,
        provenance=provenance,
        append=inputs.append,
        elsewhere=None if executor is None else functools.partial(executor.build, run=run),
        overwrite=True,
        progress=progress,
    )
    return BuildResult(state, index)


def recipe_of(settings: IndexConfig, root: Path) -> Recipe:
    """The recipe of the settings, whose lists are read; paths are from `root`."""
    files = {"class_names": settings.class_names, "include": settings.include, "exclude": settings.exclude}
    lists = {name: _lines(root, file) for name, file in files.items() if file is not None}
    return check(Recipe, settings.options() | lists, str(root))


def _vocabulary(
    settings: IndexConfig,
    root: Path,
    held: list[str],
    resources: Resources,
    executor: Executor | None,
    run: str,
) -> Vocabulary | Callable[[Counter], Vocabulary] | None:
    if settings.vocabulary.file is not None:
        return Vocabulary.read(root / settings.vocabulary.file)
    if settings.label_kind != "hashtag":
        return None
    if executor is None:
        return lambda count: make_vocabulary(count(), settings, root)
    columns = Columns(settings.hashtags_column, settings.separator)
    return lambda _: make_vocabulary(executor.count(held, columns, resources, run=run), settings, root)


def _run(path: Path, provenance: dict[str, Any]) -> str:
    """What all stages of a build are called together: the same whenever it is resumed."""
    made_of = json.dumps([_core.__version__, os.path.abspath(path), provenance], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:20]


def _provenance(
    settings: IndexConfig, root: Path, shards: list[Path | str], records: list[str] | None
) -> dict[str, Any]:
    chosen = settings.vocabulary
    lists = [settings.class_names, settings.include, settings.exclude, chosen.file, chosen.synsets]
    return {
        "settings": settings.model_dump(mode="json", exclude={"limits"}),
        "shards": {_name(path, root): stores.stamp(path) for path in shards},
        "records": {path: stores.stamp(path) for path in records or []},
        "lists": {str(name): fingerprint(root / name) for name in lists if name is not None},
    }


def _with_defaults(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance of an index that was built before some of the settings were there."""
    known = provenance.get("settings")
    if not isinstance(known, dict):
        return provenance
    defaults = IndexConfig().model_dump(mode="json", exclude={"limits"})
    return provenance | {"settings": defaults | known}


def _name(path: Path | str, root: Path) -> str:
    """What the provenance calls a shard: its URI, or its path from the workspace."""
    return path if isinstance(path, str) else os.path.relpath(path, root)


def _new_inputs(
    path: Path,
    root: Path,
    settings: IndexConfig,
    known: dict[str, Any],
    now: dict[str, Any],
    records: list[str] | None,
) -> _Inputs:
    """The inputs that were added; UsageError where anything else changed.

    Shards may be added, and tables of records where each belongs to samples that are new: those beside
    new shards, or of an index without shards.
    """
    added = {kind: [n for n in now[kind] if n not in known.get(kind, {})] for kind in ("shards", "records")}
    changed = [f"the setting {name}" for name in _differing(known.get("settings", {}), now["settings"])]
    changed += [f"the list {name}" for name in _differing(known.get("lists", {}), now["lists"])]
    for kind in ("shards", "records"):
        for name, stamp in known.get(kind, {}).items():
            if now[kind].get(name) != stamp:
                changed.append(f"{kind[:-1]} {name}")

    # Records of one file may be of any sample, so a new file could change labels that are in the index.
    if added["records"] and not (settings.is_by_path or settings.shards is None):
        changed += [f"record file {name}" for name in added["records"]]
    if changed or not (added["shards"] or added["records"]):
        raise UsageError(
            f"{path}: the index was built from other inputs ({', '.join(changed[:4])} changed since); "
            "pass --overwrite to build it anew"
        )
    names = sorted(added["shards"], key=os.fsencode)
    shards = [name if stores.is_remote(name) else root / name for name in names]
    if records is None or settings.is_by_path or settings.shards is None:
        return _Inputs(shards, None if records is None else added["records"], "new records")
    return _Inputs(shards, records, "all records")


def _differing(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The names of what differs between two trees of settings."""
    old, new = flat(known), flat(now)
    return [name for name in {**old, **new} if name not in old or name not in new or old[name] != new[name]]


def _lines(root: Path, name: Path) -> list[str]:
    try:
        return (root / name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{root / name}: expected UTF-8 text, one entry a line: {error}") from None


def read_keys(path: Path) -> list[str]:
    """The keys of a text file, one a line; empty lines are passed over."""
    return [line for line in _lines(Path(), path) if line]


def get_sample(path: Path, sample: str, *, by_key: bool = False) -> tuple[dict[str, Any], bytes]:
    """What an index knows of a sample, named by ordinal or key, and its encoded image."""
    index = Index.open(path)
    number = int(sample) if sample.isascii() and sample.isdigit() and not by_key else index.find(sample)
    if number is None:
        raise UsageError(f"{path}: there is no sample with the key {sample!r}")
    row = index.row(number)
    if row["dropped"] or row["shard"] is None:
        return row, b""
    return row, index.read([number])[0]


def make_vocabulary(counts: HashtagCounts, settings: IndexConfig, root: Path) -> Vocabulary:
    """The vocabulary that the settings ask for; paths are from `root`."""
    chosen = settings.vocabulary
    vocabulary = Vocabulary.build(
        counts,
        min_count=chosen.min_count,
        max_labels=chosen.max_labels,
        wordnet=None if chosen.wordnet is None else root / chosen.wordnet,
        synsets=None if chosen.synsets is None else root / chosen.synsets,
        exclude=chosen.exclude_tags,
    )
    if not len(vocabulary):
        raise UsageError(
            f"no hashtag is on {chosen.min_count} records or more; lower min_count, or name where the "
            "hashtags are (--records, --hashtags-column)"
        )
    return vocabulary
