"""The loop: a stream of batches, steps, and evaluation that is exact over ranks.

The loss of a step is the mean over the images of the global batch that could be decoded, whatever
the number of ranks and micro-batches: each micro-batch contributes its sum over the global number.
A loss that is not finite stops every rank before the optimizer steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from wsl._core import DataError, WslError
from wsl.config import OptimizerConfig, StageConfig
from wsl.data import transforms
from wsl.data.dataset import Examples, ImageIndex, Images
from wsl.data.sampler import Sampler
from wsl.training import deepspeed
from wsl.training.losses import weighted_cross_entropy
from wsl.training.metrics import Accuracy, Evaluation

MIN_SEEN = 1000
"""Images seen before the share of corrupt ones may fail a run that is under way."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    num_corrupt: int


class Batches:
    """The batches of one rank, any step at once; the next is made while the current one trains."""

    def __init__(
        self, config: StageConfig, images: Images, examples: Examples, order: Any, sampler: Sampler
    ) -> None:
        self.config, self.images, self.examples = config, images, examples
        self.order, self.sampler = order, sampler

    def get(self, step: int) -> Batch:
        """The batch of `step`."""
        positions = self.sampler.positions(step)
        chosen = np.asarray(self.order[int(positions[0]) : int(positions[-1]) + 1], dtype=np.int64)
        data, seed = self.config.data, self.config.seed
        crops = transforms.crop_boxes(seed, positions) if data.crop else None
        pixels = self.images.load(self.examples.ordinals(chosen), crops)
        targets = self.examples.targets(chosen)
        shown = pixels.images
        if not data.crop:
            shown = transforms.shift(shown, seed, positions, data.shift)
        if data.flip:
            shown = transforms.flip(shown, seed, positions)
        return Batch(
            transforms.normalise(shown, data.mean, data.std),
            targets.labels,
            targets.weights * pixels.valid[:, None],
            int((~pixels.valid).sum()),
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


def learning_rate(options: OptimizerConfig, step: int, num_steps: int) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov and Hutter 2017); a pure function of the step."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(num_steps - options.warmup_steps, 1)
    return options.lr * 0.5 * (1 + math.cos(math.pi * done))


@dataclass
class StepResult:
    """What a step measured, over all ranks."""

    loss: float
    num_valid: int
    num_corrupt: int


def train_step(
    engine: Any, batch: Batch, num_micro: int, lr: float, step: int, device: torch.device
) -> StepResult:
    """One step of the optimizer; WslError on every rank where the loss is not finite."""
    valid = float((batch.weights.sum(1) > 0).sum())
    num_valid, num_corrupt = deepspeed.total([valid, float(batch.num_corrupt)])
    world_size = torch.distributed.get_world_size()
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
    dtype = next(engine.module.parameters()).dtype
    parts = zip(*(t.chunk(num_micro) for t in (batch.images, batch.labels, batch.weights)), strict=True)
    loss = 0.0
    for number, (images, labels, weights) in enumerate(parts, 1):
        logits = engine(images.to(device, dtype))
        part = weighted_cross_entropy(logits, labels.to(device), weights.to(device)) / max(num_valid, 1.0)
        loss += float(part.detach())
        engine.backward(part * (world_size * num_micro))
        if number == num_micro:
            (loss,) = deepspeed.total([loss])
            if not math.isfinite(loss):
                raise WslError(
                    f"the loss of step {step} is {loss}; the weights were left as they were before it. "
                    "Lower optimizer.lr, add optimizer.warmup_steps or set optimizer.gradient_clipping"
                )
        engine.step()
    return StepResult(loss, int(num_valid), int(num_corrupt))


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


def evaluate_model(
    model: nn.Module,
    images: Images,
    index: ImageIndex,
    num_labels: int,
    *,
    batch_size: int = 256,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> Evaluation:
    """Accuracy over every sample of `index` once; ranks take batches in turn and add up.

    Every rank makes the same number of forward passes (ZeRO 3 gathers weights in each), past the
    end with no image that counts.
    """
    accuracy = Accuracy(num_labels)
    data = images.data
    weight = next(model.parameters())
    training = model.training
    model.eval()
    num_batches = math.ceil(len(index) / batch_size)
    with torch.inference_mode():
        for number in range(rank, math.ceil(num_batches / world_size) * world_size, world_size):
            start = min(number * batch_size, len(index))
            ordinals = np.arange(start, min(start + batch_size, len(index)), dtype=np.int64)
            empty = not len(ordinals)
            ordinals = ordinals if not empty else np.zeros(1, dtype=np.int64)
            pixels = images.load(ordinals)
            shown = transforms.normalise(pixels.images, data.mean, data.std)
            logits = model(shown.to(device or weight.device, weight.dtype)).float().cpu()
            if not empty:
                labels, weights = _labels(index, ordinals, num_labels)
                accuracy.update(logits, labels, weights * pixels.valid[:, None])
                accuracy.sums[3] += int((~pixels.valid).sum())
    if world_size > 1:
        for sums in (accuracy.sums, accuracy.of_class, accuracy.confusion):
            deepspeed.add_over_ranks(sums)
    model.train(training)
    return accuracy.finish()


def _labels(index: ImageIndex, ordinals: Any, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    from wsl.data.dataset import pad

    rows = [np.asarray(row, dtype=np.int64) for row in index.labels(ordinals)]
    targets = pad(rows, [np.ones(len(row)) for row in rows])
    highest = int(targets.labels.max()) if targets.labels.numel() else 0
    if highest >= num_labels:
        raise DataError(f"the held-out index has label {highest}, but the model knows {num_labels} labels")
    return targets.labels, targets.weights


class Clock:
    """Images a second and seconds left, without the first step, which warms things up."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.num_images = self.num_steps = 0
        self._warm = self.start

    def tick(self, num_images: int) -> None:
        """Counts a step."""
        self.num_steps += 1
        if self.num_steps == 1:
            self._warm = time.monotonic()
        else:
            self.num_images += num_images

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    @property
    def images_per_second(self) -> float:
        """Over all steps but the first."""
        return self.num_images / max(time.monotonic() - self._warm, 1e-9)

    def seconds_for(self, num_steps: int) -> float:
        """An estimate from the steps so far."""
        return (time.monotonic() - self._warm) / max(self.num_steps - 1, 1) * num_steps
