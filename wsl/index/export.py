"""A neighbour's index over the same shards: wids JSON, DALI ``.idx``, Energon ``.tar.idx``.

These formats count every sample that is in a shard, with or without an image, left out or not, so
they are made of the shards' headers and not of the rows of the index.

- wids (version 1): a JSON document with ``url``, ``nsamples`` and ``filesize`` of each shard.
- DALI (``v1.2``): beside each shard a text file; its first line is ``v1.2 SAMPLES``, then a line for each
  sample with ``extension offset size name`` of each member, offsets those of the content.
- Energon: beside each shard u64s, little-endian: where the first header of each sample begins, and
  where the end mark of the archive is.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsl import _core
from wsl._core import UsageError
from wsl.files import stores
from wsl.files.publish import publish_text, publishing
from wsl.index.mapped import Index

FORMATS = ("wids", "dali", "energon")
META = re.compile(r"__[^/]*__($|/)")
"""Members that WebDataset's readers pass over."""


@dataclass(frozen=True)
class Member:
    """A file of a shard: its name and extension, its first header, its content."""

    name: str
    extension: str
    start: int
    offset: int
    size: int


def export_index(
    index: str | os.PathLike[str] | Index,
    out: str | os.PathLike[str],
    format: str,
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[Path]:
    """Writes the files of `format` ("wids", "dali" or "energon") and returns their paths.

    `out` is a folder, for wids the JSON file or a folder for ``wids.json``; the neighbours look for the
    others beside the shards. `progress` is called with the number of shards done. Raises UsageError for
    another format, shards with the same file name, files that are there unless `overwrite`, and names
    that a format cannot express; DataError for damaged shards.
    """
    if format not in FORMATS:
        raise UsageError(f"--format {format}: expected one of {', '.join(FORMATS)}")
    opened = index if isinstance(index, Index) else Index.open(index)
    shards = opened.shard_paths()
    if not shards:
        raise UsageError(f"{opened.path}: the index was built of records alone, so there are no shards")

    # All names are known before the first file is written, so that an export that cannot be finished is not
    # begun.
    target = Path(out)
    if format == "wids":
        file = target / "wids.json" if target.is_dir() or target.suffix != ".json" else target
        files = [file]
    else:
        suffix = ".idx" if format == "dali" else ".tar.idx"
        files = [target / (_stem(shard) + suffix) for shard in shards]
        if len(set(files)) < len(files):
            raise UsageError(f"{target}: several shards have the same file name; export them apart")
    there = [file for file in files if file.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists already; pass --overwrite to replace it")

    # A file of wids is about all shards; the other formats have a file for each.
    files[0].parent.mkdir(parents=True, exist_ok=True)
    if format == "wids":
        _write_wids(shards, opened.shards()["size"].to_list(), files[0], opened.path.name, progress)
        return files
    for done, (shard, file) in enumerate(zip(shards, files, strict=True), start=1):
        (_write_dali if format == "dali" else _write_energon)(shard, file)
        if progress is not None:
            progress(done)
    return files


def samples_of(shard: Path | str) -> tuple[list[list[Member]], int]:
    """The members of each sample of a shard, in tar order, and where the archive's end mark is."""
    members, end = _core.scan_shard(shard, storage=stores.core())
    samples: list[list[Member]] = []
    last = None
    for key, member in _named(shard, members):
        if key != last:
            samples.append([])
            last = key
        samples[-1].append(member)
    return samples, end


def _named(shard: Path | str, members: list[tuple[bytes, int, int, int]]) -> Iterator[tuple[str, Member]]:
    for raw, start, offset, size in members:
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{shard}: the member {raw!r} at byte {start} has no name in UTF-8") from None
        base = name.rpartition("/")[2]
        dot = base.find(".")
        if dot < 1 or META.match(name):
            continue
        cut = len(name) - len(base) + dot
        yield name[:cut], Member(name, name[cut + 1 :], start, offset, size)


def _stem(shard: Path | str) -> str:
    return os.fspath(shard).rpartition("/")[2].removesuffix(".tar")


def _write_wids(
    shards: list[Path | str],
    sizes: list[int],
    file: Path,
    name: str,
    progress: Callable[[int], object] | None,
) -> None:
    rows = []
    for done, (shard, size) in enumerate(zip(shards, sizes, strict=True), start=1):
        url = shard if isinstance(shard, str) else os.path.relpath(shard.resolve(), file.parent.resolve())
        rows.append({"url": url, "nsamples": len(samples_of(shard)[0]), "filesize": size})
        if progress is not None:
            progress(done)
    document = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": rows}
    publish_text(file, json.dumps(document, indent=2) + "\n")


def _write_dali(shard: Path | str, file: Path) -> None:
    samples, _ = samples_of(shard)
    lines = [f"v1.2 {len(samples)}"]
    for sample in samples:
        for member in sample:
            if any(letter.isspace() for letter in member.name):
                raise UsageError(
                    f"{shard}: the member {member.name!r} has white space in its name, which DALI's index "
                    "cannot hold; rename it"
                )
        lines.append(" ".join(f"{m.extension} {m.offset} {m.size} {m.name}" for m in sample))
    publish_text(file, "\n".join(lines) + "\n")


def _write_energon(shard: Path | str, file: Path) -> None:
    samples, end = samples_of(shard)
    starts = [sample[0].start for sample in samples]
    with publishing(file) as temporary:
        temporary.write_bytes(struct.pack(f"<{len(starts) + 1}Q", *starts, end))
