"""Nothing that is not finite reaches the weights.

`Guard` hooks in before the step of the torch optimizer that DeepSpeed drives. There the gradient is
averaged over the ranks (under ZeRO each rank has a part of it), so one look at it and at the loss,
and one reduction over the ranks, decide for all of them. Where DeepSpeed itself found an invalid
norm it leaves the step out without a word; that counts as not finite too.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from wsl._core import WslError
from wsl.training import deepspeed


class NotFiniteError(WslError):
    """A loss or gradient that is not finite; raised on every rank before the weights change."""

    def __init__(self, message: str, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks
        """The ranks that saw it."""


class Guard:
    """Checks each step of one optimizer; `arm` before the step, `result` after it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._hook = optimizer.register_step_pre_hook(self._before_step)
        self._armed: tuple[int, torch.Tensor] | None = None
        self._loss = 0.0

    def close(self) -> None:
        """Takes the hook away."""
        self._hook.remove()

    def arm(self, step: int, loss: torch.Tensor) -> None:
        """The next call of the optimizer belongs to `step`, whose loss on this rank is `loss`."""
        self._armed = step, loss

    def result(self) -> float:
        """The loss summed over the ranks; NotFiniteError where DeepSpeed left the step out."""
        if self._armed is not None:
            self._check(gradient_finite=False)
        return self._loss

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._armed is None:  # a further group of the same step
            return
        gradients = [
            weight.grad
            for group in optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        # The largest magnitude is NaN or infinite where any element is.
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf) if gradients else None
        self._check(gradient_finite=largest is None or math.isfinite(float(largest)))

    def _check(self, *, gradient_finite: bool) -> None:
        assert self._armed is not None
        step, part = self._armed
        self._armed = None
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()

        # One sum over ranks has the loss, and a place for each rank in which it notes what is not finite.
        own = float(part)
        values = [own] + [0.0] * (2 * world_size)
        values[1 + rank] = float(not math.isfinite(own))
        values[1 + world_size + rank] = float(not gradient_finite)
        self._loss, *flags = deepspeed.total(values)
        losses = [number for number in range(world_size) if flags[number]]
        gradients = [number for number in range(world_size) if flags[world_size + number]]
        if losses or gradients:
            what = "loss" if losses else "gradient"
            raise NotFiniteError(
                f"the {what} of step {step} is not finite (seen on rank "
                f"{', '.join(map(str, losses or gradients))}); the weights were left as they were before it. "
                "Lower optimizer.lr, add optimizer.warmup_steps or set optimizer.gradient_clipping",
                losses or gradients,
            )
