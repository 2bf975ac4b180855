"""The one module that imports DeepSpeed: processes, engine, collectives.

Batch size, optimizer and clipping come from the stage's YAML, ZeRO and precision from the JSON.
Without a launcher the process is alone on a free port. Traps that are handled here: gradient
clipping is on by default in DeepSpeed; float32 on the CPU (bf16 fails with BatchNorm there); its
shared-memory operator would be compiled at the first run, with `ninja` and a C++ compiler, and leave
69 MB a rank in /dev/shm, though only inference calls it: it is never built.

The JSON files of `configs/deepspeed` set `reduce_bucket_size`: DeepSpeed's default of 5e8 elements is a
buffer of 2 GB in float32 on each GPU, whatever the size of the network. Under ZeRO 3 its defaults also keep
weights gathered until 1e9 of them are, which is all of them for every network here: the files set less.

What ranks agree on at each step travels in float64 over gloo, on a GPU machine too, where it then
does not wait for the device.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsl._core import UsageError, WslError
from wsl.training.launch import free_port
from wsl.workspace.stage import StageConfig

_control: Any = None
"""The gloo group that flags travel in; None is the default group (which is gloo on a CPU)."""


def init_distributed() -> tuple[int, int, torch.device]:
    """Joins the group of processes (once): rank, number of ranks, device."""
    # Standard output is for data; DeepSpeed writes its messages there.
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed

        backends = importlib.import_module("deepspeed.comm.torch")
        _import_muon_uncompiled()

    # It would be compiled at the first run, though only inference calls it.
    vars(backends)["build_shm_op"] = lambda: None

    # Without a launcher this process is the only rank.
    if "RANK" not in os.environ:
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
        alone |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # type: ignore[dict-item]
        os.environ.update({key: str(value) for key, value in alone.items()})
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ranks_here = int(
        os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ["WORLD_SIZE"]
    )
    if ranks_here > 1 and not torch.cuda.is_available():
        # Ranks that each take every core wait for one another most of the time.
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // ranks_here, 1))

    if not torch.distributed.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        with contextlib.redirect_stdout(sys.stderr):
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)

        # Over gloo flags do not wait for the GPU.
        if backend == "nccl":
            global _control  # noqa: PLW0603
            _control = torch.distributed.new_group(backend="gloo")
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def _import_muon_uncompiled() -> None:
    """DeepSpeed's engine imports an optimizer that no stage uses, and with it what compiles its functions.

    That takes 1.4 CPU seconds. Imported here, the functions stay as they are written.
    """
    compiler = vars(importlib.import_module("deepspeed.runtime.compiler"))
    plain = compiler["compile"]
    compiler["compile"] = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler["compile"] = plain


def micro_batch(config: StageConfig, world_size: int, wanted: int | None = None) -> int:
    """Images of a rank's forward pass: `wanted`, else the config's, else the rank's whole share.

    UsageError where the config's does not divide the share; a `wanted` one that does not is left.
    """
    share = config.batch_size // world_size
    if config.micro_batch_size is None and wanted is not None and share % wanted == 0:
        return wanted
    micro = min(config.micro_batch_size or share, share)
    if share % micro:
        raise UsageError(
            f"micro_batch_size {micro} does not divide a rank's share of the batch, {share} "
            f"(batch_size {config.batch_size} over {world_size} ranks)"
        )
    return micro


def resolve_settings(
    config: StageConfig, settings: dict[str, Any], micro: int, world_size: int
) -> dict[str, Any]:
    """DeepSpeed's whole configuration: the JSON with everything that the stage's YAML decides."""
    tree = dict(settings)
    bf16 = dict(tree.get("bf16", {}))
    usable = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    bf16["enabled"] = usable and bf16.get("enabled") in (True, "auto")
    if bf16["enabled"]:
        # Sums of many small gradients lose their tail in bf16.
        tree.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    return tree | {
        "bf16": bf16,
        "train_batch_size": config.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": config.batch_size // world_size // micro,
        "gradient_clipping": config.optimizer.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def initialize(
    config: StageConfig,
    settings: dict[str, Any],
    model: nn.Module,
    world_size: int,
    *,
    micro: int | None = None,
    universal: bool = False,
) -> Any:
    """DeepSpeed's engine around `model`, with `micro` images in a rank's forward pass.

    `universal`: what it will load first is a universal checkpoint.
    """
    import deepspeed

    micro = micro or micro_batch(config, world_size)
    tree = resolve_settings(config, settings, micro, world_size)
    if universal:
        tree["checkpoint"] = {**tree.get("checkpoint", {}), "load_universal": True}

    options = config.optimizer
    optimizer = torch.optim.SGD(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov and options.momentum > 0,
        weight_decay=options.weight_decay,
    )

    # DeepSpeed checks its own settings; what it refuses is an error in the user's file.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=tree, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError, KeyError) as error:
            reason = " ".join(str(error).split())[:400]
            raise UsageError(f"{config.deepspeed}: DeepSpeed refuses these settings: {reason}") from error
    return engine


def zero_stage(settings: dict[str, Any]) -> int:
    """The ZeRO stage of DeepSpeed's settings; 0 where they name none."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


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

    # A value that is set in both files would have two truths.
    ours = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer"}
    doubled = sorted((ours | {"scheduler", "gradient_clipping"}) & set(tree))
    if doubled:
        raise UsageError(
            f"{file}: {', '.join(doubled)} come from the stage's YAML; take them out of the JSON"
        )

    # Refused here, and not deep inside DeepSpeed.
    zero = tree.get("zero_optimization", {})
    if not isinstance(zero, dict) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise UsageError(f"{file}: zero_optimization: expected a group with a stage from 0 to 3, got {zero}")
    if tree.get("fp16", {}).get("enabled"):
        raise UsageError(f"{file}: fp16 scales losses and skips steps; use bf16, or float32 without both")
    return tree


