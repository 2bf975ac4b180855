"""Tables of records as Arrow streams: what a user names becomes what the engine reads.

A source is a path, folder or glob (Parquet, CSV, TSV, NDJSON, Arrow IPC; text also gzip or zstd; Polars
reads them, from object stores too), several of them, a Polars frame, or anything else with
``__arrow_c_stream__`` (a DuckDB relation, a pyarrow reader, a Hugging Face dataset).

Two layouts come with the shards: tar files, whose samples have hashtags in ``.json`` or ``.txt``
members, and img2dataset's, a Parquet file beside each tar. Of the latter only rows whose ``status`` is
"success" count, for the others have no image.

Columns of text files are read as text: a key ``00017`` stays one.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from wsl import _core
from wsl._core import DataError, UsageError, WslError
from wsl.files import stores
from wsl.files.globs import COMPRESSIONS, are_beside_shards, find_files, kind_of

if TYPE_CHECKING:
    from wsl._core import ArrowStream

BATCH_ROWS = 65_536
"""Rows of the batches that Polars is asked for."""

MAX_LINE_BYTES = 64 << 20
"""Longer lines of text files are refused: a reader keeps several of them in memory."""

UNREADABLE = "the records could not be read: "
"""How the engine begins an error of the reader of a stream."""

FILES_LOOKED_AT = 16
BYTES_LOOKED_AT = 1 << 18
"""How much of text files is read to estimate their rows."""

StorageOptions = Mapping[str, str]


@dataclass(frozen=True)
class Records:
    """A stream of records, and where its text is still to be split."""

    stream: ArrowStream
    separator: str | None
    files: tuple[str, ...] = ()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of the stream: errors of its reader get the names of the files."""
        try:
            yield
        except DataError as error:
            said = str(error)
            if not said.startswith(UNREADABLE):
                raise
            raise _unreadable(list(self.files), said.removeprefix(UNREADABLE)) from None


def open_records(
    source: object,
    *,
    hashtags_column: str,
    key_column: str | None = None,
    separator: str | None = None,
    shard_column: str | None = None,
    path_column: str | None = None,
    storage_options: StorageOptions | None = None,
) -> Records:
    """The records of `source`, these columns only where the reader can choose them.

    `shard_column` is a third column that is wanted; `path_column` is made: the path of the file, or of
    the tar shard, that a record is from.

    In tar shards `hashtags_column` is a field of the ``.json`` members, its keys joined by dots, or
    ``.txt`` for the text of those members.

    Raises UsageError for a file of unknown kind, a glob without files and an unknown column, and
    DataError for a file of another kind than its name.
    """
    named = (key_column, hashtags_column, shard_column, path_column)
    columns = [name for name in named if name is not None]
    if isinstance(source, (str, os.PathLike, list, tuple)):
        files = find_files(source)
        if kind_of(files) == "tar":
            held = _core.member_records(
                cast("list[str | os.PathLike[str]]", files),
                key_column=key_column or "key",
                hashtags_column=hashtags_column,
                separator=separator,
                shard_column=path_column or shard_column,
                storage=stores.core(),
            )
            return Records(held, None)
        stream = _collect(scan(files, storage_options, path_column), columns, files)
        return Records(stream, separator, tuple(files))

    # A frame or a stream has no files whose paths could name the shards.
    if path_column is not None:
        raise UsageError(
            "records: keys begin anew in every shard, so each record must say which shard it belongs to; "
            "name the column that does (shard_column)"
        )
    return Records(open_stream(source, columns), separator)


def open_stream(source: object, columns: list[str] | None = None) -> ArrowStream:
    """The Arrow stream of `source`, with these columns only where Polars can choose them.

    Raises what `open_records` raises.
    """
    if isinstance(source, pl.DataFrame):
        source = source.lazy()
    elif isinstance(source, (str, os.PathLike, list, tuple)):
        files = find_files(source)
        return _collect(scan(files), columns, files)
    if isinstance(source, pl.LazyFrame):
        return _collect(source, columns, [])
    if not hasattr(source, "__arrow_c_stream__"):
        raise UsageError(
            f"records: expected a path, a glob, a Polars frame or an object with __arrow_c_stream__, "
            f"got {type(source).__name__}"
        )
    return cast("ArrowStream", source)


