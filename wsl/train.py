"""The program that trains one stage; `deepspeed` starts it once for each rank.

    deepspeed wsl/train.py --stage student
    deepspeed --num_accelerators 2 wsl/train.py --stage student
    deepspeed --module wsl.train --stage student          (without a clone)
    wsl train --stage student                             (the same, started for you)

SIGTERM or SIGINT, or the death of the launcher, ends it after a checkpoint with exit code 130, and the
same command goes on from there.

In a workspace the stage's config, indexes and run folder come from `wsl.yaml`; with --index and
--config it needs none.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # The launcher puts the folder of this file first on the path, where its modules would stand in
    # for others of the same name; the folder above holds the package.
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(entry for entry in sys.path if Path(entry).resolve() != _here)]

import argparse
import os
import signal

from wsl._core import UsageError
from wsl.errors import exit_code, explain
from wsl.training.launch import launch_program
from wsl.training.stop import Stopped, remember_launcher
from wsl.workspace.layout import StageInputs, Workspace
from wsl.workspace.settings import dump, load
from wsl.workspace.stage import STAGES, StageConfig

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
    options = _parser().parse_args(arguments)
    rank = int(os.environ.get("RANK", "0"))
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        _train(options, rank)
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            raise
        # A wrong option is wrong on every rank; one of them says so.
        if rank == 0 or not isinstance(error, (UsageError, KeyboardInterrupt)):
            where = f"rank {rank}: " if rank else ""
            text = str(error) if isinstance(error, Stopped) else f"error: {where}{explain(error)}"
            print(text, file=sys.stderr, flush=True)
        return exit_code(error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def launch(arguments: list[str], num_accelerators: int | None) -> int:
    """Trains with one rank for each accelerator of this machine; the exit code.

    One rank trains in this process, others are started and owned by `wsl.training.launch`.
    """
    if {"--print-config", "--help", "-h"} & set(arguments):
        return main(arguments)
    number = num_accelerators
    if number is None:
        import torch

        number = max(torch.cuda.device_count(), 1)
    if number == 1:
        return main(arguments)
    return launch_program("wsl.train", arguments, number, shared=_shared(arguments))


def _shared(arguments: list[str]) -> tuple[str, ...]:
    """What the ranks of a stage have in common."""
    options = _parser().parse_args(arguments)
    config = _config(options)
    with_torchvision = config.model.name != "narrow" or config.data.augment_layers
    return (*SHARED, "torchvision") if with_torchvision else SHARED


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _train(options: argparse.Namespace, rank: int) -> None:
    config = _config(options)
    if options.print_config:
        print(dump(config), end="")
        return
    inputs = _inputs(options)
    from wsl.training.stages import run_stage
    from wsl.training.summary import print_summary

    resume = options.resume if options.resume in ("auto", "never") else Path(options.resume)
    summary = run_stage(config, inputs, resume=resume, overwrite=options.overwrite)
    if rank == 0 and not summary.up_to_date:
        print_summary(config, summary)


def _config(options: argparse.Namespace) -> StageConfig:
    """The stage's settings, with those that the options change."""
    file = _config_file(options)
    config = load(StageConfig, file, options.set)
    if config.stage != options.stage:
        raise UsageError(
            f"{file} configures the stage {config.stage!r}, but --stage is {options.stage!r}; "
            f"name another config with -c, or set stage={options.stage}"
        )
    return config


def _config_file(options: argparse.Namespace) -> Path:
    """The stage's YAML: the one named, or the workspace's."""
    if options.config is not None:
        if not options.config.is_file():
            raise UsageError(f"--config {options.config}: there is no such file; see configs/stages")
        return Path(options.config)
    if options.index is not None:
        raise UsageError("--index needs --config FILE and --out DIR beside it (or use a workspace instead)")
    workspace = Workspace.find(options.workspace)
    file = workspace.path(workspace.stage(options.stage).config)
    if not file.is_file():
        raise UsageError(f"the config of stage {options.stage!r} is not there: {file}")
    return file


def _inputs(options: argparse.Namespace) -> StageInputs:
    """What the stage reads: from the options alone where --index is given, else from the workspace."""
    if options.index is None:
        workspace = Workspace.find(options.workspace)
        found = workspace.stage_inputs(
            options.stage,
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsl train", description="Train one stage under DeepSpeed.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--stage", "-s", required=True, choices=STAGES, help="what to train")
    add("--config", "-c", type=Path, help="YAML of the stage; default: the workspace's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: optimizer.lr=0.05")
    add("--resume", default="auto", help="auto, never, or a checkpoint of this run")
    add("--init", type=Path, help="run whose weights the stage starts from, or a file of weights")
    add("--index", type=Path, help="index to train on, without a workspace")
    add("--evaluate", type=Path, help="held-out index")
    add("--pseudolabels", type=Path, help="what 'wsl pseudolabel' wrote, for the student")
    add("--predictions", type=Path, help="folder of 'wsl score', for a student that learns from the scores")
    add("--out", type=Path, help="run folder; default: runs/STAGE of the workspace")
    add("--workspace", "-w", type=Path, help="folder with the wsl.yaml; default: here")
    add("--overwrite", action="store_true", help="replace a run of other options")
    add("--print-config", action="store_true", help="print the resolved config as YAML and stop")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
