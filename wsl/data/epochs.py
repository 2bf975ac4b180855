"""A torch dataset over an epoch order: positions in, decoded and augmented images out.

    order = wsl.EpochOrder(index, factors, seed=0)
    data = EpochDataset(index, order, ImageOptions(), seed=0)
    sampler = StepSampler(order, batch_size=256, num_steps=1000, rank=rank, world_size=world_size)
    loader = StatefulDataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=8)

What stands in a batch is a function of the order, the options and the step alone. A sample that cannot
be decoded, has too many pixels or was taken down is replaced by another, drawn by a hash of (seed,
position); such samples are counted, and too many of them are an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from wsl._core import DataError
from wsl.data.augment import ImageOptions, decode_image, transform
from wsl.data.dataset import Targets, pad
from wsl.data.sampler import Order
from wsl.data.transforms import uniforms

DRAW_REPLACEMENT = 64
"""The first of the draws that choose a sample in place of one that cannot be shown."""
MAX_TRIES = 16
MIN_SEEN = 1000
"""Samples seen before their share may fail the run."""


@dataclass(frozen=True)
class Example:
    """One sample of a batch."""

    position: int
    """In the stream of all epochs."""
    sample: int
    """The ordinal whose image is shown."""
    image: torch.Tensor
    """float32 3 x S x S."""
    labels: np.ndarray[Any, np.dtype[np.int64]]
    """Ascending int64."""
    num_replaced: int
    """Samples that were drawn before it and could not be shown."""


@dataclass(frozen=True)
class ImageBatch:
    """Examples side by side."""

    positions: torch.Tensor
    """int64 N."""
    samples: torch.Tensor
    """int64 N."""
    images: torch.Tensor
    """float32 N x 3 x S x S."""
    targets: Targets
    """Each of the k labels of an image has the weight 1/k."""
    num_replaced: int


class EpochDataset(Dataset[Example]):
    """The images of an index by position in an order.

    Args:
        index: `wsl.Index` or `wsl.JoinedIndex`.
        order: the stream; its ordinals are those of `index`.
        options: what becomes of an image.
        seed: of augmentation and replacement.
        max_corrupt_share: DataError where more of the samples drawn cannot be shown, counted by each
            worker once it has seen 1,000.
    """

    def __init__(
        self,
        index: Any,
        order: Order,
        options: ImageOptions | None = None,
        *,
        seed: int = 0,
        max_corrupt_share: float = 0.01,
    ) -> None:
        self.index, self.order, self.seed = index, order, seed
        self.options = options or ImageOptions()
        self.max_corrupt_share = max_corrupt_share
        self.num_seen = self.num_corrupt = 0

    def __len__(self) -> int:
        """The number of samples; positions go on beyond it."""
        return len(self.order)

    def __getitem__(self, position: int) -> Example:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Example]:
        """The examples at `positions`, read together."""
        places = np.asarray(positions, dtype=np.int64)
        samples = self._samples(places)
        contents = self.index.read(samples)
        images = [decode_image(content, self.options.max_pixels) for content in contents]
        replaced = [0] * len(positions)
        for at, image in enumerate(images):
            if image is None:
                samples[at], images[at], replaced[at] = self._replace(int(places[at]))
        self._count(len(positions), sum(replaced))
        labels = self.index.labels(samples)
        return [
            Example(
                int(position),
                int(sample),
                transform(image, self.options, self.seed, int(position)),
                np.asarray(row, dtype=np.int64),
                number,
            )
            for position, sample, image, row, number in zip(
                places, samples, images, labels, replaced, strict=True
            )
            if image is not None
        ]

    def _samples(self, places: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The samples at positions; a run of them is asked for at once."""
        breaks = np.flatnonzero(np.diff(places) != 1) + 1
        runs = np.split(places, breaks)
        return np.concatenate([self.order[int(run[0]) : int(run[-1]) + 1] for run in runs if len(run)])

    def _replace(self, position: int) -> tuple[int, torch.Tensor, int]:
        """Another sample of the stream, its image, and how many could not be shown."""
        for attempt in range(MAX_TRIES):
            share = uniforms(self.seed, np.array([position]), DRAW_REPLACEMENT + attempt)[0]
            other = int(share * len(self.order))
            sample = self.order[other : other + 1]
            image = decode_image(self.index.read(sample)[0], self.options.max_pixels)
            if image is not None:
                return int(sample[0]), image, attempt + 1
        raise DataError(
            f"the sample at position {position} cannot be decoded, nor can {MAX_TRIES} drawn in its place; "
            "check the shards with 'wsl index verify'"
        )

    def _count(self, num_seen: int, num_corrupt: int) -> None:
        self.num_seen += num_seen
        self.num_corrupt += num_corrupt
        if self.num_seen >= MIN_SEEN and self.num_corrupt > self.max_corrupt_share * self.num_seen:
            raise DataError(
                f"{self.num_corrupt:,} of {self.num_seen:,} samples could not be decoded, more than "
                f"max_corrupt_share {self.max_corrupt_share} allows; check the shards with "
                "'wsl index verify', or raise the share"
            )


def collate(examples: list[Example]) -> ImageBatch:
    """One rank's share of a batch."""
    rows = [example.labels for example in examples]
    return ImageBatch(
        torch.tensor([example.position for example in examples]),
        torch.tensor([example.sample for example in examples]),
        torch.stack([example.image for example in examples]),
        pad(rows, [np.full(len(row), 1 / max(len(row), 1)) for row in rows]),
        sum(example.num_replaced for example in examples),
    )