def scan(
    source: object, storage_options: StorageOptions | None = None, path_column: str | None = None
) -> pl.LazyFrame:
    """A LazyFrame over the tables of a path, a folder, a glob, or a list of these.

    `path_column` names a column to add: the path of each row's file.

    `storage_options` go to Polars for object stores; where absent those of `wsl.files.stores`, and what these
    do not say comes from the environment.
    """
    files = find_files(source)
    kind = kind_of(files)
    if storage_options is None and any(stores.is_remote(file) for file in files):
        storage_options = stores.polars_options()
    options: Any = {"storage_options": dict(storage_options)} if storage_options else {}
    if path_column is not None:
        options["include_file_paths"] = path_column
    if kind == "tar":
        raise UsageError(f"{files[0]}: a tar shard is no table; its members are read as records only")
    if kind == "parquet":
        return _with_images(pl.scan_parquet(files, **options), files)
    if kind == "ipc":
        return pl.scan_ipc(files, **options)

    # Polars would read a line of any length into memory.
    for file in files:
        _check_lines(file)
    if kind == "ndjson":
        return pl.scan_ndjson(files, **options)
    separator = "\t" if kind == "tsv" else ","
    return pl.scan_csv(files, separator=separator, infer_schema=False, **options)


def _with_images(frame: pl.LazyFrame, files: list[str]) -> pl.LazyFrame:
    """img2dataset's tables have for every row whether its image is in the tar beside."""
    in_store = all(stores.is_remote(file) for file in files)
    if not in_store and not are_beside_shards(files):
        return frame
    try:
        has_status = "status" in frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(files, error) from None
    if has_status and in_store:
        # One question for all: they were written together.
        has_status = _core.HAS_STORES and stores.exists(os.path.splitext(files[0])[0] + ".tar")
    return frame.filter(pl.col("status") == "success") if has_status else frame


def expected_rows(source: object) -> int | None:
    """How many rows are to come, so that progress can show how long: exact where footers have it.

    Of text files, and of several tar shards, it is estimated from a small part of the bytes. None where
    that cannot be had either.
    """
    if not source and isinstance(source, (list, tuple)):
        return 0
    try:
        files = find_files(source)
        kind = kind_of(files)
        if kind in ("parquet", "ipc"):
            return int(scan(files).select(pl.len()).collect().item())
        if any("://" in file for file in files):
            return None
        return _expected_samples(files) if kind == "tar" else _expected_lines(files)
    except (pl.exceptions.PolarsError, OSError, WslError, TypeError, zlib.error):
        return None


def _expected_lines(files: list[str]) -> int | None:
    """Lines in all, as dense as at the beginning of some of the files; None of what zstd packed."""
    looked_at = num_lines = 0
    for file in files[:: -(-len(files) // FILES_LOOKED_AT)]:
        if file.lower().endswith(".zst"):
            return None
        with open(file, "rb") as opened:
            head = opened.read(BYTES_LOOKED_AT)
        looked_at += len(head)
        text = zlib.decompressobj(wbits=31).decompress(head) if file.lower().endswith(".gz") else head
        num_lines += text.count(b"\n")
    size = sum(os.path.getsize(file) for file in files)
    return num_lines * size // looked_at if num_lines else None


def _expected_samples(files: list[str]) -> int | None:
    """Samples in all, as dense as in the first shard, where there are more of them."""
    if len(files) < FILES_LOOKED_AT // 2:
        return None
    held = _core.member_records(
        cast("list[str | os.PathLike[str]]", files[:1]), key_column="key", hashtags_column=".txt"
    )
    num_samples = len(pl.DataFrame(held))
    return num_samples * sum(os.path.getsize(file) for file in files) // os.path.getsize(files[0])


def _check_lines(path: str) -> None:
    """Refuses a line that would fill the memory. A few reads: it looks for one newline a window."""
    if "://" in path or path.lower().endswith(COMPRESSIONS):
        return
    size = os.path.getsize(path)
    step = 1 << 20
    with open(path, "rb") as file:
        start = 0
        while size - start > MAX_LINE_BYTES:
            end = start + MAX_LINE_BYTES
            place = -1

            # Backwards from the end of the window: the last newline in it is where the next window begins.
            while place < 0 and end > start:
                begin = max(start, end - step)
                file.seek(begin)
                place = file.read(end - begin).rfind(b"\n")
                end = begin
            if place < 0:
                raise DataError(
                    f"{path}: the line at byte {start:,} has more than {MAX_LINE_BYTES:,} bytes, so it is "
                    "taken for damage; a record is one line"
                )
            start = end + place + 1


def _collect(frame: pl.LazyFrame, columns: list[str] | None, files: list[str]) -> ArrowStream:
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
    except WslError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise _unreadable(files, error) from None


def _unreadable(files: list[str], error: BaseException | str) -> DataError:
    where = f"{files[0]}: " if len(files) == 1 else f"{files[0]} to {files[-1]}: " if files else ""
    return DataError(
        f"{where}the records cannot be read: {' '.join(str(error).split())}; "
        "make or copy the file again, or leave it out"
    )
