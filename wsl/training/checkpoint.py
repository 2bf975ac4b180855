"""Checkpoints that are there whole or not at all.

    checkpoints/step-000500/    DeepSpeed's files, rank-00000.pt (generators and buffers of a rank),
                                complete.json (written last, before the folder gets its name)
    checkpoints/latest          the name of the newest, replaced by rename, for people

DeepSpeed alone writes `latest` before other ranks are known to be done and keeps rank 0's client
state only; so its files go to a temporary folder, every rank writes and fsyncs what is its own, all
agree that all is there, and only then rank 0 writes the marker, which lists every file with its size,
and renames the folder. A checkpoint counts only where every listed file has its size. The files are
pickles: only a run's own folder is ever loaded.

The newest `keep_last` and the best `keep_best` stay; others are removed once a newer one is complete.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wsl._core import DataError, WslError
from wsl.files.publish import publish_text, sync
from wsl.training import deepspeed, universal
from wsl.training.ema import Ema

MARKER = "complete.json"
SPARE_BYTES = 1 << 20
"""With less than this free a failed write is taken to be a full disk."""


@dataclass(frozen=True)
class Keep:
    """How many checkpoints stay; a stage under way keeps at least the newest."""

    last: int
    best: int


def save(
    engine: Any,
    folder: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: Keep,
    ema: Ema | None = None,
    score: float | None = None,
) -> Path:
    """Publishes `step-NNNNNN` under `folder` and drops what need not be kept; every rank must call.

    `state` goes into the marker, `score` (larger is better) decides what is best. OSError ENOSPC on a
    full disk, on every rank; what was complete before stays.
    """
    rank = torch.distributed.get_rank()
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    with _agreed(folder):
        if rank == 0 and not is_complete(final):
            for stale in [*folder.glob(".*.tmp"), final]:
                shutil.rmtree(stale, ignore_errors=True)
            temporary.mkdir(parents=True)
    if deepspeed.gather(is_complete(final))[0]:
        return final
    try:
        # It waits for other ranks in between, so what fails here ends this rank, and so the others.
        engine.save_checkpoint(str(folder), tag=temporary.name, client_state={}, save_latest=False)
    except (OSError, RuntimeError) as error:
        raise _full_disk(error, folder) from error
    with _agreed(folder):
        torch.save(own_state(engine.module, ema if rank == 0 else None), temporary / _own_file(rank))
        for file in temporary.iterdir():
            if _belongs_to(file.name, rank):
                sync(file)
    with _agreed(folder):
        if rank == 0:
            _publish(temporary, final, state | {"step": step, "score": score})
            remove_others(folder, keep)
    return final


@contextlib.contextmanager
def _agreed(folder: Path) -> Iterator[None]:
    """What is done inside has worked on every rank at the end, or raises on every rank."""
    failure: BaseException | None = None
    try:
        yield
    except (OSError, RuntimeError, WslError) as error:
        failure = _full_disk(error, folder)
    deepspeed.agree(failure)


def own_state(model: torch.nn.Module, ema: Ema | None) -> dict[str, Any]:
    """What differs between ranks, every generator and buffer, and the average of the weights."""
    numbers: Any = np.random.get_state()
    return {
        "rng": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": {"keys": torch.from_numpy(np.asarray(numbers[1], dtype=np.int64)), "rest": numbers[2:]},
        "buffers": {key: value.cpu() for key, value in model.named_buffers()},
        "ema": ema.weights if ema else None,
    }


def _publish(temporary: Path, final: Path, state: dict[str, Any]) -> None:
    world_size = torch.distributed.get_world_size()
    lacking = [rank for rank in range(world_size) if not (temporary / _own_file(rank)).is_file()]
    if lacking:
        raise DataError(
            f"{temporary}: the files of rank {lacking[0]} cannot be seen from rank 0; the run folder must "
            "lie on a file system that every machine shares"
        )
    files = {file.relative_to(temporary).as_posix(): file.stat().st_size for file in temporary.iterdir()}
    marker = state | {"world_size": world_size, "files": files}
    publish_text(temporary / MARKER, json.dumps(marker, indent=1) + "\n")
    sync(temporary)
    temporary.rename(final)
    sync(final.parent)
    publish_text(final.parent / "latest", final.name + "\n")


def _own_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _belongs_to(name: str, rank: int) -> bool:
    """Whether `rank` wrote the file: each syncs its own, on whichever machine it runs."""
    of_a_rank = "zero_pp_rank_" in name or name.startswith("rank-")
    return name == _own_file(rank) or f"zero_pp_rank_{rank}_" in name or (rank == 0 and not of_a_rank)


def _full_disk(error: BaseException, folder: Path) -> BaseException:
    """`error`, as OSError ENOSPC where the cause is a full disk, which torch reports in its own words."""
    code = getattr(error, "errno", None)
    cause: BaseException | None = error
    while cause is not None and code != errno.ENOSPC:
        code = getattr(cause, "errno", None)
        cause = cause.__cause__ or cause.__context__
    writing = any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "No space left"))
    if code == errno.ENOSPC or (writing and shutil.disk_usage(folder).free < SPARE_BYTES):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if writing:
        reason = " ".join(str(error).split())[:160]
        return WslError(
            f"a checkpoint could not be written to {folder} ({reason}): is the disk or a quota full? The "
            "last complete one is still there, and the same command goes on from it"
        )
    return error


def find_all(folder: Path) -> list[Path]:
    """The complete checkpoints under `folder`, oldest first."""
    found = [(int(path.name[5:]), path) for path in folder.glob("step-*") if path.name[5:].isdigit()]
    return [path for _, path in sorted(found) if is_complete(path)]


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker is there and every file that it lists has its size."""
    try:
        marker = read_marker(checkpoint)
    except DataError:
        return False
    return not _damaged(checkpoint, marker)


