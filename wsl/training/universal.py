"""A checkpoint of one number of ranks for another: DeepSpeed's universal checkpoint.

DeepSpeed's converter `ds_to_universal` writes each weight and each of its optimizer states whole, and the
engine's loader (`load_universal`) cuts out of them what a rank has, for ZeRO 1 to 3. ZeRO 0 keeps
whole states on every rank, and needs no conversion.

The converter of 0.19.8 knows the states of Adam alone, by name, and ends with KeyError 'exp_avg' for
SGD (DeepSpeed's issue 8608, pull request 8609); so does the loader under ZeRO 3. So it is given copies of
the files in which the momentum is called as Adam's first moment, beside a second one of zeros, and
the momentum gets its own name back: under ZeRO 1 and 2 in the converted files, whose names the loader
follows, and under ZeRO 3 in the optimizer, after loading. Where the converter follows the optimizer's own
names, `_rename` and `_restore_names` can go.

On disk a conversion takes, for as long as it lasts, about six times the weights in float32.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wsl.files.publish import sync

MOMENTUM = "momentum_buffer"
FIRST_MOMENT, SECOND_MOMENT, STEP = "exp_avg", "exp_avg_sq", "step"
TAG = "universal"


def convert(checkpoint: Path) -> Path:
    """Writes the universal checkpoint of one of ZeRO 1 to 3; one rank calls.

    It goes beside it into a folder of a temporary name, to be removed after loading. KeyError, OSError or
    RuntimeError where `checkpoint` is not as DeepSpeed wrote it.
    """
    from deepspeed.checkpoint import ds_to_universal

    # An earlier conversion may have been killed.
    out = checkpoint.with_name(f".{checkpoint.name}.universal.tmp")
    shutil.rmtree(out, ignore_errors=True)
    renamed = out / "renamed"
    renamed.mkdir(parents=True)

    # Only files with states of the optimizer are copied; weights are large, and links are enough for them.
    sharded = False
    for file in checkpoint.glob("*.pt"):
        if file.name.endswith("_optim_states.pt"):
            sharded = _rename(file, renamed / file.name)
        else:
            (renamed / file.name).symlink_to(file)
    options = argparse.Namespace(
        input_folder=str(renamed),
        output_folder=str(out / TAG),
        # Processes of its own would take the memory of a rank each.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with _silence():
        ds_to_universal.main(options)
    shutil.rmtree(renamed)

    # The loader follows the names of these files; under ZeRO 3 the momentum is renamed after loading.
    if not sharded:
        for file in out.glob(f"{TAG}/zero/*/{FIRST_MOMENT}.pt"):
            file.rename(file.with_name(f"{MOMENTUM}.pt"))
            for other in (SECOND_MOMENT, STEP):
                file.with_name(f"{other}.pt").unlink(missing_ok=True)
    sync(out)
    return out


def load(engine: Any, folder: Path) -> None:
    """Sets weights and momentum of an engine that was made for a universal checkpoint; every rank calls.

    The engine has taken no step. RuntimeError, KeyError or OSError where the network has other weights.
    """
    with _silence():
        engine.load_checkpoint(str(folder), tag=TAG)
    _restore_names(engine.optimizer.optimizer)


def _rename(file: Path, target: Path) -> bool:
    """Copies a file of optimizer states under Adam's names; whether the weights are sharded (ZeRO 3)."""
    content: Any = torch.load(file, map_location="cpu", weights_only=False)
    zero = content["optimizer_state_dict"]
    sharded = "fp32_flat_groups" in zero
    base = zero["optimizer_state_dict" if sharded else "base_optimizer_state"]
    weights = zero["fp32_flat_groups" if sharded else "single_partition_of_fp32_groups"]
    for number, flat in enumerate(weights):
        state = base["state"].setdefault(number, {})
        # Without momentum in the options SGD keeps none, and never looks at zeros.
        momentum = state.pop(MOMENTUM, None)
        zeros = torch.zeros(1).expand(flat.numel())
        state[FIRST_MOMENT] = zeros if momentum is None else momentum
        state[SECOND_MOMENT], state[STEP] = zeros, 0
    torch.save(content, target)
    return sharded


def _restore_names(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        if FIRST_MOMENT in state:
            state[MOMENTUM] = state.pop(FIRST_MOMENT)
        for other in (SECOND_MOMENT, STEP):
            state.pop(other, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
