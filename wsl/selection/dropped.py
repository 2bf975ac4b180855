"""Samples removed (`wsl index drop`) after they were scored, kept out of selections.

Files of predictions keep the scores of such samples; they are passed over when the files are read, so the
selection is that of the other samples. A state has only the K best of each class: without the samples taken
down it is exact for as many images as every class still has, and no more can be known of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from wsl._core import UsageError
from wsl.files.resources import UNLIMITED, Resources
from wsl.files.tables import scan
from wsl.index.mapped import Index
from wsl.selection.topk import TopK


class Dropped:
    """The samples of an index that were removed, and how many of them had scores."""

    def __init__(self, index: Index) -> None:
        self.samples = pl.Series("sample", index.dropped, dtype=pl.UInt64)
        self._seen = np.zeros(0, dtype=np.uint64)

    @property
    def fingerprint(self) -> str | None:
        """A hash of which they are; None where there are none."""
        if not len(self.samples):
            return None
        return hashlib.sha256(self.samples.to_numpy().tobytes()).hexdigest()[:32]

    @property
    def num_left_out(self) -> int:
        """Those that had scores and were passed over so far."""
        return len(self._seen)

    def out_of(self, files: Sequence[Path | str]) -> pl.LazyFrame | list[str]:
        """The predictions of the other samples: the files themselves where nothing was removed."""
        names = [str(file) for file in files]
        if not len(self.samples):
            return names
        rows = scan(names)
        taken_down = pl.col("sample").is_in(self.samples.implode())
        self._see(rows.filter(taken_down).select(pl.col("sample").unique()).collect()["sample"])
        return rows.filter(~taken_down)

    def out_of_rows(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows of the other samples."""
        taken_down = rows["sample"].is_in(self.samples.implode())
        if taken_down.any():
            self._see(rows["sample"].filter(taken_down))
        return rows.filter(~taken_down)

    def out_of_state(self, top: TopK, k: int, where: str, resources: Resources = UNLIMITED) -> TopK:
        """`top` without them, exact for up to `k` images of a class; `top` itself where it has none.

        UsageError where it cannot be: `where` is what it is a state of, and how to make it anew.
        """
        if not len(self.samples):
            return top
        held = top.finish(top.k, top.num_classes if top.order == "class-first" else top.p)
        lost = np.zeros(top.num_classes, dtype=np.int64)
        for frame in held.frames():
            rows = self.out_of_rows(frame)
            before, after = (np.bincount(part["class"], minlength=len(lost)) for part in (frame, rows))
            lost += before - after
        if not lost.any():
            return top
        # A class with fewer than K images has all of its images in the state.
        left = np.where(held.before == top.k, top.k - lost, top.k)
        most = int(left.min())
        if most < min(k, top.k):
            worst = int(left.argmin())
            raise UsageError(
                f"{where}: of the {top.k:,} images that the state has of class {worst}, "
                f"{int(lost[worst]):,} were taken down since, and it does not say which come after the other "
                f"{most:,}; lower --k to {most:,} or less, or score again"
            )
        rest = replace(top.cut, k=most).new(resources)
        for frame in held.frames():
            rest.update_pairs(self.out_of_rows(frame).select("sample", "class", "score"))
        return rest

    def _see(self, samples: pl.Series) -> None:
        self._seen = np.union1d(self._seen, samples.to_numpy())
