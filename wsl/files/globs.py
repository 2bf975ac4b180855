"""Which files a source names, and of what kind they are: a path, a folder, a glob, a list of these.

A folder means the tables in it, or its tar shards where it has no tables. Nothing is read here, so
that whoever leaves the reading to the engine needs no reader.
"""

from __future__ import annotations

import glob
import hashlib
import os
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import DataError, UsageError
from wsl.files import stores

File = Path | str
"""A path, or the URI of a file in a store."""

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

    A glob, or a folder (with a slash at its end), in a store is listed (`wsl.files.stores`). A folder
    means the tables in it, or its tar shards where it has no tables.
    """
    patterns: Any = source if isinstance(source, (list, tuple)) else [source]
    found: set[str] = set()
    for pattern in patterns:
        text = os.fspath(pattern)
        if "://" in text:
            found.update(_tables_in_store(text))
            continue
        if os.path.isdir(text):
            matches = _tables([os.path.join(text, name) for name in os.listdir(text)])
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


def _tables_in_store(pattern: str) -> list[str]:
    """The URIs that a URI means: what is no glob and no folder, or in no store, is taken at its word."""
    is_folder = pattern.endswith("/")
    is_listed = is_folder or stores.MAGIC.search(pattern) is not None
    if not (is_listed and stores.is_remote(pattern) and _core.HAS_STORES):
        return [pattern]
    inside = [one.uri for one in stores.listing(pattern) if one.size > 0]
    return _objects(_tables(inside) if is_folder else inside, "records: ", pattern)


def _tables(paths: list[str]) -> list[str]:
    """The tables among the files of a folder, or its tar shards where it has no tables."""
    known = [path for path in paths if _suffix(path) in READERS]
    return [path for path in known if _suffix(path) != ".tar"] or known


def _objects(uris: list[str], where: str, pattern: str) -> list[str]:
    """The URIs, if there are any."""
    if not uris:
        raise UsageError(f"{where}no object matches {pattern!r}; look for it by listing the bucket")
    return uris


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


def find_predictions(pattern: str) -> list[File]:
    """The files of a folder or glob; UsageError where there are none, DataError for an empty one.

    A folder or glob in a store is listed, and its files are URIs.
    """
    if stores.is_remote(pattern):
        return _predictions_in_store(pattern)
    if os.path.isdir(pattern):
        pattern = os.path.join(pattern, "*.*")
    files = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match))
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty; make the predictions again, or leave it out")
    if not files:
        raise UsageError(f"--predictions: no file matches {pattern!r}; make them with 'wsl score'")
    return list(files)


def _predictions_in_store(pattern: str) -> list[File]:
    if not stores.MAGIC.search(pattern) and os.path.splitext(pattern)[1] in READERS:
        return [pattern]
    objects = stores.listing(pattern)
    for one in objects:
        if one.size == 0:
            raise DataError(f"{one.uri}: the file is empty; make the predictions again, or leave it out")
    if not objects:
        raise UsageError(f"--predictions: no object matches {pattern!r}; make them with 'wsl score'")
    return [one.uri for one in objects]


def match_files(root: Path, patterns: str | list[str]) -> list[Path | str]:
    """The files of one or several globs seen from `root`, in the byte order of their paths.

    A glob may be written as ``file://`` URI, or as URI of a store: its objects are URIs. UsageError for
    another kind, and where nothing matches.
    """
    found: set[Path | str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if stores.is_remote(pattern):
            is_glob = stores.MAGIC.search(pattern) is not None
            uris = [one.uri for one in stores.listing(pattern)] if is_glob else [pattern]
            found.update(_objects(uris, "", pattern))
            continue
        local = pattern.removeprefix("file://")
        if "://" in local:
            raise UsageError(
                f"{pattern} lies in a store of kind {local.partition('://')[0]!r}, which is not read; "
                "copy the shards to a local folder or a store of kind s3, gs or az"
            )
        matches = glob.glob(str(root / local), recursive=True)
        if not matches:
            raise UsageError(f"no file matches {pattern!r} under {root}")
        found.update(Path(match) for match in matches)
    return sorted(found, key=os.fsencode)


def fingerprint(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
