"""The order of an epoch, and label noise: pure functions of a seed, with no list in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from wsl import _core
from wsl._core import UsageError

if TYPE_CHECKING:
    from wsl.index import Index


class Sized(Protocol):
    def __len__(self) -> int: ...


class EpochOrder:
    """The stream of all epochs over the samples of an index.

    ``order[start:stop]`` gives the ordinals at these positions; epoch 0 comes first, the next follow
    without a gap, and the stream has no end. Every epoch is a pseudo-random permutation of the
    samples, each once, or r(i) times on average where `factors` gives repeat factors. What stands at
    a position depends on the samples, factors and seed alone.

    Args:
        samples: an index, or the number of samples.
        factors: float32 array of that length, each from 0 to 2^24; absent, every sample once.
        seed: 0 to 2^64 - 1.

    Raises UsageError where the factors do not fit the samples or add up to less than 1.
    """

    def __init__(
        self, samples: Sized | int, factors: npt.NDArray[np.float32] | None = None, *, seed: int = 0
    ) -> None:
        num_samples = samples if isinstance(samples, int) else len(samples)
        if num_samples < 0 or not 0 <= seed < 2**64:
            raise UsageError(f"an epoch order of {num_samples} samples and seed {seed}: out of range")
        if factors is not None:
            factors = np.ascontiguousarray(factors, dtype=np.float32)
        self._core = _core.EpochOrder(num_samples, factors, seed)
        self._seed = seed
        self._index = getattr(samples, "fingerprint", None)

    def __getitem__(self, positions: slice) -> npt.NDArray[np.int64]:
        """int64 ordinals at ``start:stop``; both bounds are needed."""
        start, stop = positions.start, positions.stop
        if positions.step not in (None, 1) or start is None or stop is None or not 0 <= start <= stop:
            raise UsageError("an epoch order is read as order[start:stop] with 0 <= start <= stop")
        return np.frombuffer(self._core.take(start, stop), dtype=np.int64)

    def epoch_length(self, epoch: int) -> int:
        """Positions in `epoch`."""
        return self._core.epoch_length(epoch)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the order."""
        return self._core.fingerprint

    def state(self, position: int) -> dict[str, Any]:
        """What a checkpoint keeps: the position, and what the order was made of."""
        return {
            "position": position,
            "num_samples": self._core.num_samples,
            "seed": self._seed,
            "index_fingerprint": self._index,
            "fingerprint": self.fingerprint,
        }

    def check(self, state: Mapping[str, Any]) -> int:
        """The position of `state`; UsageError names what differs where it is of another order."""
        mine = self.state(0)
        for name in ("num_samples", "seed", "index_fingerprint", "fingerprint"):
            if state.get(name) != mine[name]:
                what = "the repeat factors" if name == "fingerprint" else name.replace("_", " ")
                raise UsageError(
                    f"the state belongs to another epoch order: {what} was {state.get(name)} and is "
                    f"{mine[name]} now; start again from position 0, or restore the old options"
                )
        return int(state["position"])


def label_noise(
    index: Index, ordinals: npt.NDArray[np.int64], *, share: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """The labels of samples with a `share` of them replaced (Mahajan et al. 2018, section 3.1.2).

    Each label, with probability `share`, is replaced by one drawn from the marginal distribution of
    the index, distinct from the image's labels and from earlier draws for it; where no other label is
    left it stays. The result for a sample depends on (seed, ordinal) and the index alone.

    Returns an int64 array for each ordinal, in the order of its slots. Raises UsageError for a share
    outside 0 to 1.
    """
    noise = index.noise(share, seed)
    ordinals = np.ascontiguousarray(ordinals, dtype=np.int64)
    labels, offsets = index.flat_labels(ordinals)
    changed, _ = noise.apply(ordinals, labels, offsets)
    flat = np.frombuffer(changed, dtype=np.uint32).astype(np.int64)
    return np.split(flat, offsets[1:-1])
