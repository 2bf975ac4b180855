"""Files that appear whole or not at all: a temporary name, fsync, rename, fsync of the folder.

The twin of the engine's `publish.rs`. A crash leaves at most a `.tmp-*` file behind. Where the system
refuses a write, the error is an OSError that names the file, whoever wrote.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """The path to write to; at the end it becomes `target`, and on an error it is removed."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")
    try:
        with naming(target):
            yield temporary
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Around what Polars writes to `target`: the system's error, which Polars passes on as text,
    becomes an OSError that names the file."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), os.fspath(target)) from None


def publish_text(target: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `target`."""
    with publishing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """fsync of a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were writing to `folder`; for who alone writes there now."""
    for file in folder.glob(f"{TEMPORARY_PREFIX}*"):
        file.unlink(missing_ok=True)
