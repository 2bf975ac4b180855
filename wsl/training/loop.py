"""The stream of batches that a rank trains on, and what is counted along it.

The batch of a step is a function of (config, inputs, step, rank): nothing here has a state that a
checkpoint would have to keep, and the next batch is made while the current one trains.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wsl.data.loader import Loader
from wsl.data.sampler import Sampler
from wsl.training.distillation import TeacherScores
from wsl.training.mixing import mix
from wsl.workspace.stage import StageConfig


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: torch.Tensor
    """float32 N x C x S x S."""
    labels: torch.Tensor
    """int64 N x L."""
    weights: torch.Tensor
    """float32 N x L; all 0 for an image that does not count."""
    num_corrupt: int
    """Samples that could not be decoded and were replaced."""
    ordinals: npt.NDArray[np.int64]
    """The samples of the index that the images are, N."""
    teacher: torch.Tensor | None = None
    """Logarithms of the teacher's probabilities, float32 N x C, for distillation."""


class Batches:
    """The batches of one rank, any step at once; the next is made while the current one trains."""

    def __init__(
        self, config: StageConfig, loader: Loader, sampler: Sampler, teacher: TeacherScores | None = None
    ) -> None:
        self.config, self.loader, self.sampler, self.teacher = config, loader, sampler, teacher
        self._pin = torch.cuda.is_available()

    def get(self, step: int) -> Batch:
        """The batch of `step`."""
        positions = self.sampler.positions(step)
        loaded = self.loader.at(positions)
        images, labels, weights = loaded.images, loaded.targets.labels, loaded.targets.weights
        mixing = self.config.regularization
        if mixing.mixup > 0 or mixing.cutmix > 0:
            images, labels, weights = mix(images, labels, weights, positions, mixing, self.config.seed)
        return Batch(
            images.pin_memory() if self._pin else images,
            labels,
            weights,
            int(loaded.num_corrupt.sum()),
            loaded.samples,
            self.teacher.of(loaded.samples) if self.teacher else None,
        )

    def stream(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps `start` to `stop`."""
        if self.config.data.num_workers == 0:
            yield from (self.get(step) for step in range(start, stop))
            return
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self.get, start) if start < stop else None
            for step in range(start, stop):
                assert pending is not None
                batch = pending.result()
                pending = ahead.submit(self.get, step + 1) if step + 1 < stop else None
                yield batch


class Clock:
    """Images a second, the share of time without images, seconds left; the first step warms up only."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.num_images = self.num_steps = 0
        self._warm = self.start
        self._waited = 0.0

    def tick(self, num_images: int, waited_s: float) -> None:
        """Counts a step before which the rank waited for its batch."""
        self.num_steps += 1
        if self.num_steps == 1:
            self._warm = time.monotonic()
        else:
            self.num_images += num_images
            self._waited += waited_s

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    @property
    def images_per_second(self) -> float:
        """Over all steps but the first."""
        return self.num_images / max(time.monotonic() - self._warm, 1e-9)

    @property
    def waiting_share(self) -> float:
        """The share of that time in which this rank waited for images."""
        return self._waited / max(time.monotonic() - self._warm, 1e-9)

    def seconds_for(self, num_steps: int) -> float:
        """An estimate from the steps so far."""
        return (time.monotonic() - self._warm) / max(self.num_steps - 1, 1) * num_steps


def memory_bytes() -> int:
    """The memory that this process has now: of the GPU where it has one, else resident memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes() -> int:
    """The most memory that this process ever had."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
