"""Accuracy on held-out data: exact over ranks, every sample once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsl._core import DataError, UsageError
from wsl.data import transforms
from wsl.data.dataset import ImageIndex, Images, pad
from wsl.data.loader import CorruptCount
from wsl.index.mapped import Index
from wsl.training import deepspeed
from wsl.training.export import load_run
from wsl.training.metrics import Accuracy, Evaluation


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
    beat: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Accuracy over every sample of `index` once; ranks take batches in turn and add up.

    Every rank makes the same number of forward passes (ZeRO 3 gathers weights in each), past the
    end with no image that counts. `beat` is called before each of them.
    """
    accuracy = Accuracy(num_labels)
    options = images.options
    weight = next(model.parameters())
    training = model.training
    model.eval()

    # Past the end a rank passes one image that does not count, for under ZeRO 3 the others wait for its pass.
    num_batches = math.ceil(len(index) / batch_size)
    with torch.inference_mode():
        for number in range(rank, math.ceil(num_batches / world_size) * world_size, world_size):
            beat()
            start = min(number * batch_size, len(index))
            ordinals = np.arange(start, min(start + batch_size, len(index)), dtype=np.int64)
            empty = not len(ordinals)
            ordinals = ordinals if not empty else np.zeros(1, dtype=np.int64)
            pixels = images.load(ordinals)
            shown = transforms.normalise(pixels.images, options.mean, options.std)
            logits = model(shown.to(device or weight.device, weight.dtype)).float().cpu()
            if not empty:
                labels, weights = _labels(index, ordinals, num_labels)
                accuracy.update(logits, labels, weights * pixels.valid[:, None])
                accuracy.sums[3] += int(pixels.corrupt.sum())

    # Counts are added up, not shares, so that ranks with fewer images weigh less.
    if world_size > 1:
        for sums in (accuracy.sums, accuracy.of_class, accuracy.confusion):
            deepspeed.add_over_ranks(sums)

    # Training may continue after this.
    model.train(training)
    return accuracy.finish()


def _labels(index: ImageIndex, ordinals: Any, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [np.asarray(row, dtype=np.int64) for row in index.labels(ordinals)]
    targets = pad(rows, [np.ones(len(row)) for row in rows])
    highest = int(targets.labels.max()) if targets.labels.numel() else 0
    if highest >= num_labels:
        raise DataError(f"the held-out index has label {highest}, but the model knows {num_labels} labels")
    return targets.labels, targets.weights


def evaluate_run(run: Path, index: Path | ImageIndex, *, batch_size: int = 256) -> Evaluation:
    """Accuracy of a complete run on every labelled sample of `index`; one process, no DeepSpeed."""
    loaded = load_run(run)
    opened: ImageIndex = Index.open(index) if isinstance(index, Path | str) else index
    made, found = loaded.info.get("vocabulary_fingerprint"), opened.vocabulary_fingerprint
    if made is not None and found is not None and made != found:
        raise UsageError(
            f"{run} was trained on vocabulary {made}, the index has {found}; use an index of the same"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = Images.of(opened, loaded.config.model, loaded.config.data)
    model = loaded.model.to(device)
    result = evaluate_model(
        model, images, opened, loaded.info["num_labels"], batch_size=batch_size, device=device
    )
    corrupt = CorruptCount(loaded.config.data.max_corrupt_share, str(index))
    corrupt.num_seen, corrupt.num_corrupt = len(opened), result.num_corrupt
    corrupt.check()
    return result
