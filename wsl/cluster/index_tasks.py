"""Parts of an index: what a worker reads, joins and writes of it. What they are: the engine's `index::steps`.

    scan       of a group of shards: their headers
    records    of a group of tables: keys and labels, in buckets by the hash of the key
    samples    of a group of shards: the keys of their samples, in the same buckets
    known      of the index that is appended to: the same
    join       of some buckets: labels of samples, out of all files of records and samples
    part       of a range of ordinals: a part of the index
    rows       of a group of tables that are an index by themselves: keys and labels, in their order
    alone      of a range of these: a part of the index
    manifest   of all: the index, made visible

Files of records, samples and labels are read where they are, each worker its own range of every one.
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
from wsl.cluster.plan import check_stamps, resources_of
from wsl.files import stores
from wsl.files.locking import held_by_task
from wsl.hashtags.vocabulary import Vocabulary
from wsl.index.build import BUILDING, Ending, files_read_by_the_engine, open_by, prepare
from wsl.index.mapped import MANIFEST
from wsl.workspace.recipe import Recipe


def _recipe(parts: Parts, name: str) -> Recipe:
    """The recipe that all workers get."""
    with parts.held(name) as (file,):
        return Recipe.model_validate_json(file.read_bytes())


def _vocabulary(parts: Parts, name: str) -> Vocabulary:
    with parts.held(name) as (file,):
        return Vocabulary.read(file)


def _scan(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    recipe = Recipe(label_kind=given["label_kind"], key_scope=given["key_scope"])
    check_stamps(given["shards"])
    _core.save_scans(
        list(given["shards"]),
        out,
        recipe,
        num_threads=part.limits["num_threads"],
        storage=stores.core(),
    )
    check_stamps(given["shards"])


def _records(parts: Parts, part: Part, out: Path) -> None:
    files = part.arguments["records"]
    check_stamps(files)
    labels, recipe = _vocabulary(parts, part.inputs[0]), _recipe(parts, part.inputs[1])
    found, read = open_by(recipe, list(files))
    with found.reading():
        _core.save_records(found.stream, out, read, vocabulary=labels.core, resources=resources_of(part))
    check_stamps(files)


def _rows(parts: Parts, part: Part, out: Path) -> None:
    stamps = part.arguments["records"]
    check_stamps(stamps)
    labels, recipe = _vocabulary(parts, part.inputs[0]), _recipe(parts, part.inputs[1])
    about: dict[str, Any] = {"vocabulary": labels.core, "num_threads": part.limits["num_threads"]}
    files = files_read_by_the_engine(recipe, list(stamps))
    if not (files and _core.save_parquet_rows(files, out, recipe, **about)):
        found, read = open_by(recipe, list(stamps))
        with found.reading():
            _core.save_rows(found.stream, out, read, **about)
    check_stamps(stamps)


def _samples(parts: Parts, part: Part, out: Path) -> None:
    scans, recipe = part.inputs
    with parts.held(scans) as (file,):
        _core.save_samples(
            file,
            part.arguments["shards"],
            out,
            _recipe(parts, recipe),
            resources=resources_of(part),
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
        resources=resources_of(part),
        storage=stores.core(),
    )


def _part(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    recipe, *others = part.inputs
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
            _recipe(parts, recipe),
            storage=stores.core(),
        )


def _alone(parts: Parts, part: Part, out: Path) -> None:
    rows = [(first, last) for first, last in part.arguments["rows"]]
    wanted = list(zip(map(parts.place, part.inputs), rows, strict=True))
    _core.write_alone(wanted, out, storage=stores.core())


def _known(parts: Parts, part: Part, out: Path) -> None:
    recipe = Recipe(key_scope=part.arguments["key_scope"])
    _core.save_known(part.limits["folder"], out, recipe, resources=resources_of(part))


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
    build, told, *vocabulary = part.inputs
    recipe = _recipe(parts, told)
    labels = _vocabulary(parts, vocabulary[0]) if vocabulary else None
    with parts.held(build) as (file,):
        about = json.loads(file.read_text(encoding="utf-8"))
    ending = Ending(**about["ending"])
    builder = _core.IndexBuilder(
        folder,
        recipe,
        resources=resources_of(part),
        append=ending.is_appended,
        storage=stores.core(),
    )
    taken = {kind: list(map(parts.place, names)) for kind, names in about["taken"].items()}
    _take_over(builder, about, taken)
    for name, num_rows in about["parts"]:
        with parts.held(name) as (file,):
            builder.add_part(file, num_rows)
    return builder, prepare(builder, folder, recipe, ending, labels)


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
