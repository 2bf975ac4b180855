"""Which files a source names, and of what kind they are: a path, a folder, a glob, a list of these.

A folder stands for the tables in it, or for its tar shards where it has no tables. Nothing is read here, so
that whoever leaves the reading to the engine needs no reader.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import DataError, UsageError
from wsl.files import stores

READERS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
    ".tar": "tar",
}
COMPRESSIONS = (".gz", ".zst")


def find_files(source: object) -> list[str]:
    """The files that `source` names, in the byte order of their paths; URLs pass as they are.

    A glob, or a folder (with a slash at its end), in a store is listed (`wsl.files.stores`). A folder stands
    for the tables in it, or for its tar shards where it has no tables.
    """
    patterns: Any = source if isinstance(source, (list, tuple)) else [source]
    found: set[str] = set()
    for pattern in patterns:
        text = os.fspath(pattern)
        if "://" in text:
            found.update(_find_objects(text))
            continue
        if os.path.isdir(text):
            inside = [os.path.join(text, name) for name in os.listdir(text)]
            known = [path for path in inside if _suffix(path) in READERS]
            matches = [path for path in known if _suffix(path) != ".tar"] or known
        else:
            matches = glob.glob(text, recursive=True) or ([text] if os.path.exists(text) else [])
            matches = [path for path in matches if not os.path.isdir(path)]
        if not matches:
            raise UsageError(f"records: no file matches {text!r} (seen from {os.getcwd()})")
        found.update(matches)
    empty = [path for path in found if "://" not in path and os.path.getsize(path) == 0]
    if empty:
        raise DataError(f"{min(empty)}: the file is empty; make it again, or leave it out of the glob")
    return sorted(found, key=os.fsencode)


def _find_objects(pattern: str) -> list[str]:
    """The URIs that a URI stands for: what is no glob and no folder, or in no store, is taken at its word."""
    is_listed = stores.MAGIC.search(pattern) is not None or pattern.endswith("/")
    if not (is_listed and stores.is_remote(pattern) and _core.HAS_STORES):
        return [pattern]
    inside = [one.uri for one in stores.listing(pattern) if one.size > 0]
    known = [uri for uri in inside if _suffix(uri) in READERS]
    matches = [uri for uri in known if _suffix(uri) != ".tar"] or known if pattern.endswith("/") else inside
    if not matches:
        raise UsageError(f"records: no object matches {pattern!r}; look for it by listing the bucket")
    return matches


def kind_of(files: list[str]) -> str:
    """How the files are read: parquet, csv, tsv, ndjson, ipc or tar. UsageError where they differ."""
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{files[0]} and the files beside it are of several kinds ({', '.join(sorted(kinds))}); "
            "name files of one kind at a time"
        )
    return kinds.pop()


def _suffix(path: str) -> str:
    name = path.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def _kind(path: str) -> str:
    suffix = _suffix(path)
    kind = READERS.get(suffix)
    if kind is None or (kind not in ("csv", "tsv", "ndjson") and path.lower().endswith(COMPRESSIONS)):
        raise UsageError(
            f"{path}: a table of an unknown kind; expected a name that ends in one of {', '.join(READERS)} "
            "(those of text also with .gz or .zst)"
        )
    return kind


def are_beside_shards(files: list[str]) -> bool:
    """Whether each local file has a tar shard of its name beside it, as img2dataset writes them."""
    return all("://" not in file and Path(file).with_suffix(".tar").is_file() for file in files)


def plain_parquet(source: object) -> list[str | os.PathLike[str]]:
    """The files of `source` where it names local Parquet files and every row of them counts, else none."""
    if not isinstance(source, (str, os.PathLike, list, tuple)):
        return []
    files = find_files(source)
    has_url = any("://" in file for file in files)
    return [] if has_url or kind_of(files) != "parquet" or are_beside_shards(files) else list(files)
