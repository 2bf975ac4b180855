"""The learning rate of a step: a pure function of the step, so nothing of it is ever stored."""

from __future__ import annotations

import math

from wsl.workspace.stage import OptimizerConfig


def peak_rate(options: OptimizerConfig, batch_size: int) -> float:
    """The rate after the warm-up, scaled with the global batch where `lr_batch_size` asks for it."""
    if options.lr_batch_size is None:
        return options.lr
    return options.lr * batch_size / options.lr_batch_size


def learning_rate(options: OptimizerConfig, step: int, num_steps: int, batch_size: int) -> float:
    """The rate of `step` of `num_steps`.

    A linear warm-up (Goyal et al. 2017, section 2.2), then half a cosine to 0 (Loshchilov and Hutter
    2017), or `num_drops` drops at equal intervals, the last interval at the lowest rate (both
    papers halve it so).
    """
    peak = peak_rate(options, batch_size)
    if step < options.warmup_steps:
        return peak * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(num_steps - options.warmup_steps, 1)
    if options.schedule == "constant":
        return peak
    if options.schedule == "steps":
        return float(peak * options.drop_factor ** math.floor(done * (options.num_drops + 1)))
    return peak * 0.5 * (1 + math.cos(math.pi * done))
