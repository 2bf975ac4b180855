"""What repeat factors do to the distribution of labels."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsl._core import UsageError
from wsl.index.mapped import Index, Scheme

CHUNK = 1 << 16
HEADS = (0.01, 0.1)
"""Shares of the labels, the most frequent first, that are the head in tables."""
TAIL = 0.5
"""The share of the labels, the rarest, that is the tail."""


@dataclass(frozen=True)
class Balance:
    """The labels of an epoch before and after resampling."""

    num_labelled: int
    """Samples with a label."""
    epoch_length: float
    """Samples of an epoch, in expectation: the factors added up."""
    largest_factor: float
    before: npt.NDArray[np.float64]
    """How often each label is seen in an epoch that shows every labelled sample once."""
    after: npt.NDArray[np.float64]
    """The same with the factors, in expectation."""

    def head_share(self, share: float, after: bool) -> float:
        """The share of all labels seen that the most frequent labels (before) have."""
        values = self._ranked(after)
        return float(values[: max(1, round(share * len(values)))].sum() / max(values.sum(), 1e-300))

    def tail_share(self, share: float, after: bool) -> float:
        """The same for the rarest labels."""
        values = self._ranked(after)
        return float(values[len(values) - max(1, round(share * len(values))) :].sum() / values.sum())

    def effective_classes(self, after: bool) -> float:
        """exp of the entropy of the label distribution: as many equally frequent labels are as diverse."""
        values = self._ranked(after)
        shares = values[values > 0] / values.sum()
        return float(np.exp(-(shares * np.log(shares)).sum()))

    def _ranked(self, after: bool) -> npt.NDArray[np.float64]:
        order = np.argsort(-self.before, kind="stable")
        return (self.after if after else self.before)[order]

    def rows(self) -> list[tuple[str, float, float]]:
        """What changes: name, before, after."""
        named: list[tuple[str, float, float]] = [
            ("samples of an epoch", float(self.num_labelled), self.epoch_length),
            ("labels seen in an epoch", float(self.before.sum()), float(self.after.sum())),
            ("effective number of classes", self.effective_classes(False), self.effective_classes(True)),
        ]
        for share in HEADS:
            name = f"held by the {share:.0%} most frequent labels"
            named.append((name, self.head_share(share, False), self.head_share(share, True)))
        name = f"held by the {TAIL:.0%} rarest labels"
        named.append((name, self.tail_share(TAIL, False), self.tail_share(TAIL, True)))
        return named

    def to_dict(self) -> dict[str, Any]:
        """The table, for JSON."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("before", "after")}
        return plain | {
            "changes": [dict(zip(("name", "before", "after"), r, strict=True)) for r in self.rows()]
        }


def balance(index: Index, factors: npt.NDArray[np.float32]) -> Balance:
    """Reads the labels of `index` once; `factors` is float32, one for each sample.

    Raises UsageError for an index without labels.
    """
    num_labels = int(index.manifest["num_labels"])
    if not num_labels:
        raise UsageError(f"{index.path}: the index has no labels, so there is nothing to balance")
    before = np.zeros(num_labels)
    after = np.zeros(num_labels)
    num_labelled = 0

    # In chunks, so that the labels of a large index need not fit in memory.
    for start in range(0, len(index), CHUNK):
        ordinals = np.arange(start, min(start + CHUNK, len(index)), dtype=np.int64)
        labels, offsets = index.flat_labels(ordinals)
        sizes = np.diff(offsets)
        num_labelled += int((sizes > 0).sum())
        weights = np.repeat(factors[ordinals].astype(np.float64), sizes)
        before += np.bincount(labels, minlength=num_labels)
        after += np.bincount(labels, weights=weights, minlength=num_labels)
    return Balance(
        num_labelled=num_labelled,
        epoch_length=float(factors.sum(dtype=np.float64)),
        largest_factor=float(factors.max(initial=0.0)),
        before=before,
        after=after,
    )


def repeat_factors(
    index: Index,
    *,
    scheme: Scheme = "square-root",
    threshold: float | None = None,
    epoch_length: float | None = None,
    out: str | os.PathLike[str] | None = None,
) -> npt.NDArray[np.float32]:
    """How often an epoch shows each sample: float32, one for each (Mahajan et al. 2018, section 2.2).

    r(I) = max over the labels h of image I of max(1, sqrt(t / f(h))) for "square-root", of
    max(1, t / f(h)) for "uniform", and 1 for "natural"; f(h) is the share of the index's samples with
    label h. "clip" is the mirror image, at most 1: max over the labels of min(1, t / f(h)), the balancing
    of MetaCLIP (Xu et al. 2024). A sample without labels has 0. `threshold` is t; or it is solved so that
    an epoch has about `epoch_length` samples: twice the labelled ones where neither is given, half of them
    for "clip". With `out` they are written to that file and the result is mapped from it: `EpochOrder`
    takes it without loading it.

    Raises UsageError for both, for an unknown scheme, and for lengths that cannot be.
    """
    if threshold is None and epoch_length is None:
        labelled = len(index) - int(index.manifest["counts"].get("samples_without_labels", 0))
        if scheme == "natural":
            threshold = 1.0
        else:
            epoch_length = labelled / 2 if scheme == "clip" else 2.0 * labelled
    if out is not None:
        index._core.write_factors(out, scheme, threshold=threshold, epoch_length=epoch_length)
        return np.memmap(out, dtype=np.float32, mode="r")
    factors, _ = index._core.repeat_factors(scheme, threshold=threshold, epoch_length=epoch_length)
    return np.frombuffer(factors, dtype=np.float32)
