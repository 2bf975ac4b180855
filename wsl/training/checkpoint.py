"""Checkpoints that are there whole or not at all.

    checkpoints/step-000500/    DeepSpeed's files, rank-00000.pt (generators and buffers of a rank),
                                complete.json (written last, before the folder gets its name)
    checkpoints/latest          the name of the newest, replaced by rename

DeepSpeed alone writes `latest` before other ranks are known to be done and keeps rank 0's client
state only; so its files go to a temporary folder, every rank waits for every other, all is synced,
and only then the folder is renamed. Its files are pickles: only a run's own folder is loaded.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from wsl._core import DataError, UsageError
from wsl.publish import publish_text, sync
from wsl.training import deepspeed

MARKER = "complete.json"
NUM_KEPT = 2


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], rank: int, world_size: int) -> Path:
    """Publishes `step-NNNNNN` under `folder` and drops all but the newest two; every rank must call."""
    name = f"step-{step:06d}"
    temporary = folder / f".{name}.tmp"
    if rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    deepspeed.barrier()
    engine.save_checkpoint(str(folder), tag=temporary.name, client_state=state, save_latest=False)
    own = {
        "rng": torch.get_rng_state(),
        "buffers": {key: value.cpu() for key, value in engine.module.named_buffers()},
    }
    torch.save(own, temporary / f"rank-{rank:05d}.pt")
    deepspeed.barrier()
    final = folder / name
    if rank == 0:
        publish_text(temporary / MARKER, json.dumps(state | {"step": step, "world_size": world_size}))
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        sync(folder)
        publish_text(folder / "latest", name + "\n")
        for old in find_all(folder)[:-NUM_KEPT]:
            (old / MARKER).unlink()
            shutil.rmtree(old, ignore_errors=True)
    deepspeed.barrier()
    return final


def find_all(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MARKER).is_file())


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """What `complete.json` says; DataError where `checkpoint` is not a checkpoint of ours."""
    try:
        content = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            return content
        found = "another content"
    except (OSError, ValueError) as error:
        found = str(error)
    raise DataError(
        f"{checkpoint} is not a complete checkpoint: expected {MARKER} as a stage writes it, found {found}; "
        "name a folder such as runs/teacher/checkpoints/step-000500"
    )


def load(engine: Any, checkpoint: Path, rank: int, world_size: int) -> int:
    """Restores the engine, this rank's generators and buffers; the number of steps done."""
    marker = read_marker(checkpoint)
    if marker["world_size"] != world_size:
        raise UsageError(
            f"{checkpoint} was written by {marker['world_size']} ranks and cannot go on with {world_size}; "
            f"start {marker['world_size']} ranks, or begin again with --resume never --overwrite"
        )
    try:
        loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
        own = torch.load(checkpoint / f"rank-{rank:05d}.pt", weights_only=True)
        torch.set_rng_state(own["rng"])
        buffers = dict(engine.module.named_buffers())
        for key, value in own["buffers"].items():
            buffers[key].copy_(value)
    except (OSError, EOFError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{checkpoint} is damaged, cannot resume from it: {error}; remove it and run again"
        ) from error
    if loaded is None:
        raise DataError(f"{checkpoint} lacks DeepSpeed's files; remove it and run again")
    return int(marker["step"])
