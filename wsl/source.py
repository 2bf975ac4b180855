"""Tables of records as Arrow streams: what a user names becomes what the engine reads.

A source is a path or glob (Parquet, CSV, TSV, NDJSON, Arrow IPC; Polars reads them, from object
stores too), several of them, a Polars frame, or anything else with ``__arrow_c_stream__`` (a DuckDB
relation, a pyarrow reader, a Hugging Face dataset).
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from wsl._core import DataError, UsageError, WslError

if TYPE_CHECKING:
    from wsl._core import ArrowStream

BATCH_ROWS = 131_072
"""Rows of the batches that Polars is asked for."""

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
}


def open_stream(source: object, columns: list[str] | None = None) -> ArrowStream:
    """The Arrow stream of `source`, with these columns only where Polars can choose them.

    Raises UsageError for a file of unknown kind, a glob without files and an unknown column, and
    DataError for a file that is not what its name says.
    """
    if isinstance(source, pl.DataFrame):
        source = source.lazy()
    elif isinstance(source, (str, os.PathLike, list, tuple)):
        source = scan(source)
    if isinstance(source, pl.LazyFrame):
        return _collect(source, columns)
    if not hasattr(source, "__arrow_c_stream__"):
        raise UsageError(
            f"records: expected a path, a glob, a Polars frame or an object with __arrow_c_stream__, "
            f"got {type(source).__name__}"
        )
    return cast("ArrowStream", source)


def scan(source: object) -> pl.LazyFrame:
    """A LazyFrame over the files of a path, a folder, a glob, or a list of these."""
    files = find_files(source)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{files[0]} and the files beside it are of several kinds ({', '.join(sorted(kinds))}); "
            "name files of one kind at a time"
        )
    kind = kinds.pop()
    if kind == "parquet":
        return pl.scan_parquet(files)
    if kind == "ipc":
        return pl.scan_ipc(files)
    if kind == "ndjson":
        return pl.scan_ndjson(files)
    return pl.scan_csv(files, separator="\t" if kind == "tsv" else ",")


def count_rows(source: object) -> int | None:
    """The number of rows where footers tell it, without reading them; None otherwise."""
    if not source and isinstance(source, (list, tuple)):
        return 0
    try:
        frame = source if isinstance(source, pl.LazyFrame) else scan(source)
        kinds = None if source is frame else {_kind(file) for file in find_files(source)}
        if kinds is None or not kinds <= {"parquet", "ipc"}:
            return None
        return int(frame.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError, WslError):
        return None


def find_files(source: object) -> list[str]:
    """The files that `source` names, in the byte order of their paths; URLs pass as they are."""
    patterns: Any = source if isinstance(source, (list, tuple)) else [source]
    found: set[str] = set()
    for pattern in patterns:
        text = os.fspath(pattern)
        if "://" in text:
            found.add(text)
            continue
        if os.path.isdir(text):
            inside = [os.path.join(text, name) for name in os.listdir(text)]
            matches = [path for path in inside if Path(path).suffix.lower() in READERS]
        else:
            matches = glob.glob(text, recursive=True) or ([text] if os.path.exists(text) else [])
        if not matches:
            raise UsageError(f"records: no file matches {text!r} (seen from {os.getcwd()})")
        found.update(matches)
    empty = [path for path in found if "://" not in path and os.path.getsize(path) == 0]
    if empty:
        raise DataError(f"{min(empty)}: the file is empty; make it again, or leave it out of the glob")
    return sorted(found, key=os.fsencode)


def _kind(path: str) -> str:
    name = path.lower()
    for compression in (".gz", ".zst"):
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    if suffix not in READERS:
        raise UsageError(
            f"{path}: a table of an unknown kind; expected a name that ends in one of {', '.join(READERS)}"
        )
    return READERS[suffix]


def _collect(frame: pl.LazyFrame, columns: list[str] | None) -> ArrowStream:
    try:
        schema = frame.collect_schema()
        if columns is not None:
            missing = [name for name in columns if name not in schema]
            if missing:
                raise UsageError(
                    f"the records have no column {missing[0]!r}; their columns are: {', '.join(schema)}"
                )
            frame = frame.select(columns)
        return cast("ArrowStream", frame.collect_batches(chunk_size=BATCH_ROWS, lazy=True))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"the records cannot be read: {error}") from None
