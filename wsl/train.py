"""The program that trains one stage; `deepspeed` starts it once for each rank.

    deepspeed wsl/train.py --stage student
    deepspeed --num_accelerators 2 wsl/train.py --stage student
    deepspeed --module wsl.train --stage student          (without a clone)
    wsl train --stage student                             (the same, started for you)

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
import contextlib
import os
import signal
import socket
import subprocess

from wsl._core import UsageError
from wsl.config import STAGES, StageConfig, load
from wsl.errors import EXIT_INTERRUPTED, exit_code, explain
from wsl.workspace import StageInputs, Workspace

GRACE_S = 35
"""Seconds that ranks get to end after a signal before they are killed."""


def main(arguments: list[str] | None = None) -> int:
    """Trains the stage that `arguments` ask for, in this process; returns the exit code."""
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
            print(f"error: {where}{explain(error)}", file=sys.stderr, flush=True)
        return exit_code(error)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def launch(arguments: list[str], num_accelerators: int | None, module: str = "wsl.train") -> int:
    """Trains with one rank for each accelerator; one rank trains in this process.

    Several ranks run under DeepSpeed's launcher on a free port. Signals reach every one of them, and
    none stays behind.
    """
    number = num_accelerators
    if number is None:
        import torch

        number = max(torch.cuda.device_count(), 1)
    if number == 1 and module == "wsl.train":
        return main(arguments)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(number)]
    command += ["--master_port", str(free_port()), "--module", module, *arguments]
    alone = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in alone}
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
        _kill(process)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the launcher and its ranks to stop, and waits for them."""
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _train(options: argparse.Namespace, rank: int) -> None:
    inputs = _inputs(options)
    config = load(StageConfig, inputs.config, options.set)
    if config.stage != options.stage:
        raise UsageError(
            f"{inputs.config} configures the stage {config.stage!r}, but --stage is {options.stage!r}; "
            f"name another config with -c, or set stage={options.stage}"
        )
    from wsl.training.stages import run_stage

    resume = options.resume if options.resume in ("auto", "never") else Path(options.resume)
    summary = run_stage(config, inputs, resume=resume, overwrite=options.overwrite)
    if rank == 0 and not summary.up_to_date:
        accuracy = ""
        if summary.evaluation:
            top1, macro = summary.evaluation["top1"], summary.evaluation["macro"]
            accuracy = f"; held out: top-1 {top1:.1%}, macro {macro:.1%}"
        skipped = f"; {summary.num_corrupt:,} corrupt images skipped" if summary.num_corrupt else ""
        print(
            f"{config.stage}: {summary.num_steps:,} steps in {summary.seconds:,.0f} s, "
            f"{summary.images_per_second:,.0f} images/s{accuracy}{skipped}; {summary.run}",
            file=sys.stderr,
        )


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
        return found if options.evaluate is None else found.replace(evaluate=options.evaluate.resolve())
    if options.config is None or options.out is None:
        raise UsageError("--index needs --config FILE and --out DIR beside it (or use a workspace instead)")
    return StageInputs(
        config=options.config.resolve(),
        index=options.index.resolve(),
        out=options.out.resolve(),
        evaluate=options.evaluate.resolve() if options.evaluate else None,
        pseudolabels=options.pseudolabels.resolve() if options.pseudolabels else None,
        init=options.init.resolve() if options.init else None,
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
    add("--init", type=Path, help="run whose weights the stage starts from")
    add("--index", type=Path, help="index to train on, without a workspace")
    add("--evaluate", type=Path, help="held-out index")
    add("--pseudolabels", type=Path, help="what 'wsl pseudolabel' wrote, for the student")
    add("--out", type=Path, help="run folder; default: runs/STAGE of the workspace")
    add("--workspace", "-w", type=Path, help="folder with the wsl.yaml; default: here")
    add("--overwrite", action="store_true", help="replace a run of other options")
    add("--debug", action="store_true", help="show the traceback of an error")
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