def _damaged(checkpoint: Path, marker: dict[str, Any]) -> list[str]:
    def size(name: str) -> int | None:
        try:
            return (checkpoint / name).stat().st_size
        except OSError:
            return None

    return [name for name, wanted in marker["files"].items() if size(name) != wanted]


def remove_others(folder: Path, keep: Keep) -> None:
    """Removes complete checkpoints beyond the newest and the best."""
    found = find_all(folder)
    scored = [(read_marker(path).get("score"), path) for path in found]
    ranked = sorted(((score, path) for score, path in scored if score is not None), reverse=True)
    newest = found[-keep.last :] if keep.last else []
    kept = {*newest, *(path for _, path in ranked[: keep.best])}
    for path in found:
        if path not in kept:
            remove(path)


def remove(checkpoint: Path) -> None:
    """Removes a checkpoint, its marker first, so that half of one never counts."""
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """The content of `complete.json`; DataError where `checkpoint` is not a checkpoint of ours."""
    try:
        content = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        known = isinstance(content, dict) and isinstance(content.get("files"), dict)
        if known and isinstance(content.get("step"), int) and isinstance(content.get("world_size"), int):
            return dict(content)
        found = "another content"
    except (OSError, ValueError) as error:
        found = str(error)
    raise DataError(
        f"{checkpoint} is not a complete checkpoint: expected {MARKER} as a stage writes it, found {found}; "
        "name a folder such as runs/teacher/checkpoints/step-000500"
    )


def check_whole(checkpoint: Path) -> dict[str, Any]:
    """The marker; DataError that names a file which is missing or has another size."""
    marker = read_marker(checkpoint)
    damaged = _damaged(checkpoint, marker)
    if damaged:
        raise DataError(
            f"{checkpoint / damaged[0]} is missing or was cut since it was written; remove {checkpoint} and "
            "run again to go on from an older checkpoint"
        )
    return marker


def load(engine: Any, checkpoint: Path, *, converted: Path | None, ema: Ema | None, seed: int) -> int:
    """Restores the engine and what is this rank's own; the steps done. Every rank must call.

    `converted` is what `wsl.training.universal` made of a checkpoint of another number of ranks, if it
    needs that. Then BatchNorm's statistics are the mean over the old ranks, and generators start anew from
    (seed, step, rank). DataError where it is damaged.
    """
    marker = check_whole(checkpoint)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        if converted is not None:
            universal.load(engine, converted)
        else:
            loaded, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
            if loaded is None:
                raise DataError(f"{checkpoint} lacks DeepSpeed's files; remove it and run again")

        # With other ranks there is no own state to restore.
        if marker["world_size"] == world_size:
            own = _read_own(checkpoint, rank)
            _restore_generators(own)
            _restore_buffers(engine.module, own["buffers"])
        else:
            _restore_buffers(engine.module, _mean_buffers(checkpoint, marker["world_size"]))
            seed_rank(seed, rank, marker["step"])

        # The average is the same on all ranks, and rank 0 keeps it.
        if ema is not None:
            ema.load(_read_own(checkpoint, 0)["ema"])
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{checkpoint} is damaged, cannot resume from it: {reason}; remove it") from error
    return int(marker["step"])


def _read_own(checkpoint: Path, rank: int) -> dict[str, Any]:
    return dict(torch.load(checkpoint / _own_file(rank), weights_only=True))


def _restore_generators(own: dict[str, Any]) -> None:
    torch.set_rng_state(own["rng"])
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"])
    random.setstate(own["python"])
    keys = own["numpy"]["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *own["numpy"]["rest"]))


def _restore_buffers(model: torch.nn.Module, saved: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(saved[name])


def _mean_buffers(source: Path, world_size: int) -> dict[str, torch.Tensor]:
    every = [_read_own(source, rank)["buffers"] for rank in range(world_size)]
    return {
        name: torch.stack([buffers[name] for buffers in every]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in every[0].items()
    }


def seed_rank(seed: int, rank: int, step: int = 0) -> None:
    """Gives this rank generators of its own, as a function of (seed, rank, step)."""
    numbers = np.random.SeedSequence([seed, rank, step]).generate_state(3)
    torch.manual_seed(int(numbers[0]))
    random.seed(int(numbers[1]))
    np.random.seed(int(numbers[2]))
