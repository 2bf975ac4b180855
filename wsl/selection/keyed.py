"""Which sample a key is, where predictions name samples by key: by the index, or, where there is
none, the order of the keys by bytes.

Rows are sorted by key into runs, which are cut at the same keys, chosen from a sample of them. The
pieces between two cuts, of all runs, have all rows of their keys and fit in memory; one after another
they are numbered. What does not fit is in a private folder for as long as it is needed. The numbers
are a function of the set of keys alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import polars as pl

from wsl import _core
from wsl._core import DataError
from wsl.files.publish import naming
from wsl.files.tables import BATCH_ROWS, scan
from wsl.index.mapped import Index

UNLIMITED_BYTES = 1 << 30
"""What is kept in memory where it has no limit; the rest goes to disk."""

SAMPLED_KEYS = 100_000
"""Keys that the cuts are chosen from."""

RUN_BATCH_ROWS = 8192
"""Rows of a run that are read together."""


class KeyedPredictions:
    """Files of predictions with the column ``key``, read as pieces with ``sample`` instead.

    A row is taken as it is but for its key. `index` finds which sample a key is; without one the
    keys are numbered from 0 in the order of their bytes. At most about `memory_bytes` are kept in memory,
    twice a piece and a run, the rest is in `spill_dir`. Used in a ``with`` block, at whose end that is gone.
    """

    def __init__(
        self,
        files: Sequence[Path | str],
        index: Index | None,
        *,
        memory_bytes: int | None = None,
        spill_dir: Path | None = None,
        warn: Callable[[str], object],
    ) -> None:
        wanted = ("key", "class", "score", "classes", "scores")
        frame = scan([str(file) for file in files])
        schema = frame.collect_schema()
        self._where = str(files[0])
        self._frame = frame.select(
            pl.col("key").cast(pl.String), *(name for name in wanted[1:] if name in schema)
        )
        self._index = index
        self._piece_bytes = max((memory_bytes or UNLIMITED_BYTES) // 16, 1 << 16)
        self._spill_dir, self._warn = spill_dir, warn
        self._folder: _core.SpillFolder | None = None
        self._cuts = pl.Series("key", [], dtype=pl.String)
        self._runs: list[tuple[Path, list[int]]] | None = None
        self._whole: pl.DataFrame | None = None
        self._firsts: list[int] = []
        self._kept: dict[int, pl.Series] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()

    def pieces(self) -> Iterator[pl.DataFrame]:
        """The rows, those of a sample together and without an index by ascending sample; any number of
        times. DataError for a row without key and for a key that is no one sample of the index."""
        if self._runs is None:
            self._sort()
        assert self._runs is not None
        self._firsts = [0]
        for number in range(len(self._cuts) + 1):
            rows = self._piece(number)
            keys = rows["key"].unique().sort()

            # Pieces come in the order of keys, so numbers continue from piece to piece.
            if self._index is None:
                first = self._firsts[-1]
                samples = pl.Series("sample", np.arange(first, first + len(keys)), dtype=pl.UInt64)
                self._keep(number, keys)
                self._firsts.append(first + len(keys))
            else:
                samples = samples_of(self._index, keys)
                if samples.null_count():
                    unknown = keys.filter(samples.is_null())[0]
                    raise DataError(f"the predictions name {unknown!r}, which is no key of the index")

            # The sort keeps the order of a sample's rows, so the result does not depend on runs or memory.
            named = pl.DataFrame([keys, samples.alias("sample")])
            joined = rows.join(named, on="key", how="left", maintain_order="left").drop("key")
            yield joined.sort("sample", maintain_order=True).select("sample", pl.exclude("sample"))

    def keys(self, samples: Any) -> list[str]:
        """The keys of samples, an int64 array; after `pieces` was read to its end."""
        if self._index is not None:
            return self._index.keys(samples)
        places = np.searchsorted(self._firsts, samples, side="right") - 1
        found = np.empty(len(samples), dtype=object)
        for piece in np.unique(places).tolist():
            own = np.flatnonzero(places == piece)
            held = self._kept.get(piece)
            if held is None:
                held = pl.read_ipc(self._keys_file(piece))["key"]
                self._kept = {piece: held}
            found[own] = held.gather(samples[own] - self._firsts[piece]).to_list()
        return cast("list[str]", found.tolist())

    def _sort(self) -> None:
        """Sorts by key: in memory where all of it fits, else into runs, of which the cuts are known."""
        self._runs = []
        batches: list[pl.DataFrame] = []
        size = num_rows = 0
        for batch in self._batches():
            batches.append(batch)
            size, num_rows = size + int(batch.estimated_size()), num_rows + len(batch)
            if self._folder is None and size > self._piece_bytes:
                self._begin_runs(size / num_rows)
            if self._folder is not None and size > self._piece_bytes:
                self._write_run(pl.concat(batches))
                batches, size = [], 0
        if self._folder is None:
            self._whole = pl.concat(batches) if batches else self._frame.head(0).collect()
        elif batches:
            self._write_run(pl.concat(batches))

    def _batches(self) -> Iterator[pl.DataFrame]:
        for batch in self._frame.collect_batches(chunk_size=min(BATCH_ROWS, self._piece_bytes // 64)):
            if batch["key"].null_count():
                raise DataError(f"{self._where}: a row has no key (it is null)")
            yield batch

    def _begin_runs(self, row_bytes: float) -> None:
        """Chooses where runs are cut, from every so manieth key."""
        total = int(self._frame.select(pl.len()).collect().item())
        gib = total * row_bytes / (1 << 30)
        self._warn(f"the predictions name samples by key: {total:,} rows are sorted, {gib:,.2f} GiB on disk")
        self._folder = _core.SpillFolder(self._spill_dir)
        step = max(1, total // SAMPLED_KEYS)
        seen = [batch["key"].gather_every(step) for batch in self._batches()]
        sampled = pl.concat(seen).sort()
        num_pieces = max(2, -(-int(total * row_bytes) // self._piece_bytes))
        places = [len(sampled) * number // num_pieces for number in range(1, num_pieces)]
        self._cuts = sampled.gather(places).unique().sort()

    def _write_run(self, rows: pl.DataFrame) -> None:
        assert self._folder is not None
        assert self._runs is not None
        file = self._folder.path / f"rows-{len(self._runs):06}.arrow"
        ordered = rows.sort("key", maintain_order=True)
        with naming(file):
            ordered.write_ipc(file, record_batch_size=RUN_BATCH_ROWS)
        places = ordered["key"].search_sorted(self._cuts, side="left").to_list()
        self._runs.append((file, [0, *places, len(ordered)]))

    def _piece(self, number: int) -> pl.DataFrame:
        if self._whole is not None:
            return self._whole
        assert self._runs is not None
        found = []
        for file, places in self._runs:
            start, stop = places[number], places[number + 1]
            if stop > start:
                found.append(pl.scan_ipc(file).slice(start, stop - start).collect())
        return pl.concat(found) if found else self._frame.head(0).collect()

    def _keep(self, number: int, keys: pl.Series) -> None:
        if self._folder is None:
            self._kept = {number: keys}
            return
        file = self._keys_file(number)
        with naming(file):
            keys.to_frame("key").write_ipc(file)

    def _keys_file(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder.path / f"keys-{number:06}.arrow"


def samples_of(index: Index, keys: pl.Series) -> pl.Series:
    """Which samples of the index these keys are, uint64; null for a key that none has.

    DataError for a key that several samples have: then scores by key have no one sample.
    """
    distinct = keys.unique()
    found: list[int | None] = []
    for key in distinct.to_list():
        ordinals = [] if key is None else index.find_all(key)
        if len(ordinals) > 1:
            raise DataError(
                f"{index.path}: two samples share the key {key!r}, so that it names no one sample; name "
                "samples by number"
            )
        found.append(ordinals[0] if ordinals else None)
    named = pl.DataFrame([distinct.alias("key"), pl.Series("sample", found, dtype=pl.UInt64)])
    return look_up(named, keys)


def look_up(named: pl.DataFrame, keys: pl.Series) -> pl.Series:
    """The samples of keys by a table of ``key`` and ``sample`` with each key once; null for others."""
    return keys.to_frame("key").join(named, on="key", how="left", maintain_order="left")["sample"]
