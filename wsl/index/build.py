"""Building an index: options checked, hashtags counted, the engine's builder driven, one build at a time.

A killed build resumes where it was when the same call is made again; the engine keeps the journal, and
beside it is the vocabulary that was counted (``building.parquet``). The index that is there stays
whole until the new manifest takes its place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from wsl import _core
from wsl._core import UsageError
from wsl.files import stores
from wsl.files.globs import find_files, plain_parquet
from wsl.files.locking import locked
from wsl.files.resources import Resources
from wsl.files.tables import Records, open_records
from wsl.hashtags import counting
from wsl.hashtags.counts import HashtagCounts, count_hashtags
from wsl.hashtags.vocabulary import Vocabulary
from wsl.index.mapped import MANIFEST, VOCABULARY, Index
from wsl.workspace.recipe import Recipe
from wsl.workspace.settings import check

STAGED = "building.parquet"
BUILDING = "building this index"
"""What a process that has locked the folder is doing."""
SHARD = "__shard"
"""The column of shard names that is made where the records have none."""

Counter = Callable[[], HashtagCounts]
"""Counts the records that are indexed."""
Append = Literal["all records", "new records"]
"""Whether records that come with new shards are all of the index's again, or those of the new ones."""


@dataclass(frozen=True)
class Wanted:
    """An index that is to be built elsewhere, and of what."""

    folder: str
    recipe: Recipe
    shards: Sequence[str]
    """Where they are, in their order."""
    names: Sequence[str]
    """What the index calls them."""
    records: object
    vocabulary: Vocabulary | None
    known: Index | None
    """The index that is appended to."""
    again: bool
    """Whether the records are all of that index's again."""
    ending: Ending
    resources: Resources


@dataclass(frozen=True)
class Ending:
    """What a manifest records beside the recipe and what was counted."""

    shard_root: str
    """What the names of shards start from, seen from the index."""
    provenance: dict[str, Any]
    is_appended: bool
    """Whether the index has a vocabulary already, which stays."""


class Executor(counting.Executor, Protocol):
    """Where an index is built and its hashtags are counted, when not in this process."""

    def build(self, wanted: Wanted, *, run: str | None = None) -> None:
        """Builds the index, manifest included; a killed build resumes where it was."""
        ...


