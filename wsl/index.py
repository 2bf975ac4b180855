"""The memory-mapped index over tar shards: building it, looking samples up, reading images."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from wsl import _core
from wsl._core import DataError, UsageError
from wsl.hashtags import count_hashtags
from wsl.source import open_records
from wsl.vocabulary import Vocabulary

VOCABULARY = "vocabulary.parquet"
MANIFEST = "manifest.json"
Scheme = Literal["natural", "square-root", "uniform", "clip"]
Ordinals = npt.NDArray[np.int64]


class Index:
    """Where every sample of some tar shards lies, and what its labels are.

    Opening maps the files and reads next to nothing. Ordinals run from 0 in the order of the shards
    and of their members; arrays of ordinals are int64. Unknown ordinals raise UsageError, damaged
    files DataError.
    """

    def __init__(self, core: _core.Index, path: Path) -> None:
        self._core = core
        self.path = path
        self.manifest: dict[str, Any] = json.loads(core.manifest())
        self._noise: tuple[tuple[float, int], _core.LabelNoise] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, shard_root: str | os.PathLike[str] | None = None) -> Index:
        """Opens the index in the folder `path`; `shard_root` says where its shards lie now.

        Raises UsageError where there is no index, DataError where it is damaged or of another version.
        """
        return cls(_core.Index.open(path, shard_root=shard_root), Path(path))

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}: {len(self):,} samples, {self.num_labels:,} labels)"

    @property
    def fingerprint(self) -> str:
        """A hash of the content, free of paths and times."""
        return str(self.manifest["fingerprint"])

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """The fingerprint of the vocabulary; None for an index without labels."""
        found = self.manifest["vocabulary_fingerprint"]
        return None if found is None else str(found)

    @property
    def num_labels(self) -> int:
        """Labels in the vocabulary."""
        return int(self.manifest["num_labels"])

    @property
    def label_kind(self) -> str | None:
        """ "hashtag", "class" or None."""
        return self.manifest["label_kind"]  # type: ignore[no-any-return]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The vocabulary; DataError where its file is not the one the index was built with."""
        if self.vocabulary_fingerprint is None:
            return None
        vocabulary = Vocabulary.read(self.path / VOCABULARY)
        if vocabulary.fingerprint != self.vocabulary_fingerprint:
            raise DataError(
                f"{self.path / VOCABULARY}: expected the vocabulary {self.vocabulary_fingerprint} that the "
                f"index was built with, found {vocabulary.fingerprint}; build the index again"
            )
        return vocabulary

    @property
    def class_names(self) -> list[str] | None:
        """The name of each label, or None."""
        return None if self.vocabulary is None else self.vocabulary.names

    def labels(self, ordinals: Ordinals | Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """The labels of each sample, ascending int64 arrays."""
        flat, offsets = self.flat_labels(np.ascontiguousarray(ordinals, dtype=np.int64))
        return np.split(flat.astype(np.int64), offsets[1:-1])

    def flat_labels(self, ordinals: Ordinals) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The same as one uint32 array and int64 offsets into it, one more than ordinals."""
        labels, offsets = self._core.labels(np.ascontiguousarray(ordinals, dtype=np.int64))
        return np.frombuffer(labels, dtype=np.uint32), np.frombuffer(offsets, dtype=np.int64)

    def keys(self, ordinals: Ordinals | Sequence[int]) -> list[str]:
        """The keys of samples."""
        return self._core.keys(np.ascontiguousarray(ordinals, dtype=np.int64))

    def read(
        self, ordinals: Ordinals | Sequence[int], *, progress: Callable[[int], object] | None = None
    ) -> list[bytes]:
        """The encoded images of samples; DataError where a shard changed after the index was built."""
        return self._core.read(np.ascontiguousarray(ordinals, dtype=np.int64), progress=progress)

    def find(self, key: str) -> int | None:
        """The ordinal of the first sample with `key`, or None."""
        return self._core.find(key)

    def row(self, ordinal: int) -> dict[str, Any]:
        """Everything the index knows of a sample."""
        if ordinal < 0:
            raise UsageError(f"{self.path}: there is no sample {ordinal}")
        key, shard, offset, size = self._core.row(ordinal)
        labels = self.labels([ordinal])[0].tolist()
        names = self.class_names
        return {
            "sample": ordinal,
            "key": key,
            "shard": None if shard == Path() else os.fspath(shard),
            "offset": offset,
            "size": size,
            "labels": labels,
            "names": [names[label] for label in labels] if names else [],
        }

    def shards(self) -> pl.DataFrame:
        """Columns path, size, first_sample, num_samples."""
        schema = {"path": pl.String, "size": pl.UInt64, "first_sample": pl.UInt64, "num_samples": pl.UInt64}
        return pl.DataFrame(self._core.shards(), schema=schema, orient="row")

    def scan(self) -> pl.LazyFrame:
        """All rows in order: key, shard, offset, size, labels."""
        return pl.scan_ipc([self.path / part["file"] for part in self.manifest["parts"]])

    def label_counts(self) -> npt.NDArray[np.uint64]:
        """Samples with each label, uint64; one pass over the index, made once."""
        return np.frombuffer(self._core.label_counts(), dtype=np.uint64)

    def noise(self, share: float, seed: int) -> _core.LabelNoise:
        """The engine's label noise over this index, the one used last kept."""
        if self._noise is None or self._noise[0] != (share, seed):
            self._noise = (share, seed), _core.LabelNoise(self.label_counts(), share, seed)
        return self._noise[1]

    def verify(self, *, progress: Callable[[int], object] | None = None) -> None:
        """Reads every byte of the index and all headers of the shards; DataError where one differs."""
        self._core.verify(progress=progress)
        _ = self.vocabulary

    def info(self) -> dict[str, Any]:
        """What `wsl index info` shows."""
        shown = {
            key: self.manifest[key]
            for key in ("format_version", "num_samples", "num_labels", "label_kind", "fingerprint")
        }
        shards = self.shards()
        return shown | {
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "num_shards": len(shards),
            "shard_bytes": int(shards["size"].sum()),
            "num_parts": len(self.manifest["parts"]),
            "index_bytes": sum(part["size"] for part in self.manifest["parts"]),
            "counts": self.manifest["counts"],
        }


def repeat_factors(
    index: Index,
    *,
    scheme: Scheme = "square-root",
    threshold: float | None = None,
    epoch_length: float | None = None,
) -> npt.NDArray[np.float32]:
    """How often an epoch shows each sample: float32, one for each (Mahajan et al. 2018, section 2.2).

    r(I) = max over the labels h of image I of max(1, sqrt(t / f(h))) for "square-root", of
    max(1, t / f(h)) for "uniform", and 1 for "natural"; f(h) is the share of the index's samples with
    label h. "clip" is the mirror image, at most 1: max over the labels of min(1, t / f(h)), the balancing
    of MetaCLIP (Xu et al. 2024). A sample without labels has 0. `threshold` is t; or it is solved so that
    an epoch has about `epoch_length` samples: twice the labelled ones where neither is given, half of them
    for "clip".

    Raises UsageError for both, for an unknown scheme, and for lengths that cannot be.
    """
    if threshold is None and epoch_length is None:
        labelled = len(index) - int(index.manifest["counts"].get("samples_without_labels", 0))
        if scheme == "natural":
            threshold = 1.0
        else:
            epoch_length = labelled / 2 if scheme == "clip" else 2.0 * labelled
    factors, _ = index._core.repeat_factors(scheme, threshold=threshold, epoch_length=epoch_length)
    return np.frombuffer(factors, dtype=np.float32)


def build_index(
    out: str | os.PathLike[str],
    shards: Sequence[str | os.PathLike[str]] = (),
    *,
    records: object = None,
    label_kind: Literal["hashtag", "class"] | None = None,
    key_column: str = "key",
    hashtags_column: str = "hashtags",
    separator: str | None = None,
    vocabulary: Vocabulary | None = None,
    min_count: int = 1,
    max_labels: int | None = None,
    class_names: list[str] | None = None,
    exclude: Sequence[str] = (),
    memory_bytes: int | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    provenance: dict[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> Index:
    """Indexes tar shards, or records alone, into the folder `out` and opens the result.

    `label_kind` "hashtag" joins `records` (a path, glob, Polars frame or Arrow stream with a column of
    keys and one of hashtags; what can be read only once needs `vocabulary`) by their keys. Without
    records the hashtags are those of the shards' own members: `hashtags_column` is the field of their
    ``.json``, or ``.txt``. Without shards each record is a sample that has no image. "class" reads the
    shards' ``.cls`` members, None makes an index without labels. The vocabulary is `vocabulary`, or made
    from the counts (`min_count`, `max_labels`), or from `class_names`. Shards are taken in the order
    given. `exclude` lists keys to leave out. `progress` is called with the number of shards done
    (records, where there are no shards). `memory_bytes` and `spill_dir` limit the counting, as in
    `count_hashtags`.

    The index is there whole or not at all: its manifest is written last. Raises UsageError for options
    that do not fit together or an index that is there already, DataError for damaged shards or records.
    """
    folder = Path(out)
    _check_options(folder, shards, records, label_kind, overwrite)
    if label_kind == "hashtag" and records is None:
        records = [os.fspath(shard) for shard in shards]
    source = {None: "none", "class": "members", "hashtag": "records"}[label_kind]
    (folder / MANIFEST).unlink(missing_ok=True)
    builder = _core.IndexBuilder(folder, source, num_threads=num_threads, exclude=list(exclude))
    if label_kind == "hashtag":
        if vocabulary is None:
            counts = count_hashtags(
                records,
                hashtags_column=hashtags_column,
                separator=separator,
                memory_bytes=memory_bytes,
                spill_dir=spill_dir,
                num_threads=num_threads,
            )
            vocabulary = Vocabulary.build(counts, min_count=min_count, max_labels=max_labels)
        if not len(vocabulary):
            raise UsageError(
                f"{folder}: no hashtag is on min_count = {min_count} records; lower it, or name where the "
                "hashtags are (records, hashtags_column)"
            )
        found = open_records(
            records, key_column=key_column, hashtags_column=hashtags_column, separator=separator
        )
        take_in = builder.add_records if shards else builder.index_records
        with found.reading():
            take_in(
                found.stream,
                key_column=key_column,
                hashtags_column=hashtags_column,
                vocabulary=vocabulary.core,
                separator=found.separator,
                progress=None if shards else progress,
            )
    folders = [Path(shard).resolve().parent for shard in shards]
    root = Path(os.path.commonpath(folders)) if folders else folder.resolve()
    paths = [(Path(shard).resolve(), os.path.relpath(Path(shard).resolve(), root)) for shard in shards]
    builder.add_shards([*paths], progress=progress)
    if label_kind == "class" and vocabulary is None:
        highest = builder.highest_class
        names = class_names or [str(number) for number in range((highest or 0) + 1)]
        vocabulary = Vocabulary.of_classes(names)
    if vocabulary is not None and label_kind is not None:
        vocabulary.write(folder / VOCABULARY)
    builder.publish(
        None if vocabulary is None or label_kind is None else vocabulary.core,
        label_kind=label_kind,
        shard_root=os.path.relpath(root, folder.resolve()),
        provenance=json.dumps(provenance or {}),
    )
    _remove_leftovers(folder)
    return Index.open(folder)


def _check_options(
    folder: Path, shards: Sequence[object], records: object, label_kind: str | None, overwrite: bool
) -> None:
    if not shards and (records is None or label_kind != "hashtag"):
        raise UsageError(f"{folder}: an index needs shards, or records of hashtags (label_kind hashtag)")
    if label_kind != "hashtag" and records is not None:
        raise UsageError(f"{folder}: records are read with --label-kind hashtag; classes from .cls members")
    if (folder / MANIFEST).exists() and not overwrite:
        raise UsageError(f"{folder}: there is an index already; pass --overwrite to replace it")


def _remove_leftovers(folder: Path) -> None:
    """Drops parts of an older, longer index and what a killed build left."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    kept = {part["file"] for part in manifest["parts"]}
    for path in folder.glob("part-*.arrow"):
        if path.name not in kept:
            path.unlink()
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)
