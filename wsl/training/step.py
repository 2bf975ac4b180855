"""One step: forward and backward over the micro-batches, the guard, the optimizer.

The loss of a step is the mean over the images of the global batch that count, whatever the number of
ranks and micro-batches: each micro-batch contributes its sum over the global number. Two reductions
over the ranks belong to a step: what is known before it (images that count, corrupt ones, who wants
to stop), and what is known just before the optimizer may step (`wsl.training.guard`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from wsl.training import deepspeed
from wsl.training.guard import Guard, NotFiniteError
from wsl.training.loop import Batch
from wsl.training.losses import cross_entropy_of_images, distillation_of_images
from wsl.workspace.stage import StageConfig


@dataclass
class StepResult:
    """What a step measured, over all ranks."""

    loss: float
    num_valid: int
    num_corrupt: int
    stop: bool
    """Whether some rank wants to stop after this step."""


class Stepper:
    """Steps of one engine."""

    def __init__(self, engine: Any, config: StageConfig, device: torch.device) -> None:
        self.engine, self.config, self.device = engine, config, device
        self.num_micro = int(engine.gradient_accumulation_steps())
        self.guard = Guard(_torch_optimizer(engine))
        self._dtype = next(engine.module.parameters()).dtype
        self._losses: list[torch.Tensor] = []

    def close(self) -> None:
        """Lets go of the engine's optimizer."""
        self.guard.close()

    def step(self, batch: Batch, lr: float, step: int, *, stop: bool = False) -> StepResult:
        """One step of the optimizer; NotFiniteError on every rank where loss or gradient is not finite."""
        valid = float((batch.weights.sum(1) > 0).sum())
        known = deepspeed.total([valid, float(batch.num_corrupt), float(stop)])
        num_valid = max(known[0], 1.0)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self._losses = []
        world_size = torch.distributed.get_world_size()
        loss = torch.zeros((), device=self.device)
        for number, part in enumerate(self._parts(batch), 1):
            share = self._forward(*part).sum() / num_valid
            loss += share.detach()
            # DeepSpeed takes the mean over ranks and micro-batches; the sum is wanted.
            self.engine.backward(share * (world_size * self.num_micro))
            if number == self.num_micro:
                self.guard.arm(step, loss)
            self.engine.step()
        return StepResult(self.guard.result(), int(known[0]), int(known[1]), known[2] > 0)

    def not_finite(self, batch: Batch) -> list[int]:
        """The samples of the last batch of this rank whose own loss is not finite."""
        losses = torch.cat(self._losses).cpu() if self._losses else torch.zeros(0)
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        return [int(batch.ordinals[number]) for number in bad]

    def _parts(self, batch: Batch) -> Any:
        tensors = [batch.images, batch.labels, batch.weights]
        if batch.teacher is not None:
            tensors.append(batch.teacher)
        return zip(*(tensor.chunk(self.num_micro) for tensor in tensors), strict=True)

    def _forward(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        weights: torch.Tensor,
        teacher: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of each image, float32 N."""
        shown = images.to(self.device, self._dtype, non_blocking=True)
        if self.config.execution.channels_last:
            shown = shown.contiguous(memory_format=torch.channels_last)
        logits = self.engine(shown)
        labels, weights = labels.to(self.device), weights.to(self.device)
        losses = cross_entropy_of_images(logits, labels, weights, self.config.regularization.label_smoothing)
        if teacher is not None:
            options, counts = self.config.distillation, (weights.sum(1) > 0).float()
            soft = distillation_of_images(logits, teacher.to(self.device), options.temperature, counts)
            losses = (1 - options.weight) * losses + options.weight * soft
        self._losses.append(losses.detach())
        return losses


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer that DeepSpeed's own drives."""
    inner = engine.optimizer
    while not isinstance(inner, torch.optim.Optimizer) or isinstance(
        getattr(inner, "optimizer", None), torch.optim.Optimizer
    ):
        inner = inner.optimizer
    return inner


__all__ = ["NotFiniteError", "StepResult", "Stepper"]
