"""Parts of an index: what a worker reads, joins and writes of it. The engine's `spread` says what they are.

    scan       of a group of shards: their headers
    records    of a group of tables: keys and labels, in buckets by the hash of the key
    samples    of a group of shards: the keys of their samples, in the same buckets
    known      of the index that is appended to: the same
    join       of some buckets: labels of samples, out of all files of records and samples
    part       of a range of ordinals: a part of the index

Files of records, samples and labels are read where they lie, each worker its own range of every one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsl import _core, storage
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import check_stamps
from wsl.source import open_records
from wsl.vocabulary import Vocabulary


def _memory(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {name: limits.get(name) for name in ("memory_bytes", "spill_dir")}


def _lists(parts: Parts, name: str) -> dict[str, Any]:
    """The keys to take and to leave out."""
    with parts.held(name) as (file,):
        lists: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return lists


def _scan(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    check_stamps(given["shards"])
    _core.save_scans(
        list(given["shards"]),
        out,
        with_classes=given["with_classes"],
        key_scope=given["key_scope"],
        num_threads=part.limits["num_threads"],
        storage=storage.core(),
    )
    check_stamps(given["shards"])


def _records(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    columns, (vocabulary, lists) = given["columns"], part.inputs
    check_stamps(given["records"])
    with parts.held(vocabulary) as (file,):
        labels = Vocabulary.read(file)
    found = open_records(
        list(given["records"]),
        key_column=columns["key_column"],
        hashtags_column=columns["hashtags_column"],
        separator=columns["separator"],
        shard_column=columns["shard_column"],
        path_column=given["path_column"],
    )
    with found.reading():
        _core.save_records(
            found.stream,
            out,
            key_column=columns["key_column"],
            hashtags_column=columns["hashtags_column"],
            vocabulary=labels.core,
            separator=found.separator,
            shard_column=given["path_column"] or columns["shard_column"],
            key_format=columns["key_format"],
            key_scope=given["key_scope"],
            num_threads=part.limits["num_threads"],
            **_lists(parts, lists),
            **_memory(part.limits),
        )
    check_stamps(given["records"])


def _samples(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    scans, lists = part.inputs
    with parts.held(scans) as (file,):
        _core.save_samples(
            file,
            given["shards"],
            out,
            joined=given["joined"],
            key_scope=given["key_scope"],
            **_lists(parts, lists),
            **_memory(part.limits),
        )


def _join(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    places = list(map(parts.place, part.inputs))
    middle = given["num_records"] + given["num_samples"]
    _core.join_samples(
        places[: given["num_records"]],
        places[given["num_records"] : middle],
        out,
        known=places[middle] if len(places) > middle else None,
        first_bucket=given["first_bucket"],
        stop_bucket=given["stop_bucket"],
        storage=storage.core(),
        **_memory(part.limits),
    )


def _part(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    lists, *others = part.inputs
    scans, labels = others[: len(given["groups"])], others[len(given["groups"]) :]
    with parts.held(*scans) as files:
        groups = [
            (
                file,
                group["shards"],
                group["number"],
                group["first_shard"],
                tuple(group["skip"]),
                tuple(group["rows"]),
            )
            for file, group in zip(files, given["groups"], strict=True)
        ]
        _core.write_part(
            groups,
            list(map(parts.place, labels)),
            out,
            label_source=given["labels"],
            key_scope=given["key_scope"],
            storage=storage.core(),
            **_lists(parts, lists),
        )


KINDS: dict[str, Callable[[Parts, Part, Path], Any]] = {
    "scan": _scan,
    "records": _records,
    "samples": _samples,
    "join": _join,
    "part": _part,
}
