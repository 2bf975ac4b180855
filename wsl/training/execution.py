"""How a network is computed: activation checkpointing, memory layout, torch.compile.

None of it changes a weight's name, so what is saved loads without it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wsl._core import UsageError
from wsl.workspace.stage import ExecutionConfig

_BatchNorm = nn.modules.batchnorm._BatchNorm


def prepare_model(model: nn.Module, options: ExecutionConfig, zero_stage: int) -> nn.Module:
    """Applies `options` to `model` in place; UsageError where the network or ZeRO 3 does not allow one."""
    if options.activation_checkpointing:
        blocks = find_blocks(model)
        if not blocks:
            raise UsageError(
                "execution.activation_checkpointing: this network has no blocks to recompute; leave it out"
            )
        for block in blocks:
            _checkpoint_block(block)
    if options.compile is not None:
        known = torch._dynamo.list_backends(exclude_tags=())
        if options.compile not in known:
            raise UsageError(
                f"execution.compile: torch has no backend {options.compile!r}; it has {', '.join(known)}"
            )
        if zero_stage == 3:
            raise UsageError(
                "execution.compile does not work with ZeRO 3, which gathers weights inside the network; take "
                "ZeRO 0 to 2, or leave it out"
            )
        model.compile(backend=options.compile)
    return model


def lay_out_weights(model: nn.Module, options: ExecutionConfig, zero_stage: int) -> None:
    """Channels-last weights under ZeRO 0, once DeepSpeed has the model (it broadcasts contiguous ones).

    ZeRO 1 to 3 keep weights as slices of flat buffers; there only the images are laid out so, and
    convolutions turn their weights as they need them.
    """
    if options.channels_last and zero_stage == 0:
        model.to(memory_format=torch.channels_last)


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks: members of a Sequential that have at least two layers with weights."""
    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for container in model.modules():
        if not isinstance(container, nn.Sequential) or container in inside:
            continue
        for child in container:
            layers = [m for m in child.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            if len(layers) >= 2 and not isinstance(child, nn.Sequential):
                blocks.append(child)
                inside.update(child.modules())
    return blocks


def _checkpoint_block(block: nn.Module) -> None:
    plain = block.forward

    def forward(*arguments: Any) -> Any:
        if not (block.training and torch.is_grad_enabled()):
            return plain(*arguments)
        # ZeRO 3 frees weights between the passes, which the shapes kept by the check would not survive.
        return checkpoint(
            plain,
            *arguments,
            use_reentrant=False,
            determinism_check="none",
            context_fn=lambda: (contextlib.nullcontext(), _statistics_kept(block)),
        )

    block.forward = forward


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, as before, but counts no batch twice: momentum 0 adds nothing."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