def total(values: list[float]) -> list[float]:
    """The sums over all ranks (float64)."""
    if torch.distributed.get_world_size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    with explained():
        torch.distributed.all_reduce(sums, group=_control)
    return [float(value) for value in sums.tolist()]


def gather(value: Any) -> list[Any]:
    """What every rank passes, in the order of ranks; small things only."""
    world_size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if world_size == 1:
        return [value]
    found: list[Any] = [None] * world_size
    with explained():
        torch.distributed.all_gather_object(found, value, group=_control)
    return found


def agree(error: BaseException | None) -> None:
    """Raises on every rank where one of them failed: its own error, or word of the others'."""
    known = None
    if error is not None:
        known = (getattr(error, "errno", None), getattr(error, "filename", None), str(error))
    failed = [(rank, *told) for rank, told in enumerate(gather(known)) if told]
    if error is not None:
        raise error
    if failed:
        rank, code, filename, text = failed[0]
        if code is not None:
            raise OSError(code, os.strerror(code), filename)
        raise WslError(f"rank {rank} failed: {text}")


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Says plainly that another rank has gone where torch reports a closed connection or a timeout."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        gone = ("Connection closed", "Connection reset", "Broken pipe", "timed out", "Timed out")
        if not any(word in text for word in gone):
            raise
        raise WslError(
            "another rank has ended or does not answer; its own message says why, and the same command goes "
            "on from the newest checkpoint"
        ) from error


def add_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU `tensor` summed over all ranks, in place."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    with explained():
        torch.distributed.all_reduce(tensor, group=_control)
    return tensor


def barrier() -> None:
    """Waits for every rank."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        with explained():
            torch.distributed.barrier()


@contextlib.contextmanager
def averaged_buffers(model: nn.Module) -> Iterator[None]:
    """BatchNorm's running statistics are the mean over ranks inside, and each rank's own again after.

    So every rank evaluates and saves one model, and evaluating changes nothing of the training.
    """
    world_size = torch.distributed.get_world_size()
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for buffer in model.buffers():
        if world_size > 1 and buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer.div_(world_size)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(own[name])


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
