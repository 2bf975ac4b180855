"""Which examples a rank takes at a step.

The order is one stream over all epochs. Step s of a global batch of B takes the positions
[sB, (s+1)B), and rank r of W the r-th of W equal slices of it: the batch of a step is the same
for every number of ranks, workers and restarts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

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


class Order(Protocol):
    """What a sampler asks of an epoch order (`wsl.EpochOrder`, `wsl.MixedOrder`)."""

    def __getitem__(self, positions: slice) -> npt.NDArray[np.int64]: ...
    def __len__(self) -> int: ...
    def state(self, position: int) -> dict[str, Any]: ...
    def check(self, state: Mapping[str, Any]) -> int: ...


class StepSampler:
    """A batch sampler for torch's DataLoader and torchdata's StatefulDataLoader.

    Each batch is the positions of one rank at one step; the dataset turns positions into samples, so
    nothing but numbers goes to the workers. Every rank has the same number of steps. One pass yields
    `num_steps` steps and the next continues after it; the stream has no end. The state is that of the
    global step: it may be loaded on another number of ranks, and with any number of workers where it is
    taken from the sampler itself (`state_at`).

    Args:
        order: the stream of all epochs.
        batch_size: the global batch, a multiple of `world_size`.
        num_steps: steps of one pass over the loader.
    """

    def __init__(
        self, order: Order, batch_size: int, *, num_steps: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if num_steps < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise UsageError(
                f"a sampler of {num_steps} steps, batch {batch_size} and rank {rank} of {world_size}: "
                "expected at least one step and sample, and ranks from 0"
            )
        self.order = order
        self.num_steps = num_steps
        self.step = 0
        """The step that comes next."""
        self._sampler = Sampler(batch_size, rank, world_size)

    def __len__(self) -> int:
        """The steps of the pass under way."""
        return self.num_steps - self.step % self.num_steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(len(self)):
            positions = self._sampler.positions(self.step).tolist()
            self.step += 1
            yield positions

    def state_at(self, step: int) -> dict[str, Any]:
        """The state of a run that has taken `step` steps."""
        batch = self._sampler.batch_size
        return {**self.order.state(step * batch), "step": step, "batch_size": batch}

    def state_dict(self) -> dict[str, Any]:
        """The state after the last batch that was given out."""
        return self.state_at(self.step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; UsageError where the index, order or batch is another."""
        if state.get("batch_size") != self._sampler.batch_size:
            raise UsageError(
                f"the state was taken with a global batch of {state.get('batch_size')} and it is "
                f"{self._sampler.batch_size} now; go on with the old one, or start again"
            )
        self.order.check(state)
        self.step = int(state["step"])
