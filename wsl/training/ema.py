"""An exponential moving average of the weights (Polyak and Juditsky 1992), in float32.

Every rank keeps the same average of the whole weights, which ZeRO 0 to 2 give it; under ZeRO 3 no
rank has them, so it is refused there. Under bf16 the average is over the rounded weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Ema:
    """The average of a model's weights; buffers stay the model's own."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = model
        self.weights = {
            name: weight.detach().float().clone()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }

    def update(self) -> None:
        """average <- decay * average + (1 - decay) * weights, after a step of the optimizer."""
        with torch.no_grad():
            for name, weight in self._model.named_parameters():
                if name in self.weights:
                    self.weights[name].lerp_(weight.detach().float(), 1 - self.decay)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes the average of a checkpoint; KeyError where one is missing."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average as its weights inside, and its own again, to the bit, after."""
        parameters = {n: w for n, w in self._model.named_parameters() if n in self.weights}
        own = {name: weight.detach().clone() for name, weight in parameters.items()}
        with torch.no_grad():
            for name, weight in parameters.items():
                weight.copy_(self.weights[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in parameters.items():
                    weight.copy_(own[name])
