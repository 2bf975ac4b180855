"""The one module that imports DeepSpeed: processes, engine, collectives.

Batch size, optimizer and clipping come from the stage's YAML, ZeRO and precision from the JSON.
Without a launcher the process stands alone on a free port. Traps that are handled here: gradient
clipping is on by default in DeepSpeed; float32 on the CPU (bf16 fails with BatchNorm there); its
shared-memory operator is compiled at the first run and needs `ninja` and a C++ compiler.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsl._core import UsageError
from wsl.config import StageConfig


def init_distributed() -> tuple[int, int, torch.device]:
    """Joins the group of processes (once): rank, number of ranks, device."""
    _find_ninja()
    # Standard output is for data; DeepSpeed writes its messages there.
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed

    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in alone.items()})
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    if ranks_here > 1 and not torch.cuda.is_available():
        # Ranks that each take every core wait for one another most of the time.
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))
    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        with contextlib.redirect_stdout(sys.stderr):
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def initialize(
    config: StageConfig, settings: dict[str, Any], model: nn.Module, world_size: int
) -> tuple[Any, int]:
    """DeepSpeed's engine around `model`, and the number of micro-batches of a step on a rank."""
    import deepspeed

    share = config.batch_size // world_size
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise UsageError(
            f"micro_batch_size {micro} does not divide a rank's share of the batch, {share} "
            f"(batch_size {config.batch_size} over {world_size} ranks)"
        )
    tree = dict(settings)
    bf16 = dict(tree.get("bf16", {}))
    usable = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16["enabled"] = usable and bf16.get("enabled") in (True, "auto")
    tree |= {
        "bf16": bf16,
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": share // micro,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    options = config.optimizer
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        weight_decay=options.weight_decay,
    )
    with contextlib.redirect_stdout(sys.stderr):
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=tree, dist_init_required=False
        )
    return engine, share // micro


def read_settings(path: Path, beside: Path | None = None) -> dict[str, Any]:
    """DeepSpeed's JSON; a relative path is sought here, then above the stage's config.

    UsageError where it is missing, is not JSON, or sets what the stage's YAML sets.
    """
    places = [Path.cwd(), *(beside.resolve().parents if beside else ())]
    places.append(Path(__file__).resolve().parents[2])
    file = next((place / path for place in places if (place / path).is_file()), None)
    if file is None:
        raise UsageError(f"deepspeed: {path} is neither in {Path.cwd()} nor above the stage's config")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file}: expected DeepSpeed's settings as JSON: {error}") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{file}: expected a JSON object, found {type(tree).__name__}")
    ours = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer"}
    doubled = sorted((ours | {"scheduler", "gradient_clipping"}) & set(tree))
    if doubled:
        raise UsageError(
            f"{file}: {', '.join(doubled)} come from the stage's YAML; take them out of the JSON"
        )
    return tree


def total(values: list[float]) -> list[float]:
    """The sums over all ranks (float64)."""
    if torch.distributed.get_world_size() == 1:
        return values
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def add_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed over all ranks, in place."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    if torch.cuda.is_available():
        moved = tensor.cuda()
        torch.distributed.all_reduce(moved)
        return tensor.copy_(moved)
    torch.distributed.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Waits for every rank."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()


def average_buffers(model: nn.Module) -> None:
    """Makes BatchNorm's running statistics the mean over ranks, so that every rank evaluates one model."""
    world_size = torch.distributed.get_world_size()
    for buffer in model.buffers():
        if world_size > 1 and buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer.div_(world_size)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole weights and buffers on the CPU in float32, gathered under ZeRO 3 (every rank must call)."""
    import deepspeed

    sharded = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    gather: Any = deepspeed.zero.GatheredParameters(sharded) if sharded else contextlib.nullcontext()
    with gather:
        return {
            name: (tensor.detach().float() if tensor.is_floating_point() else tensor.detach())
            .cpu()
            .clone()
            .contiguous()
            for name, tensor in model.state_dict().items()
        }


def _find_ninja() -> None:
    """Adds the interpreter's folder to PATH where only it has ninja; UsageError without ninja or compiler."""
    if torch.cuda.is_available():
        return
    if shutil.which("ninja") is None:
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    compiler = os.environ.get("CXX", "c++")
    lacking = [tool for tool in ("ninja", compiler) if shutil.which(tool) is None]
    if lacking:
        raise UsageError(
            f"DeepSpeed compiles an operator at its first run on a CPU and needs {' and '.join(lacking)} on "
            "PATH; install ninja with 'pip install ninja' and a compiler such as g++ (see 'wsl doctor')"
        )
