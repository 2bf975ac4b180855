"""The stages: what pretrain, teacher, student and finetune read, and how a run becomes a folder.

    runs/<stage>/config.yaml          the resolved config
                 run.json             inputs, state (running, complete), results; complete comes last
                 checkpoints/         see `wsl.training.checkpoint`
                 metrics.csv events/  the curves
                 model.safetensors    whole float32 weights, all that later stages read
                 best.safetensors     with keep_best: those of the best evaluation
                 not-finite.json      the batch that stopped the run, where one did

A run is determined by its config and the fingerprints of its inputs. Run again, a complete one is
up to date, an incomplete one is resumed, and one of other options is refused unless overwritten.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from wsl._core import UsageError, WslError, __version__
from wsl.data.sampler import Sampler
from wsl.files.publish import publish_text
from wsl.training import checkpoint, deepspeed, universal
from wsl.training.distillation import FILE, collect_scores
from wsl.training.execution import lay_out_weights, prepare_model
from wsl.training.export import BEST, WEIGHTS
from wsl.training.metrics import Evaluation
from wsl.training.mixing import check_even
from wsl.training.models import num_parameters
from wsl.training.task import Task, make_model, prepare_task
from wsl.training.trainer import NOT_FINITE, Trainer
from wsl.training.watch import Watch
from wsl.workspace.layout import StageInputs
from wsl.workspace.run import read_run
from wsl.workspace.settings import check, dump, flat
from wsl.workspace.stage import StageConfig

Resume = Literal["auto", "never"] | Path

FREE_TO_CHANGE = {
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "log_every",
    "evaluate_every",
    "timeout_s",
    "loader_timeout_s",
    "data.num_workers",
    "data.cache_bytes",
}
"""Settings that change no weight, so a run may resume with others."""


@dataclass(frozen=True)
class RunSummary:
    """What a stage came to."""

    run: Path
    num_steps: int
    seconds: float
    """Of the last session, which may have begun at a checkpoint."""
    images_per_second: float
    num_parameters: int
    num_corrupt: int
    evaluation: dict[str, float] | None
    """top1, top5 and macro accuracy on the held-out index."""
    loss: float | None = None
    """Of the last step; None where no step was left to take."""
    waiting_share: float = 0.0
    """Share of the time that rank 0 waited for images."""
    peak_memory_bytes: list[int] = field(default_factory=list)
    """The most memory that each rank had."""
    world_size: int = 1
    up_to_date: bool = False
    """The run was complete already."""


def run_stage(
    config: StageConfig,
    inputs: StageInputs,
    *,
    resume: Resume = "auto",
    overwrite: bool = False,
    console: Console | None = None,
) -> RunSummary:
    """Trains one stage under DeepSpeed and publishes its run folder; every rank must call it.

    Without a launcher the process trains alone. `resume`: "auto" resumes from the newest complete
    checkpoint, "never" starts at step 0, a path names one checkpoint of this run. UsageError where
    a run of other options is there and `overwrite` is not given; DataError for corrupt inputs;
    `wsl.training.stop.Stopped` after a signal, when a checkpoint is complete.
    """
    rank, world_size, device = deepspeed.init_distributed()
    console = console or Console(stderr=True)
    limits = config.timeout_s, config.loader_timeout_s
    with deepspeed.explained(), Watch(rank, world_size, *limits) as watch:
        watch.doing("prepares", 0)
        sampler = Sampler(config.batch_size, rank, world_size)
        settings = deepspeed.read_settings(config.deepspeed, inputs.config)
        _check_zero(config, settings)
        task = prepare_task(config, inputs, settings)

        # A run is known again by its inputs and settings, so these are read first.
        finished = _look(config, inputs, task, overwrite)
        if finished is not None:
            if rank == 0:
                console.print(f"{inputs.out}: up to date", soft_wrap=True)
            return finished
        found = _find_checkpoint(config, inputs, task, resume, overwrite)
        trainer, start = _set_up(
            config,
            inputs,
            task,
            settings,
            found,
            sampler=sampler,
            device=device,
            console=console,
            watch=watch,
        )
        count = num_parameters(trainer.engine.module)
        trainer.train(start)
        watch.doing("evaluates", config.num_steps)
        evaluation = trainer.evaluate(config.num_steps) if inputs.evaluate else None
        watch.doing("publishes", config.num_steps)
        summary = RunSummary(
            run=inputs.out,
            num_steps=config.num_steps,
            seconds=trainer.clock.seconds,
            images_per_second=trainer.clock.images_per_second,
            num_parameters=count,
            num_corrupt=trainer.corrupt.num_corrupt,
            evaluation=evaluation.summary() if evaluation else None,
            loss=trainer.loss,
            waiting_share=trainer.clock.waiting_share,
            peak_memory_bytes=trainer.peak_memory_bytes,
            world_size=world_size,
        )
        _publish(trainer, summary, evaluation)
        return summary


def _check_zero(config: StageConfig, settings: dict[str, Any]) -> None:
    """UsageError where options of the stage do not go with the ZeRO stage."""
    if config.ema_decay is not None and deepspeed.zero_stage(settings) == 3:
        raise UsageError(
            f"ema_decay needs the whole weights on each rank, and {config.deepspeed} spreads them (ZeRO 3); "
            "take ZeRO 0, 1 or 2, or leave ema_decay out"
        )


def _check_convertible(config: StageConfig, settings: dict[str, Any], num_ranks: int) -> None:
    """UsageError where a checkpoint of `num_ranks` cannot be converted for another number."""
    resolved = deepspeed.resolve_settings(config, settings, 1, 1)
    zero = settings.get("zero_optimization", {})
    on_disk = any(zero.get(f"offload_{part}", {}).get("device") == "nvme" for part in ("optimizer", "param"))
    if on_disk or (resolved["bf16"]["enabled"] and deepspeed.zero_stage(settings) == 0):
        what = "states on NVMe" if on_disk else "bf16 under ZeRO 0"
        raise UsageError(
            f"the checkpoint was written by {num_ranks} ranks, and {what} cannot go on with another "
            f"number; run 'wsl train --stage {config.stage} --num-accelerators {num_ranks}' in the same way"
        )


def _set_up(
    config: StageConfig,
    inputs: StageInputs,
    task: Task,
    settings: dict[str, Any],
    found: Path | None,
    *,
    sampler: Sampler,
    device: torch.device,
    console: Console,
    watch: Watch,
) -> tuple[Trainer, int]:
    """The trainer, as fresh or as the checkpoint `found` has it, and the number of steps done."""
    rank, world_size = sampler.rank, sampler.world_size
    marker = checkpoint.check_whole(found) if found else None
    micro = deepspeed.micro_batch(config, world_size, marker["micro_batch_size"] if marker else None)
    check_even(config.regularization, micro)
    # Weights that do not fit are found before anything in the run folder is touched.
    model = make_model(config, inputs, task).to(device)
    model = prepare_model(model, config.execution, deepspeed.zero_stage(settings))
    if marker and marker["world_size"] != world_size:
        _check_convertible(config, settings, marker["world_size"])

    # No rank has failed until here, so the first one may change the run folder.
    deepspeed.barrier()

    # The other ranks wait for the first one: where it fails they have to know, or they would wait for ever.
    failure: Exception | None = None
    converted: Path | None = None
    if rank == 0:
        for text in task.warnings:
            console.print(f"warning: {text}", soft_wrap=True, highlight=False, markup=False)
        try:
            _begin(config, inputs, task, keep=found is not None)
            if found and marker and marker["world_size"] != world_size and deepspeed.zero_stage(settings) > 0:
                watch.doing("converts a checkpoint", marker["step"])
                converted = universal.convert(found)
        except (OSError, RuntimeError, KeyError, WslError) as error:
            failure = error
    deepspeed.agree(failure)
    converted = deepspeed.gather(converted)[0]
    engine = deepspeed.initialize(
        config, settings, model, world_size, micro=micro, universal=converted is not None
    )
    lay_out_weights(engine.module, config.execution, deepspeed.zero_stage(settings))
    checkpoint.seed_rank(config.seed, rank)
    trainer = Trainer(config, inputs, task, engine, sampler, device, console, watch)
    if found is None or marker is None:
        return trainer, 0
    watch.doing("loads a checkpoint", marker["step"])
    start = checkpoint.load(engine, found, converted=converted, ema=trainer.ema, seed=config.seed)
    trainer.restore(marker)
    deepspeed.barrier()
    if rank == 0:
        # Every rank has loaded it by now.
        if converted is not None:
            shutil.rmtree(converted, ignore_errors=True)
        of = f" of {marker['world_size']} ranks" if marker["world_size"] != world_size else ""
        console.print(f"{config.stage}: going on after step {start}{of}", soft_wrap=True, highlight=False)
    return trainer, start


def _look(config: StageConfig, inputs: StageInputs, task: Task, overwrite: bool) -> RunSummary | None:
    """The summary of an identical complete run; UsageError where a run of other options is there."""
    if overwrite or not (inputs.out / "run.json").is_file():
        return None
    info = read_run(inputs.out)
    if info.get("state") != "complete" and not checkpoint.find_all(inputs.out / "checkpoints"):
        return None  # it came to nothing that could be lost
    changed = _differences(config, task, info)
    if changed:
        raise UsageError(
            f"{inputs.out} holds a run of other options: {', '.join(changed)} differ. "
            "Pass --overwrite to replace it, or --out DIR for another folder"
        )
    if info.get("state") != "complete":
        return None
    return RunSummary(**{**info["summary"], "run": inputs.out, "up_to_date": True})


def _differences(config: StageConfig, task: Task, info: dict[str, Any]) -> list[str]:
    """Keys of config and inputs that are not as the run has them."""
    old = flat(check(StageConfig, info["config"], "run.json").model_dump(mode="json"))
    new = flat(config.model_dump(mode="json"))
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE]
    before = info.get("inputs", {})
    return keys + [key for key in sorted(before | task.inputs) if before.get(key) != task.inputs.get(key)]


def _find_checkpoint(
    config: StageConfig, inputs: StageInputs, task: Task, resume: Resume, overwrite: bool
) -> Path | None:
    """The checkpoint to resume from, if any."""
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume).resolve()
        if not path.is_dir():
            have = [found.name for found in checkpoint.find_all(inputs.out / "checkpoints")]
            raise UsageError(
                f"--resume {resume}: there is no such checkpoint; complete ones of {inputs.out}: "
                f"{', '.join(have) or 'none'}"
            )
        checkpoint.check_whole(path)

        # A checkpoint that was named must be of this run with these options, or it would not resume bit for
        # bit.
        run = path.parents[1]
        if run != inputs.out.resolve() or not (run / "run.json").is_file():
            raise UsageError(
                f"{path} is no checkpoint of the run {inputs.out}; a run goes on from its own checkpoints, "
                "and takes the weights of another with --init RUN"
            )
        changed = _differences(config, task, read_run(run))
        if changed:
            raise UsageError(f"{path} was made with other options: {', '.join(changed)} differ")
        return path

    # The newest one that is complete; one that was being written when the run was killed is passed over.
    if overwrite or not (inputs.out / "run.json").is_file():
        return None
    return next(reversed(checkpoint.find_all(inputs.out / "checkpoints")), None)


def _begin(config: StageConfig, inputs: StageInputs, task: Task, *, keep: bool) -> None:
    """Makes the run folder; without `keep` what an earlier run left is removed first."""
    out = inputs.out
    out.mkdir(parents=True, exist_ok=True)
    if not keep:
        for name in ("run.json", WEIGHTS, BEST, NOT_FINITE, "config.yaml", "metrics.csv"):
            (out / name).unlink(missing_ok=True)
        for name in ("checkpoints", "events"):
            shutil.rmtree(out / name, ignore_errors=True)
    if task.samples is not None and inputs.predictions is not None:
        collect_scores(inputs.predictions, out, task.samples, task.num_labels, task.teacher)
    (out / NOT_FINITE).unlink(missing_ok=True)
    publish_text(out / "config.yaml", dump(config))
    publish_text(out / "run.json", json.dumps(_info(config, task, "running"), indent=2) + "\n")


def _info(config: StageConfig, task: Task, state: str) -> dict[str, Any]:
    import deepspeed as library

    return {
        "stage": config.stage,
        "state": state,
        "num_labels": task.num_labels,
        "class_names": task.class_names,
        "vocabulary_fingerprint": task.vocabulary_fingerprint,
        "inputs": task.inputs,
        "config": config.model_dump(mode="json"),
        "versions": {
            "wsl": __version__,
            "torch": torch.__version__,
            "deepspeed": library.__version__,
            "python": platform.python_version(),
        },
    }


def _publish(trainer: Trainer, summary: RunSummary, evaluation: Evaluation | None) -> None:
    """Writes the weights, then `run.json` with state complete, and drops the checkpoints."""
    config, task, out = trainer.config, trainer.task, trainer.inputs.out

    # Under ZeRO 3 every rank has a part of the weights, so all of them take part.
    with trainer.published_weights():
        trainer.write_weights(WEIGHTS)
    if trainer.sampler.rank == 0:
        info = _info(config, task, "complete") | {
            "summary": {**asdict(summary), "run": str(summary.run)},
            "best": trainer.best,
            "evaluation": evaluation.to_dict() if evaluation else None,
        }
        publish_text(out / "run.json", json.dumps(info, indent=2) + "\n")

        # The run is complete from here on, so nothing needs its checkpoints but those of its best
        # evaluations.
        checkpoints = out / "checkpoints"
        if config.keep_best:
            checkpoint.remove_others(checkpoints, checkpoint.Keep(0, config.keep_best))
        else:
            shutil.rmtree(checkpoints, ignore_errors=True)
        with contextlib.suppress(OSError):
            (out / FILE).unlink()

    # No rank returns before the run is complete.
    deepspeed.barrier()
