"""The memory-mapped index over tar shards: looking samples up, reading images."""

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
from wsl.files import stores
from wsl.hashtags.vocabulary import Vocabulary

VOCABULARY = "vocabulary.parquet"
MANIFEST = "manifest.json"
Scheme = Literal["natural", "square-root", "uniform", "clip"]
Ordinals = npt.NDArray[np.int64]


class Index:
    """Where every sample of some tar shards is, and what its labels are.

    Opening maps the files and reads next to nothing. Ordinals run from 0 in the order of the shards
    and of their members; arrays of ordinals are int64. Unknown ordinals raise UsageError, damaged
    files DataError. An index pickles as its path (and what it was opened with): a process that is given
    it opens it anew, and refuses one that was replaced meanwhile.
    """

    def __init__(
        self, core: _core.Index, path: Path, shard_root: str | os.PathLike[str] | None = None
    ) -> None:
        self._core = core
        self.path = path
        self._shard_root = shard_root
        self.manifest: dict[str, Any] = json.loads(core.manifest())
        self._noise: tuple[tuple[float, int], _core.LabelNoise] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, shard_root: str | os.PathLike[str] | None = None) -> Index:
        """Opens the index in the folder `path`; `shard_root` is where its shards are now.

        That is a folder or the URI of one in a store. How stores are reached: `wsl.files.stores`.

        Raises UsageError where there is no index, DataError where it is damaged or of another version.
        """
        root = None if shard_root is None else stores.as_place(shard_root)
        opened = _core.Index.open(path, shard_root=shard_root, storage=stores.core())
        return cls(opened, Path(path), root)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path.resolve(), self._shard_root, self.fingerprint)

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
        """The labels of each sample, ascending int64 arrays; none for a sample that was removed."""
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
        self,
        ordinals: Ordinals | Sequence[int],
        *,
        num_threads: int = 1,
        progress: Callable[[int], object] | None = None,
    ) -> list[bytes]:
        """The encoded images of samples; empty for a sample that was removed.

        Neighbours are read together, at most 256 shards are kept open, and no thread outlives the call.
        DataError names the shard that was replaced or cut after the index was built.

        In stores neighbours are images with at most `gap_bytes` between them (`wsl.files.stores`), and
        `num_requests` are in flight at once whatever `num_threads` is; OSError where the store fails for
        longer than `retry_s`.
        """
        return self._core.read(
            np.ascontiguousarray(ordinals, dtype=np.int64), num_threads=num_threads, progress=progress
        )

    @functools.cached_property
    def dropped(self) -> Ordinals:
        """The ordinals of samples that were removed, ascending int64."""
        return np.frombuffer(self._core.dropped(), dtype=np.uint64).astype(np.int64)

    def find(self, key: str) -> int | None:
        """The ordinal of the first sample with `key`, or None."""
        return self._core.find(key)

    def find_all(self, key: str) -> list[int]:
        """The ordinals of all samples with `key`: one in each shard, where keys begin anew in every shard."""
        return self._core.find_all(key)

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
            "shard": shard or None,
            "offset": offset,
            "size": size,
            "labels": labels,
            "names": [names[label] for label in labels] if names else [],
            "dropped": bool(np.isin(ordinal, self.dropped)),
        }

    def shards(self) -> pl.DataFrame:
        """Columns path, size, first_sample, num_samples."""
        schema = {"path": pl.String, "size": pl.UInt64, "first_sample": pl.UInt64, "num_samples": pl.UInt64}
        return pl.DataFrame(self._core.shards(), schema=schema, orient="row")

    def shard_paths(self) -> list[Path | str]:
        """Where each shard is, its URI where that is in a store; none for an index of records alone."""
        return [stores.as_place(place) for place in self._core.shard_paths()]

    def read_report(self) -> dict[str, float]:
        """What reading images in stores took since the index was opened.

        `num_requests`, `num_retries` of them, `wanted_bytes` of images, `read_bytes` that came, and
        `amplification`, the second over the first (0 while nothing was read).
        """
        num_requests, num_retries, wanted, came = self._core.read_report()
        return {
            "num_requests": num_requests,
            "num_retries": num_retries,
            "wanted_bytes": wanted,
            "read_bytes": came,
            "amplification": came / wanted if wanted else 0.0,
        }

    def scan(self) -> pl.LazyFrame:
        """All samples in order: sample, key, shard, offset, size, labels; not those removed.

        Polars streams it, and DuckDB reads it as a table.
        """
        parts = [self.path / part["file"] for part in self.manifest["parts"]]
        rows = pl.scan_ipc(parts).with_row_index("sample").with_columns(pl.col("sample").cast(pl.UInt64))
        if not len(self.dropped):
            return rows
        dropped = pl.LazyFrame({"sample": pl.Series(self.dropped, dtype=pl.UInt64)})
        return rows.join(dropped, on="sample", how="anti", maintain_order="left")

    def label_counts(self) -> npt.NDArray[np.uint64]:
        """Samples with each label, uint64; one pass over the index, made once."""
        return np.frombuffer(self._core.label_counts(), dtype=np.uint64)

    def noise(self, share: float, seed: int) -> _core.LabelNoise:
        """The engine's label noise over this index, the one used last kept."""
        if self._noise is None or self._noise[0] != (share, seed):
            self._noise = (share, seed), _core.LabelNoise(self.label_counts(), share, seed)
        return self._noise[1]

    def noisy_labels(
        self, ordinals: Ordinals | Sequence[int], share: float, seed: int
    ) -> list[npt.NDArray[np.int64]]:
        """The labels with label noise, as by `wsl.label_noise`."""
        wanted = np.ascontiguousarray(ordinals, dtype=np.int64)
        labels, offsets = self.flat_labels(wanted)
        changed, _ = self.noise(share, seed).apply(wanted, labels, offsets)
        return np.split(np.frombuffer(changed, dtype=np.uint32).astype(np.int64), offsets[1:-1])

    def verify(self, *, progress: Callable[[int], object] | None = None) -> None:
        """Reads every byte of the index and all headers of the shards; DataError where one differs."""
        self._core.verify(progress=progress)
        _ = self.vocabulary

    def size_on_disk(self) -> int:
        """Bytes of all files of the index; the shards are not among them."""
        single = [self.manifest[name] for name in ("shards", "keys", "vocabulary", "dropped")]
        files = [*self.manifest["parts"], *(entry for entry in single if entry is not None)]
        return sum(int(entry["size"]) for entry in files) + (self.path / MANIFEST).stat().st_size

    def info(self) -> dict[str, Any]:
        """What `wsl index info` shows."""
        shown = {
            key: self.manifest[key]
            for key in ("format_version", "num_samples", "num_labels", "label_kind", "fingerprint")
        }
        shards = self.shards()
        size = self.size_on_disk()
        return shown | {
            "vocabulary_fingerprint": self.vocabulary_fingerprint,
            "num_shards": len(shards),
            "shard_bytes": int(shards["size"].sum()),
            "key_scope": self.manifest["key_scope"],
            "num_parts": len(self.manifest["parts"]),
            "index_bytes": size,
            "bytes_per_sample": round(size / max(len(self), 1), 2),
            "counts": self.manifest["counts"],
        }


