"""Which examples a rank takes at a step.

The order is one stream over all epochs. Step s of a global batch of B takes the positions
[sB, (s+1)B), and rank r of W the r-th of W equal slices of it: the batch of a step is the same
for every number of ranks, workers and restarts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsl._core import UsageError


@dataclass(frozen=True)
class Sampler:
    """The slices of one rank."""

    batch_size: int
    """Global batch."""
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size {self.batch_size} cannot be shared by {self.world_size} ranks; "
                f"choose a multiple of {self.world_size}"
            )

    def positions(self, step: int) -> npt.NDArray[np.int64]:
        """The positions of this rank at `step`, int64, batch_size / world_size of them."""
        share = self.batch_size // self.world_size
        start = step * self.batch_size + self.rank * share
        return np.arange(start, start + share, dtype=np.int64)
