"""The order of an epoch, and label noise: pure functions of a seed, with no list in memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wsl import _core
from wsl._core import UsageError

if TYPE_CHECKING:
    from wsl.index.mapped import Index, JoinedIndex


class Sized(Protocol):
    def __len__(self) -> int: ...


Factors = npt.NDArray[np.float32]
CYCLE = 4096
"""Positions after which a mixed order has kept its weights exactly."""


@dataclass(frozen=True)
class Mixing:
    """How well an order mixes, measured on some of its batches."""

    shards_per_batch: float
    """Different shards that a batch has samples of, on average."""
    variance: float
    """How much batches differ in what is the same within a shard, next to a full shuffle: there it is 1."""
    effective_batch: float
    """The batch of a full shuffle that would differ as much: batch_size / variance."""


class EpochOrder:
    """The stream of all epochs over the samples of an index.

    ``order[start:stop]`` gives the ordinals at these positions; epoch 0 comes first, the next follow
    without a gap, and the stream has no end. Every epoch is a pseudo-random permutation of the
    samples, each once, or r(i) times on average where `factors` gives repeat factors. What is at
    a position depends on the samples, factors, seed and window alone.

    Args:
        samples: an index, or the number of samples.
        factors: float32 array of that length, each from 0 to 2^24; or the path of a file of them, as
            `repeat_factors(..., out=PATH)` writes it, which is mapped and not loaded (an array of
            `numpy.memmap` over a whole file is too). Absent, every sample once.
        seed: 0 to 2^64 - 1.
        window: for disks and object stores: the shards of `samples`, an index, are drawn in random
            order, so many at a time, and the samples of such a window are shuffled. `mixing` tells
            what that costs.

    Raises UsageError where the factors do not fit the samples or add up to less than 1, and for a window
    without shards.
    """

    def __init__(
        self,
        samples: Sized | int,
        factors: Factors | str | os.PathLike[str] | None = None,
        *,
        seed: int = 0,
        window: int | None = None,
    ) -> None:
        num_samples = samples if isinstance(samples, int) else len(samples)
        if num_samples < 0 or not 0 <= seed < 2**64:
            raise UsageError(f"an epoch order of {num_samples} samples and seed {seed}: out of range")
        if window is not None and window < 1:
            raise UsageError(f"window {window}: expected at least one shard")
        file = _file_of(factors)
        array = None
        if factors is not None and file is None:
            array = np.ascontiguousarray(factors, dtype=np.float32)
        self._shards = _first_samples(samples) if window is not None else None
        self._core = _core.EpochOrder(
            num_samples, array, seed, factors_file=file, window=window, first_samples=self._shards
        )
        self._options = {"seed": seed, "window": window}
        self._index = getattr(samples, "fingerprint", None)
        self._made_of = (samples, file or array, seed, window)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_order, self._made_of

    def __len__(self) -> int:
        """The number of samples, shown or not."""
        return self._core.num_samples

    def __getitem__(self, positions: slice) -> npt.NDArray[np.int64]:
        """int64 ordinals at ``start:stop``; both bounds are needed."""
        start, stop = positions.start, positions.stop
        if positions.step not in (None, 1) or start is None or stop is None or not 0 <= start <= stop:
            raise UsageError("an epoch order is read as order[start:stop] with 0 <= start <= stop")
        return np.frombuffer(self._core.take(start, stop), dtype=np.int64)

    def epoch_length(self, epoch: int) -> int:
        """Positions in `epoch`."""
        return self._core.epoch_length(epoch)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines the order."""
        return self._core.fingerprint

    def mixing(self, batch_size: int, num_batches: int = 200) -> Mixing:
        """Measures how well an order with a window mixes, on batches spread over epoch 0.

        With p the shares of shards in the epoch and q those in a batch of B, the variance is the mean of
        B * sum (q - p)^2 / (1 - sum p^2), whose expectation is 1 where each sample is drawn from all
        shards alike: the worst that can happen to whatever the samples of a shard have in common. Where
        samples were put into shards at random, a window costs nothing.
        """
        if self._shards is None:
            raise UsageError("the mixing of an order is measured where it has a window")
        length = self.epoch_length(0)
        batch_size = min(batch_size, length)
        starts = np.linspace(0, length - batch_size, num_batches).astype(np.int64)

        # What is expected is the shares over the epoch, which repeat factors make differ from the shards'
        # sizes.
        counts = np.zeros(len(self._shards))
        for start in range(0, length, 1 << 20):
            counts += self._per_shard(start, min(start + (1 << 20), length))
        share = counts / counts.sum()
        per_batch = np.stack([self._per_shard(int(start), int(start) + batch_size) for start in starts])
        spread = float(1.0 - (share**2).sum())
        distance = float(((per_batch / batch_size - share) ** 2).sum(axis=1).mean())
        variance = batch_size * distance / spread if spread > 0 else 1.0
        return Mixing(
            shards_per_batch=float((per_batch > 0).sum(axis=1).mean()),
            variance=variance,
            effective_batch=batch_size / max(variance, 1e-300),
        )

    def _per_shard(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        assert self._shards is not None
        shard = np.searchsorted(self._shards, self[start:stop], side="right") - 1
        return np.bincount(shard, minlength=len(self._shards)).astype(np.float64)

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint keeps: the position, and what the order was made of."""
        return {
            "position": position,
            "num_samples": self._core.num_samples,
            **self._options,
            "index_fingerprint": self._index,
            "fingerprint": self.fingerprint,
        }

    def check(self, state: Mapping[str, Any]) -> int:
        """The position of `state`; UsageError names what differs where it is of another order."""
        return _check_state(state, self.state(0))


class MixedOrder:
    """Several orders in one stream, each with its share of the positions.

    ``order[start:stop]`` gives int64 ordinals as if the indexes lay end to end: those of the second begin
    at the length of the first (`wsl.JoinedIndex` reads them). In every 4,096 positions each order has
    exactly its share, rounded to 1/4,096, at places that the seed shuffles; it continues through its own
    epochs at its own pace. What is at a position depends on the orders, weights and seed alone.

    Args:
        orders: at least one.
        weights: a positive number for each; shares of the positions, whatever they add up to.
        seed: of the places; 0 to 2^64 - 1.

    Raises UsageError for weights that do not fit, or of which one is below 1/4,096 of all.
    """

    def __init__(self, orders: Sequence[EpochOrder], weights: Sequence[float], *, seed: int = 0) -> None:
        if not orders or len(orders) != len(weights):
            raise UsageError(
                f"a mixed order of {len(orders)} orders needs as many weights, not {len(weights)}"
            )
        shares = np.asarray(weights, dtype=np.float64)
        if not (np.isfinite(shares).all() and (shares > 0).all()):
            raise UsageError(f"weights {list(weights)}: expected positive numbers")

        # The largest remainders get the slots that are left, so that each share is off by less than one slot.
        exact = shares / shares.sum() * CYCLE
        slots = np.floor(exact).astype(np.int64)
        for order in np.argsort(slots - exact, kind="stable")[: CYCLE - int(slots.sum())]:
            slots[order] += 1
        if (slots < 1).any():
            raise UsageError(f"weights {list(weights)}: the smallest is below 1/{CYCLE} of all; leave it out")
        self.orders = tuple(orders)
        self._slots = slots
        self._bounds = np.cumsum(slots)
        self._firsts = np.cumsum([0, *(len(order) for order in orders)])
        self._places = EpochOrder(CYCLE, seed=seed)
        self._options = {"seed": seed, "slots": slots.tolist()}

    def __len__(self) -> int:
        """The number of samples of all indexes."""
        return int(self._firsts[-1])

    def __getitem__(self, positions: slice) -> npt.NDArray[np.int64]:
        """int64 ordinals at ``start:stop``; both bounds are needed."""
        start, stop = positions.start, positions.stop
        if positions.step not in (None, 1) or start is None or stop is None or not 0 <= start <= stop:
            raise UsageError("an epoch order is read as order[start:stop] with 0 <= start <= stop")
        first = start // CYCLE * CYCLE
        source = np.searchsorted(self._bounds, self._places[first:stop], side="right")
        out = np.empty(stop - start, dtype=np.int64)
        for number, order in enumerate(self.orders):
            mine = source == number
            before = first // CYCLE * int(self._slots[number]) + int(mine[: start - first].sum())
            wanted = mine[start - first :]
            out[wanted] = order[before : before + int(wanted.sum())] + self._firsts[number]
        return out

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of everything that determines the order."""
        text = json.dumps([self._options, [order.fingerprint for order in self.orders]])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint keeps: the position, and what the orders were made of."""
        return {
            "position": position,
            "num_samples": len(self),
            **self._options,
            "index_fingerprint": [order.state(0)["index_fingerprint"] for order in self.orders],
            "fingerprint": self.fingerprint,
        }

    def check(self, state: Mapping[str, Any]) -> int:
        """The position of `state`; UsageError names what differs where it is of another order."""
        return _check_state(state, self.state(0))


def _make_order(
    samples: Sized | int, factors: Factors | Path | None, seed: int, window: int | None
) -> EpochOrder:
    return EpochOrder(samples, factors, seed=seed, window=window)


def _check_state(state: Mapping[str, Any], mine: Mapping[str, Any]) -> int:
    for name, value in mine.items():
        if name != "position" and state.get(name) != value:
            what = "the repeat factors or shards" if name == "fingerprint" else name.replace("_", " ")
            raise UsageError(
                f"the state belongs to another epoch order: {what} was {state.get(name)} and is "
                f"{value} now; start again from position 0, or restore the old options"
            )
    return int(state["position"])


def _file_of(factors: object) -> Path | None:
    """The file that has the factors as they are, where there is one."""
    if isinstance(factors, (str, os.PathLike)):
        return Path(factors)
    if isinstance(factors, np.memmap) and factors.dtype == np.float32 and factors.filename is not None:
        path = Path(factors.filename)
        if factors.offset == 0 and factors.mode == "r" and path.stat().st_size == factors.nbytes:
            return path
    return None


def _first_samples(samples: object) -> npt.NDArray[np.int64]:
    shards = getattr(samples, "shards", None)
    if shards is None:
        raise UsageError("a window of shards needs an index, not a number of samples")
    return np.ascontiguousarray(shards()["first_sample"].to_numpy(), dtype=np.int64)


def label_noise(
    index: Index | JoinedIndex, ordinals: npt.NDArray[np.int64], *, share: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """The labels of samples with a `share` of them replaced (Mahajan et al. 2018, section 3.1.2).

    Each label, with probability `share`, is replaced by one drawn from the marginal distribution of
    the index, distinct from the image's labels and from earlier draws for it; where no other label is
    left it stays. The result for a sample depends on (seed, ordinal) and the index alone: on its own one,
    where several are joined.

    Returns an int64 array for each ordinal, in the order of its slots. Raises UsageError for a share
    outside 0 to 1.
    """
    return index.noisy_labels(ordinals, share, seed)
