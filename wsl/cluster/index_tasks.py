"""Parts of an index: what a worker reads, joins and writes of it. The engine's `spread` says what they are.

    scan       of a group of shards: their headers
    records    of a group of tables: keys and labels, in buckets by the hash of the key
    samples    of a group of shards: the keys of their samples, in the same buckets
    known      of the index that is appended to: the same
    join       of some buckets: labels of samples, out of all files of records and samples
    part       of a range of ordinals: a part of the index
    rows       of a group of tables that are an index by themselves: keys and labels, in their order
    alone      of a range of these: a part of the index
    manifest   of all: the index, made visible

Files of records, samples and labels are read where they lie, each worker its own range of every one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsl import _core
from wsl._core import DataError
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import check_stamps
from wsl.files import stores
from wsl.files.globs import plain_parquet
from wsl.files.locking import held_by_task
from wsl.files.tables import Records, open_records
from wsl.hashtags.vocabulary import Vocabulary
from wsl.index.build import BUILDING, Ending, prepare
from wsl.index.mapped import MANIFEST


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
        storage=stores.core(),
    )
    check_stamps(given["shards"])


def _opened(given: Mapping[str, Any]) -> Records:
    columns = given["columns"]
    return open_records(
        list(given["records"]),
        key_column=columns["key_column"],
        hashtags_column=columns["hashtags_column"],
        separator=columns["separator"],
        shard_column=columns["shard_column"],
        path_column=given.get("path_column"),
    )


def _records(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    columns, (vocabulary, lists) = given["columns"], part.inputs
    check_stamps(given["records"])
    with parts.held(vocabulary) as (file,):
        labels = Vocabulary.read(file)
    found = _opened(given)
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


def _rows(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    vocabulary, lists = part.inputs
    check_stamps(given["records"])
    with parts.held(vocabulary) as (file,):
        labels = Vocabulary.read(file)
    columns = {name: given["columns"][name] for name in ("key_column", "hashtags_column")}
    others = {name: given["columns"][name] for name in ("separator", "key_format")}
    about: dict[str, Any] = {"vocabulary": labels.core, **_lists(parts, lists)}
    about["num_threads"] = part.limits["num_threads"]
    files = [] if any(others.values()) else plain_parquet(list(given["records"]))
    if not (files and _core.save_parquet_rows(files, out, **columns, **about)):
        found = _opened(given)
        others["separator"] = found.separator
        with found.reading():
            _core.save_rows(found.stream, out, **columns, **others, **about)
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
        storage=stores.core(),
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
            storage=stores.core(),
            **_lists(parts, lists),
        )


def _alone(parts: Parts, part: Part, out: Path) -> None:
    rows = [(first, last) for first, last in part.arguments["rows"]]
    wanted = list(zip(map(parts.place, part.inputs), rows, strict=True))
    _core.write_alone(wanted, out, storage=stores.core())


def _known(parts: Parts, part: Part, out: Path) -> None:
    scope = part.arguments["key_scope"]
    _core.save_known(part.limits["folder"], out, key_scope=scope, **_memory(part.limits))


def hash_of_manifest(folder: str) -> str | None:
    """The SHA-256 of the manifest in a folder; None where there is none."""
    file = Path(folder) / MANIFEST
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def _manifest(parts: Parts, part: Part, out: Path) -> None:
    """Takes over what was made, writes keys and manifest, and makes the index visible.

    The body of the part is the manifest. It is there before the index is, so that who begins again knows
    an index that is made already from one that somebody else has changed.
    """
    given, folder = part.arguments, Path(part.arguments["folder"])
    with held_by_task(folder, BUILDING):
        if hash_of_manifest(given["folder"]) == given["replaces"]:
            builder, text = _prepared(parts, part, folder)
            stores.write_bytes(parts.place(part.name), text)
            builder.publish()
        else:
            text = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).is_file() else b""
            seen = stores.head(parts.place(part.name))
            if seen is None or stores.read_bytes(parts.place(part.name)) != text:
                raise DataError(
                    f"{folder}: the index was changed while the run went on; run the command again when it "
                    f"stays as it is"
                )
    out.write_bytes(text)


def _prepared(parts: Parts, part: Part, folder: Path) -> tuple[_core.IndexBuilder, bytes]:
    """A builder that has written all but the manifest, and what that will be."""
    build, lists, *vocabulary = part.inputs
    with parts.held(build, *vocabulary) as (file, *files):
        about = json.loads(file.read_text(encoding="utf-8"))
        labels = Vocabulary.read(files[0]) if files else None
    ending = Ending(**about["ending"])
    builder = _core.IndexBuilder(
        folder,
        about["labels"],
        key_scope=about["key_scope"],
        num_threads=part.limits["num_threads"],
        limits=about["limits"],
        part_rows=about["part_rows"],
        append=ending.is_appended,
        storage=stores.core(),
        **_lists(parts, lists),
        **_memory(part.limits),
    )
    taken = {kind: list(map(parts.place, names)) for kind, names in about["taken"].items()}
    _take_over(builder, about, taken)
    for name, num_rows in about["parts"]:
        with parts.held(name) as (file,):
            builder.add_part(file, num_rows)
    return builder, prepare(builder, folder, ending, labels)


def _take_over(
    builder: _core.IndexBuilder, about: Mapping[str, Any], taken: Mapping[str, Sequence[str]]
) -> None:
    """Counts what was counted."""
    if "rows" in taken:
        builder.add_rows(list(taken["rows"]))
        return
    builder.add_spread(
        about["names"],
        records=list(taken["records"]),
        samples=list(taken["samples"]),
        labels=list(taken["joins"]),
        again=about["again"],
    )


KINDS: dict[str, Callable[[Parts, Part, Path], Any]] = {
    "scan": _scan,
    "records": _records,
    "samples": _samples,
    "join": _join,
    "part": _part,
    "rows": _rows,
    "alone": _alone,
    "known": _known,
    "manifest": _manifest,
}
