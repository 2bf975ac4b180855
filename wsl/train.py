"""The program that trains one stage; `deepspeed` starts it once for each rank.

    deepspeed wsl/train.py --stage student
    deepspeed --num_accelerators 2 wsl/train.py --stage student
    deepspeed --module wsl.train --stage student          (without a clone)
    wsl train --stage student                             (the same, started for you)

SIGTERM or SIGINT, or the death of the launcher, ends it after a checkpoint with exit code 130, and the
same command resumes from there.

In a workspace the stage's config, indexes and run folder come from `wsl.yaml`; with --index and
--config it needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The launcher puts the folder of this file first on the path, where its modules would be taken
    # for others of the same name; the folder above has the package.
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(entry for entry in sys.path if Path(entry).resolve() != _here)]

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from wsl._core import UsageError
from wsl.errors import exit_code, explain
from wsl.training.launch import launch_program
from wsl.training.options import TrainOptions, arguments_of, parse
from wsl.training.stop import Stopped, remember_launcher
from wsl.workspace.layout import StageInputs, Workspace
from wsl.workspace.settings import dump, load
from wsl.workspace.stage import STAGES, Stage, StageConfig

SHARED = (
    "torch",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "safetensors.torch",
    "wsl.training.models",
    "wsl.data.augment",
)
"""What ranks import before they are forked: torch, what its optimizers load, and what shows images. Polars
starts threads when it is imported, and DeepSpeed asks for GPUs, so each rank imports these itself."""


def main(arguments: list[str] | None = None) -> int:
    """Trains the stage that `arguments` ask for, in this process; returns the exit code."""
    remember_launcher()
    return train(parse(arguments))


def train(options: TrainOptions) -> int:
    """Trains a stage as one rank; returns the exit code, after an error its text is on standard error."""
    rank = int(os.environ.get("RANK", "0"))
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _train(options, rank)
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        # A wrong option is wrong on every rank; one of them reports it.
        if rank == 0 or not isinstance(error, (UsageError, KeyboardInterrupt)):
            where = f"rank {rank}: " if rank else ""
            text = str(error) if isinstance(error, Stopped) else f"error: {where}{explain(error)}"
            print(text, file=sys.stderr, flush=True)
        return exit_code(error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def launch(options: TrainOptions, num_accelerators: int | None) -> int:
    """Trains with one rank for each accelerator of this machine; the exit code.

    One rank trains in this process, others are started and owned by `wsl.training.launch`.
    """
    number = 1 if options.print_config else num_accelerators
    if number is None:
        import torch

        number = max(torch.cuda.device_count(), 1)
    if number == 1:
        remember_launcher()
        return train(options)
    return launch_program("wsl.train", arguments_of(options), number, shared=_shared(options))


def _shared(options: TrainOptions) -> tuple[str, ...]:
    """What the ranks of a stage have in common."""
    config = _config(options, _stage(options))
    with_torchvision = config.model.name != "narrow" or config.data.augment_layers
    return (*SHARED, "torchvision") if with_torchvision else SHARED


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _train(options: TrainOptions, rank: int) -> None:
    stage = _stage(options)
    config = _config(options, stage)
    if options.print_config:
        print(dump(config), end="")
        return
    inputs = _inputs(options, stage)
    from wsl.training.stages import run_stage
    from wsl.training.summary import print_summary

    with _stores(options):
        summary = run_stage(config, inputs, resume=_resume(options.resume), overwrite=options.overwrite)
    if rank == 0 and not summary.up_to_date:
        print_summary(config, summary)


def _stores(options: TrainOptions) -> AbstractContextManager[None]:
    """The scope of the workspace's object stores, which applies though what is read may be named."""
    if options.index is not None and options.workspace is None:
        return nullcontext()
    return Workspace.find(options.workspace).stores()


def _config(options: TrainOptions, stage: Stage) -> StageConfig:
    """The stage's settings, with those that the options change."""
    file = _config_file(options, stage)
    config = load(StageConfig, file, options.settings)
    if config.stage != options.stage:
        raise UsageError(
            f"{file} configures the stage {config.stage!r}, but --stage is {options.stage!r}; "
            f"name another config with -c, or set stage={options.stage}"
        )
    _check_used(options, config)
    return config


def _resume(text: str) -> Literal["auto", "never"] | Path:
    """What --resume names: a way to resume, or the folder of a checkpoint."""
    if text == "auto":
        return "auto"
    return "never" if text == "never" else Path(text)


def _stage(options: TrainOptions) -> Stage:
    """The stage that is named; UsageError for a name that is none."""
    for stage in STAGES:
        if stage == options.stage:
            return stage
    raise UsageError(f"--stage {options.stage}: expected one of {', '.join(STAGES)}")


def _check_used(options: TrainOptions, config: StageConfig) -> None:
    """UsageError for options that the stage would not read."""
    for name in ("pseudolabels", "predictions"):
        if getattr(options, name) is not None and config.stage != "student":
            raise UsageError(
                f"--{name} is for the stage student, and --stage is {config.stage}; leave it out"
            )
    if options.predictions is not None and config.distillation.weight == 0:
        raise UsageError(
            "--predictions: the student learns from the scores where distillation.weight is above 0; pass "
            "--set distillation.weight=0.5, or leave --predictions out"
        )


def _config_file(options: TrainOptions, stage: Stage) -> Path:
    """The stage's YAML: the one named, or the workspace's."""
    if options.config is not None:
        if not options.config.is_file():
            raise UsageError(f"--config {options.config}: there is no such file; see configs/stages")
        return Path(options.config)
    if options.index is not None:
        raise UsageError("--index needs --config FILE and --out DIR beside it (or use a workspace instead)")
    workspace = Workspace.find(options.workspace)
    file = workspace.path(workspace.stage(stage).config)
    if not file.is_file():
        raise UsageError(f"the config of stage {stage!r} is not there: {file}")
    return file


def _inputs(options: TrainOptions, stage: Stage) -> StageInputs:
    """What the stage reads: from the options alone where --index is given, else from the workspace."""
    if options.index is None:
        workspace = Workspace.find(options.workspace)
        found = workspace.stage_inputs(
            stage,
            config=options.config,
            init=options.init,
            out=options.out,
            pseudolabels=options.pseudolabels,
        )
        given = {"evaluate": options.evaluate, "predictions": options.predictions}
        return found.replace(**{name: path.resolve() for name, path in given.items() if path is not None})
    if options.config is None or options.out is None:
        raise UsageError("--index needs --config FILE and --out DIR beside it (or use a workspace instead)")
    return StageInputs(
        config=options.config.resolve(),
        index=options.index.resolve(),
        out=options.out.resolve(),
        evaluate=options.evaluate.resolve() if options.evaluate else None,
        pseudolabels=options.pseudolabels.resolve() if options.pseudolabels else None,
        init=options.init.resolve() if options.init else None,
        predictions=options.predictions.resolve() if options.predictions else None,
    )


if __name__ == "__main__":
    sys.exit(main())