class JoinedIndex:
    """Several indexes end to end, as `wsl.MixedOrder` numbers their samples.

    They must carry the same vocabulary, or have none. Ordinals of the second begin at the length of the
    first. Raises UsageError for indexes of different vocabularies.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        if not indexes:
            raise UsageError("a joined index needs at least one index")
        for index in indexes[1:]:
            if index.vocabulary_fingerprint != indexes[0].vocabulary_fingerprint:
                raise UsageError(
                    f"{index.path} and {indexes[0].path} have different vocabularies "
                    f"({index.vocabulary_fingerprint} and {indexes[0].vocabulary_fingerprint}); build one of "
                    "them with the vocabulary of the other (--vocabulary FILE)"
                )
        self.indexes = tuple(indexes)
        self._firsts = np.cumsum([0, *(len(index) for index in indexes)])
        self.num_labels = indexes[0].num_labels
        self.label_kind = indexes[0].label_kind
        self.vocabulary_fingerprint = indexes[0].vocabulary_fingerprint
        self.fingerprint = "+".join(index.fingerprint for index in indexes)

    @functools.cached_property
    def dropped(self) -> Ordinals:
        """The ordinals of samples that were removed, ascending int64."""
        parts = zip(self.indexes, self._firsts.tolist(), strict=False)
        return np.concatenate([np.asarray(index.dropped) + first for index, first in parts])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    @property
    def class_names(self) -> list[str] | None:
        """The name of each label, or None."""
        return self.indexes[0].class_names

    def label_counts(self) -> npt.NDArray[np.uint64]:
        """Samples with each label over all indexes, uint64."""
        counts: npt.NDArray[np.uint64] = np.sum([index.label_counts() for index in self.indexes], axis=0)
        return counts

    def noisy_labels(
        self, ordinals: Ordinals | Sequence[int], share: float, seed: int
    ) -> list[npt.NDArray[np.int64]]:
        """The labels with label noise, each index's drawn from its own marginal distribution."""
        return self._each(ordinals, lambda index, own: index.noisy_labels(own, share, seed))

    def labels(self, ordinals: Ordinals | Sequence[int]) -> list[npt.NDArray[np.int64]]:
        """The labels of each sample, ascending int64 arrays."""
        return self._each(ordinals, lambda index, own: index.labels(own))

    def keys(self, ordinals: Ordinals | Sequence[int]) -> list[str]:
        """The keys of samples."""
        return self._each(ordinals, lambda index, own: index.keys(own))

    def read(self, ordinals: Ordinals | Sequence[int], *, num_threads: int = 1) -> list[bytes]:
        """The encoded images of samples."""
        return self._each(ordinals, lambda index, own: index.read(own, num_threads=num_threads))

    def _each(
        self, ordinals: Ordinals | Sequence[int], ask: Callable[[Index, Ordinals], Sequence[Any]]
    ) -> list[Any]:
        wanted = np.ascontiguousarray(ordinals, dtype=np.int64)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise UsageError(f"ordinals of a joined index run from 0 to {len(self) - 1}")
        source = np.searchsorted(self._firsts, wanted, side="right") - 1
        found: list[Any] = [None] * len(wanted)
        for number in np.unique(source):
            places = np.flatnonzero(source == number)
            values = ask(self.indexes[number], wanted[places] - self._firsts[number])
            for place, value in zip(places, values, strict=True):
                found[place] = value
        return found


def _reopen(path: Path, shard_root: str | os.PathLike[str] | None, fingerprint: str) -> Index:
    index = Index.open(path, shard_root=shard_root)
    if index.fingerprint != fingerprint:
        raise UsageError(
            f"{path}: the index was replaced or appended to after it was opened here; open it again"
        )
    return index
