"""Files of predictions: their metadata, and which samples of an index they cover.

A file that `wsl score` writes names the teacher, how it scored, and a range of samples with the parts of
the index that contain them, by their hashes. Adding shards to an index leaves its parts as they are, so what
was scored before stays valid, and only what is new is left to score. Predictions from elsewhere say
nothing, and are taken at their word.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wsl._core import DataError, UsageError
from wsl.files import stores
from wsl.files.globs import File, fingerprint
from wsl.files.tables import scan
from wsl.index.mapped import Index

SCORED_BY = ("teacher_fingerprint", "flip", "temperature")
"""What must be the same of all scores that are selected from together."""


Span = tuple[int, int]
"""Samples from the first to before the second."""


def scored_parts(index: Index, spans: Iterable[Span]) -> list[list[Any]]:
    """The parts of the index that contain these samples: first sample, number of samples, hash."""
    wanted = sorted(spans)
    found, first = [], 0
    for part in index.manifest["parts"]:
        end = first + int(part["num_rows"])
        if any(start < end and stop > first for start, stop in wanted):
            found.append([first, end - first, part["checksum"]])
        first = end
    return found


def is_valid_for(known: dict[str, Any], index: Index) -> bool:
    """Whether what a file scored, by its metadata, is in this index, unchanged."""
    if known.get("index_fingerprint") == index.fingerprint:
        return True
    parts = known.get("parts")
    return bool(parts) and parts == scored_parts(index, [(known["first_sample"], known["end_sample"])])


def gaps(covered: Iterable[Span], num_samples: int, size: int) -> Iterator[range]:
    """The samples that are not covered, ascending, in ranges that cross no multiple of `size`."""
    place = 0
    for start, stop in [*sorted(covered), (num_samples, num_samples)]:
        while place < min(start, num_samples):
            end = min((place // size + 1) * size, start, num_samples)
            yield range(place, end)
            place = end
        place = max(place, stop)


def overlap(spans: Iterable[Span]) -> bool:
    """Whether a sample is in two of the spans."""
    ordered = sorted(spans)
    return any(before[1] > after[0] for before, after in itertools.pairwise(ordered))


def read_metadata(file: File) -> dict[str, Any]:
    """The metadata of a file of predictions or pseudo-labels; empty where it has none."""
    if not str(file).endswith(".parquet"):
        return {}
    options = stores.polars_options() if stores.is_remote(file) else None
    try:
        content = pl.read_parquet_metadata(file, storage_options=options).get("wsl")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: expected predictions as a Parquet file, found: {error}") from None
    return {} if content is None else dict(json.loads(content))


def span_of(known: dict[str, Any]) -> Span:
    """The samples that a file covers, by its metadata."""
    return int(known["first_sample"]), int(known["end_sample"])


def are_ranges(files: Sequence[File]) -> bool:
    """Whether each file names the range of samples that it has, no two of which meet."""
    known = [read_metadata(file) for file in files]
    return all("first_sample" in one for one in known) and not overlap(span_of(one) for one in known)


def _name_and_content(file: File) -> tuple[str, str]:
    """The name of a file, and a hash of what is in it or what the store calls its state."""
    if isinstance(file, Path):
        return file.name, fingerprint(file)
    return file.rpartition("/")[2], "-".join(map(str, stores.stamp(file)))


def common_keep(files: Sequence[File], made_by: dict[str, Any], index: Index) -> tuple[bool, int | None]:
    """Whether these are this teacher's predictions of samples of the index, with the same number of
    classes kept of each, and that number."""
    kept = set()
    for file in files:
        known = read_metadata(file)
        if any(known.get(key) != made_by[key] for key in SCORED_BY) or not is_valid_for(known, index):
            return False, None
        kept.add(known.get("keep"))
    return len(kept) == 1, next(iter(kept), None)


def is_whole(files: Sequence[File], index: Index) -> bool:
    """Whether the files, all of this index, cover all of its samples."""
    covered = [span_of(read_metadata(file)) for file in files]
    return next(gaps(covered, len(index), len(index)), None) is None


def metadata_of(files: Sequence[File], index: Index | None) -> dict[str, Any]:
    """What the files agree on; the number of classes is looked for in them where none is given.

    UsageError where they are of several teachers, or of another index than `index` or one another.
    """
    every = [read_metadata(file) for file in files]
    for file, known in zip(files, every, strict=True):
        for key in (*SCORED_BY, "vocabulary_fingerprint", "keep"):
            _agree(file, key, known.get(key), files[0], every[0].get(key))
        if index is not None and known.get("index_fingerprint") and not is_valid_for(known, index):
            raise UsageError(
                f"{file} holds predictions of the index {known['index_fingerprint']}, and {index.path} is "
                f"{index.fingerprint}; name the index that was scored, or score this one with 'wsl score'"
            )
    _agree_on_parts(files, every)
    # An index that was added to has several fingerprints over time; the last one is used for all.
    newest = max(every, key=lambda known: int(known.get("num_samples", 0)))
    of_files = ("first_sample", "end_sample", "num_samples", "parts")
    found = {key: value for key, value in newest.items() if key not in of_files}
    if index is not None and found.get("index_fingerprint"):
        found["index_fingerprint"] = index.fingerprint
    if "num_classes" not in found:
        found["num_classes"] = _count_classes(files)
        found["predictions"] = dict(map(_name_and_content, files))
    return found


def _agree(file: File, key: str, value: object, other: File, expected: object) -> None:
    if value != expected:
        raise UsageError(
            f"{file}: {key} is {value}, and {expected} in {other}; a selection takes predictions of one "
            "teacher over one index"
        )


def _agree_on_parts(files: Sequence[File], every: list[dict[str, Any]]) -> None:
    """Refuses files over parts that cannot be of one index, and files of two where they name no parts."""
    parts: dict[int, tuple[list[Any], File]] = {}
    for file, known in zip(files, every, strict=True):
        if not known.get("parts") or not every[0].get("parts"):
            key = "index_fingerprint"
            _agree(file, key, known.get(key), files[0], every[0].get(key))
        for part in known.get("parts", []):
            same, other = parts.setdefault(part[0], (part, file))
            _agree(file, f"the part of samples from {part[0]}", part[1:], other, same[1:])
    end, before = 0, files[0]
    for first, (part, file) in sorted(parts.items()):
        if first < end:
            _agree(file, "the first sample of a part", first, before, end)
        end, before = first + part[1], file


def _count_classes(files: Sequence[File]) -> int:
    frame = scan([str(file) for file in files])
    schema = frame.collect_schema()
    named = "sample" if "sample" in schema else "key"
    layouts = [[named, "class", "score"], [named, "classes", "scores"], [named, "scores"]]
    fits = [layout for layout in layouts if all(name in schema for name in layout)]
    if not fits:
        missing = next(name for name in layouts[0] if name not in schema)
        raise UsageError(
            f"{files[0]}: expected columns sample (or key), class and score, or classes and scores as lists; "
            f"there is no {missing!r} among {', '.join(schema)}"
        )
    if fits[0] == layouts[2]:
        kind = schema["scores"]
        if not isinstance(kind, pl.Array):
            raise UsageError(
                f"{files[0]}: column scores is of type {kind} and there is no column classes; expected lists "
                "of classes beside it, or arrays of one size with a score for every class"
            )
        return int(kind.size)

    # Pairs name their classes, so the highest one is all that is known.
    column = pl.col("class") if fits[0] == layouts[0] else pl.col("classes").explode()
    highest = frame.select(column.max()).collect().item()
    if highest is None:
        raise DataError(f"{files[0]}: the predictions hold no rows")
    return int(highest) + 1