def build_index(
    out: str | os.PathLike[str],
    shards: Sequence[str | os.PathLike[str]] = (),
    *,
    records: object = None,
    vocabulary: Vocabulary | Callable[[Counter], Vocabulary] | None = None,
    memory_bytes: int | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    provenance: dict[str, Any] | None = None,
    append: Append | None = None,
    elsewhere: Callable[[Wanted], None] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> Index:
    """Indexes tar shards, or records alone, into the folder `out` and opens the result.

    `options` are the fields of `wsl.workspace.recipe.Recipe`: `label_kind`, `key_column`,
    `hashtags_column`, `separator`, `key_scope`, `shard_column`, `key_format`, `min_count`, `max_labels`,
    `class_names`, `include`, `exclude`, `limits` and `part_rows`.

    `label_kind` "hashtag" joins `records` (a path, glob, Polars frame or Arrow stream with a column of
    keys and one of hashtags; what can be read only once needs `vocabulary`) by their keys. Integer keys
    are written by `key_format`, such as ``{:09d}``. Without records the hashtags are those of the
    shards' own members: `hashtags_column` is the field of their ``.json``, or ``.txt``. Without shards
    each record is a sample that has no image. "class" reads the shards' ``.cls`` members, None makes an
    index without labels.

    `key_scope` "shard" means that keys begin anew in every shard. `shard_column` then names the shard of
    a record (its file's name, with or without folder and ``.tar``); without it a table of records is
    beside its shard and has its name, as img2dataset writes them. Shards and records may be in object stores
    (`wsl.files.stores`).

    The vocabulary is `vocabulary` (or what it returns when called with a function that counts the
    records), or made from the counts (`min_count`, `max_labels`), or from `class_names`. Shards are taken
    in the order given; one given as a URI is recorded so, others by their paths from their common folder.
    `include` lists the only keys to take, `exclude` keys to leave out (``SHARD:KEY`` in scope "shard").
    `limits` are shares above which the build is refused: of ``keys_doubled`` (default 0),
    ``samples_split`` (0), ``samples_without_record`` (0.99), ``records_without_sample`` (0.99) and
    ``records_doubled`` (1).
    `progress` is called with the number of shards done (records, where there are no shards).
    `memory_bytes` limits the counting and the join, which go to disk (`spill_dir`) beyond it; the part
    under way takes about 100 MB more. A part has `part_rows` samples, at most 2^20; a killed build
    resumes after the last part that was finished.

    `append` adds `shards` to the index that is there: ordinals, parts and vocabulary stay; `records` are
    all of the index's again, or only those of the new shards (of the new samples, without shards).

    `elsewhere` builds the index in place of this process (an `Executor`'s `build`), which counts the
    hashtags, if it must, and locks the folder meanwhile; a killed build resumes as `elsewhere` resumes.

    The index is there whole or not at all: its manifest is written last. Raises UsageError for options
    that do not fit together, an index that is there already or another process that builds it, DataError
    for damaged shards or records and for shares above their limits.
    """
    recipe = check(Recipe, options, "build_index")
    resources = Resources(memory_bytes, None if spill_dir is None else Path(spill_dir), num_threads)
    return build_by(
        recipe,
        Path(out),
        shards,
        records=records,
        vocabulary=vocabulary,
        resources=resources,
        provenance=provenance,
        append=append,
        elsewhere=elsewhere,
        overwrite=overwrite,
        progress=progress,
    )


def build_by(
    recipe: Recipe,
    folder: Path,
    shards: Sequence[str | os.PathLike[str]],
    *,
    records: object,
    vocabulary: Vocabulary | Callable[[Counter], Vocabulary] | None,
    resources: Resources,
    provenance: dict[str, Any] | None,
    append: Append | None,
    elsewhere: Callable[[Wanted], None] | None,
    overwrite: bool,
    progress: Callable[[int], object] | None,
) -> Index:
    """As `build_index`, by a recipe."""
    _check_inputs(folder, shards, records, recipe)
    if recipe.label_kind == "hashtag" and records is None:
        records = [_place(shard, folder)[0] for shard in shards]

    # Two builds in one folder would write over each other's parts.
    with locked(folder, BUILDING):
        if (folder / MANIFEST).exists() and append is None and not overwrite:
            raise UsageError(f"{folder}: there is an index already; pass --overwrite to replace it")

        # Samples that are in the index keep their labels, so what is added to it uses its vocabulary.
        known = Index.open(folder) if append is not None else None
        if known is not None:
            vocabulary = known.vocabulary

        # The index names shards by their path from `root`, and `root` by its path from itself, so that both
        # can be moved together.
        root = _shard_root(folder, shards, known)
        places: list[tuple[str | os.PathLike[str], str]] = [_place(shard, root) for shard in shards]
        wanted = Wanted(
            folder=os.path.abspath(folder),
            recipe=recipe,
            shards=[os.fspath(place) for place, _ in places],
            names=[name for _, name in places],
            records=records,
            vocabulary=vocabulary if isinstance(vocabulary, Vocabulary) else None,
            known=known,
            again=append != "new records",
            ending=Ending(os.path.relpath(root, folder.resolve()), provenance or {}, known is not None),
            resources=resources,
        )

        # An executor keeps its finished parts itself; only a build in this process has a journal to resume.
        resume_key = None if elsewhere else _resume_key(wanted, shards, append)
        builder = _builder(folder, wanted, resume_key)
        # What is counted here is written at once, so that a killed build need not count again.
        is_written = recipe.label_kind == "hashtag" and wanted.vocabulary is None
        if recipe.label_kind == "hashtag":
            counting = _Counting(wanted)
            made = vocabulary or functools.partial(_build_vocabulary, recipe)
            counted = _vocabulary(folder, builder.is_resumed, made, counting.count, recipe)
            wanted = replace(wanted, vocabulary=counted)
            if elsewhere is None:
                _add_records(builder, wanted, counted, counting.spool, progress)
            del counting

        # The parts of an executor are put together by a builder of its own; this one only checked the names.
        if elsewhere is not None:
            del builder
            elsewhere(wanted)
            return Index.open(folder)

        # The manifest is written last: until then readers see the index that was there.
        builder.add_shards(places, progress=progress)
        prepare(builder, folder, recipe, wanted.ending, wanted.vocabulary, is_written=is_written)
        builder.publish()
        return Index.open(folder)


def _builder(folder: Path, wanted: Wanted, resume_key: str | None) -> _core.IndexBuilder:
    builder = _core.IndexBuilder(
        folder,
        wanted.recipe,
        resources=wanted.resources,
        resume_key=resume_key,
        append=wanted.known is not None,
        storage=stores.core(),
    )
    builder.check_names(list(wanted.names))
    return builder


def drop_samples(path: str | os.PathLike[str], keys: Sequence[str]) -> tuple[int, int, list[str]]:
    """Takes the samples with these keys down: they keep their ordinals and have neither image nor labels.

    Returns how many were removed now, how many had been before, and the keys that no sample has. In
    an index whose keys begin anew in every shard a key is ``SHARD:KEY``. Building the index anew keeps
    what was removed. Raises UsageError where there is no index or it is being built.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        Index.open(folder)
    with locked(folder, BUILDING):
        return _core.drop_keys(folder, list(keys))


def _check_inputs(
    folder: Path, shards: Sequence[str | os.PathLike[str]], records: object, recipe: Recipe
) -> None:
    if not shards and (records is None or recipe.label_kind != "hashtag"):
        raise UsageError(f"{folder}: an index needs shards, or records of hashtags (label_kind hashtag)")
    if recipe.label_kind != "hashtag" and records is not None:
        raise UsageError(f"{folder}: records are read with --label-kind hashtag; classes from .cls members")
    if not shards and recipe.key_scope == "shard":
        raise UsageError(f"{folder}: records alone have no shards, so their keys cannot begin anew in each")
    for shard in shards:
        _place(shard, folder)


def _local(shard: str | os.PathLike[str]) -> Path:
    """The path of a shard that is a file; UsageError for a URI of another kind than ``file://``."""
    scheme, mark, rest = os.fspath(shard).partition("://")
    if not mark:
        return Path(shard).resolve()
    if scheme != "file":
        raise UsageError(
            f"the shard {os.fspath(shard)} lies in a store of kind {scheme!r}, which is not read; copy "
            "the shards to a local folder or a store of kind s3, gs or az"
        )
    return Path(rest)


def _shard_root(folder: Path, shards: Sequence[str | os.PathLike[str]], known: Index | None) -> Path:
    if known is not None:
        return (folder / str(known.manifest["shard_root"])).resolve()
    folders = [_local(shard).parent for shard in shards if "://" not in os.fspath(shard)]
    return Path(os.path.commonpath(folders)) if folders else folder.resolve()


def _place(shard: str | os.PathLike[str], root: Path) -> tuple[str, str]:
    """Where a shard is, and what the index calls it: its URI, or its path from `root`."""
    named = os.fspath(shard)
    if stores.is_remote(named):
        return named, named
    local = _local(shard)
    return os.fspath(local), named if "://" in named else os.path.relpath(local, root)


class _Counting:
    """Counts the records, and where they are a whole index by themselves, keeps what it read."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self.spool: _core.Spool | None = None

    def count(self) -> HashtagCounts:
        """The counts; `spool` has the records from then on, if it can."""
        wanted, resources = self._wanted, self._wanted.resources
        files = _files_alone(wanted)
        if files:
            # Beside the index, which takes more than the spool does.
            beside = replace(resources, spill_dir=resources.spill_dir or Path(wanted.folder))
            read = _core.Spool.read(files, wanted.recipe, resources=beside)
            if read is not None:
                counts, self.spool = read
                return HashtagCounts(counts)
        return count_hashtags(
            wanted.records,
            hashtags_column=wanted.recipe.hashtags_column,
            separator=wanted.recipe.separator,
            **resources.options(),
        )


def files_read_by_the_engine(recipe: Recipe, records: object) -> list[str | os.PathLike[str]]:
    """The files of records without shards, where the engine may read them itself."""
    others = recipe.separator is not None or recipe.key_format is not None
    return [] if others else plain_parquet(records)


def _files_alone(wanted: Wanted) -> list[str | os.PathLike[str]]:
    """The same where the records are a whole index by themselves; with shards they are joined instead."""
    return [] if wanted.shards else files_read_by_the_engine(wanted.recipe, wanted.records)


def _build_vocabulary(recipe: Recipe, count: Counter) -> Vocabulary:
    return Vocabulary.build(count(), min_count=recipe.min_count, max_labels=recipe.max_labels)


def prepare(
    builder: _core.IndexBuilder,
    folder: Path,
    recipe: Recipe,
    ending: Ending,
    vocabulary: Vocabulary | None,
    *,
    is_written: bool = False,
) -> bytes:
    """Writes all of an index but its manifest, and returns the bytes that this will have.

    Classes without a `vocabulary` get one; where it `is_written`, it is beside the parts already.
    """
    if recipe.label_kind == "class" and vocabulary is None:
        highest = builder.highest_class or 0
        vocabulary = Vocabulary.of_classes(recipe.class_names or [str(n) for n in range(highest + 1)])
    if recipe.label_kind is None:
        vocabulary = None
    if vocabulary is not None and not (ending.is_appended or is_written):
        vocabulary.write(folder / STAGED)
    return builder.prepare(
        None if vocabulary is None else vocabulary.core,
        vocabulary_file=VOCABULARY if ending.is_appended else STAGED,
        shard_root=ending.shard_root,
        provenance=json.dumps(ending.provenance),
    )


def _vocabulary(
    folder: Path,
    is_resumed: bool,
    made: Vocabulary | Callable[[Counter], Vocabulary],
    count: Counter,
    recipe: Recipe,
) -> Vocabulary:
    """The vocabulary; what a killed build had counted is not counted again."""
    if isinstance(made, Vocabulary):
        return made
    staged = folder / STAGED
    if is_resumed and staged.is_file():
        return Vocabulary.read(staged)
    vocabulary = made(count)
    if not len(vocabulary):
        raise UsageError(
            f"{folder}: no hashtag is on min_count = {recipe.min_count} records; lower it, or name where the "
            "hashtags are (records, hashtags_column)"
        )
    vocabulary.write(staged)
    return vocabulary


def _add_records(
    builder: _core.IndexBuilder,
    wanted: Wanted,
    vocabulary: Vocabulary,
    spool: _core.Spool | None,
    progress: Callable[[int], object] | None,
) -> None:
    if spool is not None:
        builder.index_spooled(spool, vocabulary=vocabulary.core, progress=progress)
        return
    recipe, files = wanted.recipe, _files_alone(wanted)
    if files and builder.index_parquet(files, recipe, vocabulary=vocabulary.core, progress=progress):
        return
    found, read = open_by(recipe, wanted.records)
    with found.reading():
        if wanted.shards:
            builder.add_records(found.stream, read, vocabulary=vocabulary.core, again=wanted.again)
        else:
            builder.index_records(found.stream, read, vocabulary=vocabulary.core, progress=progress)


def open_by(recipe: Recipe, source: object) -> tuple[Records, Recipe]:
    """Records with the columns that a recipe names, and the recipe for them as they are read.

    That has how their text is split, and which column names the shard: one more, where tables have the names
    of their shards.
    """
    records = open_records(
        source,
        key_column=recipe.key_column,
        hashtags_column=recipe.hashtags_column,
        separator=recipe.separator,
        shard_column=recipe.shard_column,
        path_column=SHARD if recipe.is_by_path else None,
    )
    shard = None
    if recipe.key_scope == "shard":
        shard = recipe.shard_column or SHARD
    return records, recipe.model_copy(update={"separator": records.separator, "shard_column": shard})


def _resume_key(
    wanted: Wanted, shards: Sequence[str | os.PathLike[str]], append: Append | None
) -> str | None:
    """A hash of all that determines the index; None where the records cannot be known again."""
    files: list[str] = []
    if wanted.records is not None:
        if not isinstance(wanted.records, (str, os.PathLike, list, tuple)):
            return None
        files = find_files(wanted.records)
    stamps = {os.fspath(path): stores.stamp(path) for path in [*shards, *files]}
    order = [os.fspath(shard) for shard in shards]
    recipe = wanted.recipe.model_dump(exclude={"limits"})
    vocabulary = getattr(wanted.vocabulary, "fingerprint", None)
    made_of = [_core.__version__, append, recipe, wanted.ending.provenance, vocabulary, stamps, order]
    return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()
