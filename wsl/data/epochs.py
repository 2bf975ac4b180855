"""A torch dataset over an epoch order: positions in, decoded and augmented images out.

    order = wsl.EpochOrder(index, factors, seed=0)
    data = EpochDataset(index, order, ImageOptions(), seed=0)
    sampler = StepSampler(order, batch_size=256, num_steps=1000, rank=rank, world_size=world_size)
    loader = StatefulDataLoader(data, batch_sampler=sampler, collate_fn=collate, num_workers=8)

What is in a batch is a function of the order, the options and the step alone; `wsl.data.loader` makes
it, for the stages too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from wsl.data.augment import ImageOptions
from wsl.data.dataset import Images, LabelledExamples, Targets, pad
from wsl.data.loader import CorruptCount, Loader
from wsl.data.sampler import Order


@dataclass(frozen=True)
class Example:
    """One sample of a batch."""

    position: int
    """In the stream of all epochs."""
    sample: int
    """The ordinal whose image is shown."""
    image: torch.Tensor
    """float32 C x S x S."""
    labels: npt.NDArray[np.int64]
    """Ascending."""
    weights: npt.NDArray[np.float64]
    """1/k on each of the k labels."""
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
    """float32 N x C x S x S."""
    targets: Targets
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
        images = Images(index, options or ImageOptions(), layout=torch.contiguous_format)
        self.loader = Loader(images, LabelledExamples(index), order, seed)
        self.corrupt = CorruptCount(max_corrupt_share, str(getattr(index, "path", "the index")))

    def __len__(self) -> int:
        """The number of samples; positions continue beyond it."""
        return len(self.loader.order)

    def __getitem__(self, position: int) -> Example:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Example]:
        """The examples at `positions`, read together."""
        loaded = self.loader.at(np.asarray(positions, dtype=np.int64))
        self.corrupt.add(len(positions), int(loaded.num_corrupt.sum()))
        examples = []
        for at, position in enumerate(positions):
            weights = loaded.targets.weights[at].numpy()
            real = weights > 0
            labels = loaded.targets.labels[at].numpy()[real]
            sample, replaced = int(loaded.samples[at]), int(loaded.num_replaced[at])
            image = loaded.images[at]
            examples.append(Example(int(position), sample, image, labels, weights[real], replaced))
        return examples


def collate(examples: list[Example]) -> ImageBatch:
    """One rank's share of a batch."""
    return ImageBatch(
        torch.tensor([example.position for example in examples]),
        torch.tensor([example.sample for example in examples]),
        _side_by_side([example.image for example in examples]),
        pad([example.labels for example in examples], [example.weights for example in examples]),
        sum(example.num_replaced for example in examples),
    )


def _side_by_side(images: list[torch.Tensor]) -> torch.Tensor:
    """N x C x S x S; without copying where they are a batch already, as `__getitems__` makes them."""
    first, size = images[0], images[0].numel()
    memory = first.untyped_storage().data_ptr()
    for at, image in enumerate(images):
        same = image.untyped_storage().data_ptr() == memory and image.stride() == first.stride()
        if not same or image.storage_offset() != first.storage_offset() + at * size:
            return torch.stack(images)
    return first.as_strided((len(images), *first.shape), (size, *first.stride()))
