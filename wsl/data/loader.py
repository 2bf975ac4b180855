"""What is at the positions of an order: decoded and augmented images and their targets.

It is a function of the order, the options, the seed and the position alone, so that neither ranks nor
workers nor a restart change it. A sample that cannot be decoded, has too many pixels or was removed is
replaced by another, drawn by a hash of (seed, position). Those that should have been shown are counted, and
too many of them are an error. Stages train on a `Loader`, and so does everyone through `wsl.data.epochs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from wsl._core import DataError
from wsl.data.augment import augment, operators
from wsl.data.dataset import Examples, Images, Ordinals, Targets
from wsl.data.sampler import Order
from wsl.data.transforms import crop_boxes, normalise, uniforms

DRAW_REPLACEMENT = 64
"""The first of the draws that choose an example in place of one that cannot be shown."""
MAX_TRIES = 16
MIN_SEEN = 1000
"""Samples seen before the share of corrupt ones may fail a run that is under way."""


@dataclass(frozen=True)
class Loaded:
    """What is at N positions."""

    samples: Ordinals
    """The ordinals whose images are shown."""
    images: torch.Tensor
    """float32 N x C x S x S."""
    targets: Targets
    num_replaced: npt.NDArray[np.int64]
    """For each position the samples that were drawn for it and could not be shown."""
    num_corrupt: npt.NDArray[np.int64]
    """Those of them that were not removed."""


def _shared_like(images: torch.Tensor) -> torch.Tensor | None:
    """In a worker of torch's DataLoader, room for a float32 batch that need not be copied to leave it."""
    if get_worker_info() is None or not images.is_contiguous():
        return None
    memory: Any = torch.UntypedStorage
    shared = memory._new_shared(4 * images.numel())
    return torch.empty(0).set_(shared, 0, images.shape, images.stride())


class Loader:
    """Images and targets by position.

    Args:
        images: what reads and decodes.
        examples: what is trained on.
        order: the stream of all epochs; its ordinals are those of `examples`.
        seed: of augmentation and replacement.
    """

    def __init__(self, images: Images, examples: Examples, order: Order, seed: int) -> None:
        self.images, self.examples, self.order, self.seed = images, examples, order, seed
        if images.options.augment_layers:
            # Here and not in each of the threads and processes that will augment.
            operators()

    def at(self, positions: npt.NDArray[np.int64]) -> Loaded:
        """What is at `positions`, read together; DataError where nothing can be shown at one."""
        options = self.images.options
        chosen = self._examples(positions)
        samples = np.array(self.examples.ordinals(chosen), dtype=np.int64)
        crops = crop_boxes(self.seed, positions) if options.crop else None
        pixels = self.images.load(samples, crops)
        num_replaced = np.zeros(len(positions), dtype=np.int64)
        num_corrupt = pixels.corrupt.numpy().astype(np.int64)

        # The replacement is drawn by position and attempt, so that a resumed run shows the same image.
        bad = np.flatnonzero(~pixels.valid.numpy())
        for attempt in range(MAX_TRIES):
            if not len(bad):
                break
            num_replaced[bad] += 1
            chosen[bad] = self._others(positions[bad], attempt)
            samples[bad] = self.examples.ordinals(chosen[bad])
            again = self.images.load(samples[bad], None if crops is None else crops[bad])
            pixels.images[torch.from_numpy(bad)] = again.images
            num_corrupt[bad] += again.corrupt.numpy()
            bad = bad[~again.valid.numpy()]
        if len(bad):
            raise DataError(
                f"the sample at position {positions[bad[0]]} cannot be decoded, nor can {MAX_TRIES} drawn in "
                "its place; check the shards with 'wsl index verify'"
            )

        # Augmented only now, so that a replacement gets the draws of its position.
        shown = augment(pixels.images, options, self.seed, positions, each=self.images.each)
        normal = normalise(shown, options.mean, options.std, _shared_like(shown))
        return Loaded(samples, normal, self.examples.targets(chosen), num_replaced, num_corrupt)

    def _examples(self, positions: npt.NDArray[np.int64]) -> Ordinals:
        """The examples at positions; a run of them is asked for at once."""
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        runs = [run for run in np.split(positions, breaks) if len(run)]
        taken = [self.order[int(run[0]) : int(run[-1]) + 1] for run in runs]
        return np.concatenate([np.zeros(0, dtype=np.int64), *taken])

    def _others(self, positions: npt.NDArray[np.int64], attempt: int) -> Ordinals:
        """An example of the stream for each position."""
        shares = uniforms(self.seed, positions, DRAW_REPLACEMENT + attempt)
        places = (shares * len(self.order)).astype(np.int64)
        return np.array([self.order[place : place + 1][0] for place in places.tolist()], dtype=np.int64)


class CorruptCount:
    """Keeps the share of images that cannot be decoded below its limit."""

    def __init__(self, limit: float, what: str) -> None:
        self.limit, self.what = limit, what
        self.num_seen = self.num_corrupt = 0

    def add(self, num_seen: int, num_corrupt: int) -> None:
        """Counts; DataError once enough were seen and too many are corrupt."""
        self.num_seen += num_seen
        self.num_corrupt += num_corrupt
        if self.num_seen >= MIN_SEEN:
            self.check()

    def check(self) -> None:
        """DataError where the share is above the limit."""
        if self.num_corrupt > self.limit * self.num_seen:
            raise DataError(
                f"{self.num_corrupt:,} of {self.num_seen:,} images of {self.what} could not be decoded, more "
                f"than data.max_corrupt_share {self.limit} allows; check the shards with 'wsl index verify', "
                "or raise the share"
            )
