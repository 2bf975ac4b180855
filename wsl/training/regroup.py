"""A checkpoint of one number of ranks for another: whole weights and whole momentum.

Why not DeepSpeed's universal checkpoints (0.19.8, tried on checkpoints of these stages): its converter
`ds_to_universal` reads Adam's states by name and ends with KeyError 'exp_avg' for SGD under ZeRO 1 to 3,
with `--inject_missing_state` too (without it ZeRO 1 and 2 want `universal_checkpoint_info` before that;
ZeRO 0 has no files of optimizer states, and needs no conversion). It does convert copies in which the
momentum is called `exp_avg` beside an `exp_avg_sq` of zeros and a `step`, but the loader for ZeRO 3, by
its source, asks for these same names and writes them into the optimizer, so the names must be put back
after loading, in the optimizer's own flat tensors: a second pair of hands on DeepSpeed's files and states,
half as much again on disk, three files a weight and two pools of processes, for no less code than stands
below. The fault is known (DeepSpeed's issue 8608, pull request 8609): where the converter follows the
optimizer's own names, it can take the place of this module.

What is done here: DeepSpeed's own consolidation of the float32 weights of a ZeRO checkpoint
(`zero_to_fp32`) puts together whatever stands in the place of the weights. Run once on the weights
and once on a copy of the files in which the momentum stands there, it gives both whole. The new
ranks then cut their parts out, for every ZeRO stage, as DeepSpeed's own maps of its partitions say.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from wsl._core import DataError
from wsl.publish import sync

MOMENTUM = "momentum_buffer"
WEIGHTS_FILE, MOMENTUM_FILE = "weights.safetensors", "momentum.safetensors"


def consolidate(checkpoint: Path) -> Path:
    """Writes the whole weights and momentum of a ZeRO 1 to 3 checkpoint; one rank calls.

    They go beside it into a folder of a temporary name, to be removed after loading.
    """
    out = checkpoint.with_name(f".{checkpoint.name}.whole.tmp")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    save_file(_whole(checkpoint), out / WEIGHTS_FILE)
    swapped = out / "swapped"
    swapped.mkdir()
    has_momentum = True
    for file in checkpoint.glob("*.pt"):
        if file.name.endswith("_optim_states.pt"):
            has_momentum &= _swap(file, swapped / file.name)
        else:
            (swapped / file.name).symlink_to(file)
    if has_momentum:
        save_file(_whole(swapped), out / MOMENTUM_FILE)
    shutil.rmtree(swapped)
    sync(out)
    return out


def _whole(checkpoint: Path) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.ExitStack() as quiet:
        nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
        quiet.enter_context(contextlib.redirect_stdout(nowhere))
        quiet.enter_context(contextlib.redirect_stderr(nowhere))
        state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _swap(file: Path, target: Path) -> bool:
    """Copies a file of optimizer states with the momentum in the place of the weights, if it has one."""
    content: Any = torch.load(file, map_location="cpu", weights_only=False)
    zero = content["optimizer_state_dict"]
    if "fp32_flat_groups" in zero:
        place, states = "fp32_flat_groups", zero["optimizer_state_dict"]["state"]
    else:
        place, states = "single_partition_of_fp32_groups", zero["base_optimizer_state"]["state"]
    found = [states.get(number, {}).get(MOMENTUM) for number in range(len(zero[place]))]
    if any(momentum is None for momentum in found):
        return False
    zero[place] = [momentum[: weights.numel()] for momentum, weights in zip(found, zero[place], strict=True)]
    torch.save(content, target)
    return True


def load_whole(engine: Any, folder: Path) -> None:
    """Sets weights and momentum of an engine of ZeRO 1 to 3 that has taken no step; every rank must call.

    DataError where the network has other weights.
    """
    with contextlib.ExitStack() as files:
        weights = files.enter_context(safe_open(folder / WEIGHTS_FILE, "pt"))
        has_momentum = (folder / MOMENTUM_FILE).is_file()
        momentum = files.enter_context(safe_open(folder / MOMENTUM_FILE, "pt")) if has_momentum else None
        _set_weights(engine.module, weights)
        for flat, partitions in _partitions(engine):
            state = torch.zeros_like(flat)
            for name, part, target in partitions:
                flat.data[target].copy_(weights.get_tensor(name).flatten()[part])
                if momentum is not None:
                    state[target].copy_(momentum.get_tensor(name).flatten()[part])
            if momentum is not None:
                engine.optimizer.optimizer.state[flat][MOMENTUM] = state


def _set_weights(model: torch.nn.Module, weights: Any) -> None:
    """The weights that the network computes with."""
    from deepspeed.runtime.zero import GatheredParameters

    names = set(weights.keys())
    for name, parameter in model.named_parameters():
        if name not in names:
            raise DataError(f"the checkpoint has no weights {name!r}: it is of another network")
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with torch.no_grad(), GatheredParameters(sharded, modifier_rank=0):
            parameter.copy_(weights.get_tensor(name))


Partition = tuple[str, slice, slice]
"""A weight's name, which of its elements this rank holds, and where in its flat tensor."""


def _partitions(engine: Any) -> Iterator[tuple[torch.Tensor, list[Partition]]]:
    """The flat float32 tensors that the optimizer of this rank steps, and what lies in them."""
    zero = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            rows: list[Partition] = []
            offset, rank = 0, torch.distributed.get_rank()
            for parameter in group:
                size = parameter.partition_numel()
                start = min(rank * size, parameter.ds_numel)
                stop = min(start + size, parameter.ds_numel)
                rows.append((names[parameter], slice(start, stop), slice(offset, offset + stop - start)))
                offset += size
            yield flat, rows
        return
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        rows = []
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
                part = slice(theirs.start, theirs.start + theirs.numel)
                rows.append((names[parameter], part, slice(ours.start, ours.start + ours.numel)))
        yield flat, rows
