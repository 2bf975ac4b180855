"""The hashtag side of a workspace: which record files there are, counts in parts, vocabularies of counts.

Counts made apart are joined by `merge_counts`. Beside a file of counts is ``FILE.json``, which says of
which records it was made, so that a result is known again and no record is counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from wsl._core import UNICODE_VERSION, DataError, UsageError
from wsl.files import stores
from wsl.files.publish import publish_text
from wsl.files.resources import UNLIMITED, Resources
from wsl.hashtags.counts import HashtagCounts, count_hashtags


@dataclass(frozen=True)
class Columns:
    """Where the hashtags are."""

    hashtags: str = "hashtags"
    separator: str | None = None


class Executor(Protocol):
    """Where records are counted, when not in this process."""

    def count(
        self, sources: Sequence[str], columns: Columns, resources: Resources, *, run: str | None = None
    ) -> HashtagCounts:
        """The counts of record files; `run` names the work that counting is the first stage of."""
        ...


def count_sources(
    sources: Sequence[str],
    columns: Columns,
    *,
    resources: Resources = UNLIMITED,
    progress: Callable[[int], object] | None = None,
    executor: Executor | None = None,
) -> HashtagCounts:
    """The counts of record files, made in this process or by `executor`."""
    if executor is not None:
        return executor.count(sources, columns, resources)
    return count_hashtags(
        list(sources),
        hashtags_column=columns.hashtags,
        separator=columns.separator,
        progress=progress,
        **resources.options(),
    )


def parse_part(text: str) -> tuple[int, int]:
    """``2/8`` as (2, 8); UsageError for anything else."""
    number, _, parts = text.partition("/")
    if number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
        return int(number), int(parts)
    raise UsageError(f"--part {text}: expected I/N with I from 1 to N, such as 2/8")


def part_of(sources: Sequence[str], part: str | None) -> list[str]:
    """The files of one part: every N-th, so that parts are alike where files are."""
    if part is None:
        return list(sources)
    number, parts = parse_part(part)
    return list(sources[number - 1 :: parts])


def build_counts(
    sources: list[str],
    columns: Columns,
    out: Path,
    *,
    resources: Resources = UNLIMITED,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
    executor: Executor | None = None,
) -> bool:
    """Counts record files into the file `out`; False where it is there already, of the same files.

    Raises UsageError where `out` was made of others and `overwrite` is not given.
    """
    made_of = {
        "records": {source: stores.stamp(source) for source in sources},
        "hashtags_column": columns.hashtags,
        "separator": columns.separator,
        "unicode_version": UNICODE_VERSION,
    }
    if _is_there(out, made_of, overwrite):
        return False
    counts = HashtagCounts()
    # A part of fewer files than parts may have none.
    if sources or executor is not None:
        counts = count_sources(sources, columns, resources=resources, progress=progress, executor=executor)
    _publish(out, counts, made_of)
    return True


def merge_counts(
    parts: Sequence[Path], out: Path, *, resources: Resources = UNLIMITED, overwrite: bool = False
) -> bool:
    """Joins files of counts; False where `out` is there already, of the same parts.

    Raises UsageError where a record file was counted in two of them, or a part is given twice.
    """
    made_of = _made_of_parts(parts)
    if _is_there(out, made_of, overwrite):
        return False
    _publish(out, load_counts(parts, resources=resources), made_of)
    return True


def load_counts(parts: Sequence[Path], *, resources: Resources = UNLIMITED) -> HashtagCounts:
    """The counts of files, joined."""
    _made_of_parts(parts)
    # Each is read while the sum is there, so they share what memory is allowed.
    share = resources
    if resources.memory_bytes is not None and len(parts) > 1:
        share = replace(resources, memory_bytes=max(resources.memory_bytes // 2, 1 << 20))
    counts = HashtagCounts.load(parts[0], **share.memory())
    for part in parts[1:]:
        counts.merge(HashtagCounts.load(part, **share.memory()))
    return counts


def _made_of_parts(parts: Sequence[Path]) -> dict[str, Any]:
    records: dict[str, Any] = {}
    origin: dict[str, Path] = {}
    seen: dict[str, Path] = {}
    for part in parts:
        if not part.is_file():
            raise FileNotFoundError(2, "no such file of counts", str(part))

        # One file can be given by two paths.
        resolved = str(part.resolve())
        if resolved in seen:
            raise UsageError(f"{part}: the part is given twice, so its records would count twice")
        seen[resolved] = part

        # Another version of Unicode may normalize a tag differently, and its counts would not be added up.
        known = _read_sidecar(part)
        if known.get("unicode_version", UNICODE_VERSION) != UNICODE_VERSION:
            raise UsageError(
                f"{part}: its hashtags were normalized by Unicode {known['unicode_version']}, and this wsl "
                f"does it by {UNICODE_VERSION}; count its records again with this one"
            )

        # Different parts may have read the same records.
        for record in known.get("records", {}):
            if record in origin:
                raise UsageError(
                    f"{part} and {origin[record]} were both made of {record}, which would count twice; "
                    "leave one of them out, or make the parts with --part I/N"
                )
            origin[record] = part
        records |= known.get("records", {})
    stamps = {str(part): stores.stamp(part) for part in parts}
    return {"records": records, "parts": stamps, "unicode_version": UNICODE_VERSION}


def _sidecar(out: Path) -> Path:
    return out.with_name(out.name + ".json")


def _read_sidecar(out: Path) -> dict[str, Any]:
    path = _sidecar(out)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON: {error}; count again with --overwrite") from None
    return content if isinstance(content, dict) else {}


def _is_there(out: Path, made_of: dict[str, Any], overwrite: bool) -> bool:
    if not out.exists() or overwrite:
        return False
    # Counts that were made before the version was noted are as they were.
    if {"unicode_version": UNICODE_VERSION} | _read_sidecar(out) == json.loads(json.dumps(made_of)):
        return True
    raise UsageError(f"{out}: there are counts of other records or options; pass --overwrite to replace them")


def _publish(out: Path, counts: HashtagCounts, made_of: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    # What it is made of comes last: without it the file is not taken for a result.
    _sidecar(out).unlink(missing_ok=True)
    counts.save(out)
    publish_text(_sidecar(out), json.dumps(made_of, indent=2) + "\n")
