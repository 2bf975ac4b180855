"""The options of `train`, declared once: for `wsl train` and for the program that a launcher starts.

Each field of `TrainOptions` is an option; its annotation has how it is written and what it means. The
command line makes its options of it, `parse` reads them from arguments, and `arguments_of` writes the
arguments from which the ranks read the same options again. Nothing here loads torch.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints


@dataclass(frozen=True)
class Flag:
    """How an option is written, and what it means."""

    names: tuple[str, ...]
    """As ``--config``, ``-c``: the long one first."""
    help: str
    metavar: str | None = None


@dataclass(frozen=True)
class TrainOptions:
    """What `train` is asked for; paths that are None come from the workspace."""

    stage: Annotated[str, Flag(("--stage", "-s"), "pretrain, teacher, student or finetune.")]
    config: Annotated[
        Path | None, Flag(("--config", "-c"), "YAML of the stage; default: the workspace's.")
    ] = None
    settings: Annotated[
        list[str] | None,
        Flag(("--set",), "Change a setting, as optimizer.lr=0.05; may be given several times.", "KEY=VALUE"),
    ] = None
    resume: Annotated[str, Flag(("--resume",), "auto, never, or a checkpoint of this run.")] = "auto"
    init: Annotated[
        Path | None, Flag(("--init",), "Run whose weights the stage starts from, or a file of weights.")
    ] = None
    index: Annotated[Path | None, Flag(("--index",), "Index to train on, without a workspace.")] = None
    evaluate: Annotated[Path | None, Flag(("--evaluate",), "Held-out index.")] = None
    pseudolabels: Annotated[
        Path | None, Flag(("--pseudolabels",), "What 'wsl pseudolabel' wrote, for the student.")
    ] = None
    predictions: Annotated[
        Path | None,
        Flag(("--predictions",), "Folder of 'wsl score', for a student that learns from the scores."),
    ] = None
    out: Annotated[Path | None, Flag(("--out",), "Run folder; default: runs/STAGE of the workspace.")] = None
    workspace: Annotated[
        Path | None,
        Flag(
            ("--workspace", "-w"),
            "Folder with the wsl.yaml; default: $WSL_WORKSPACE or the current folder.",
        ),
    ] = None
    overwrite: Annotated[bool, Flag(("--overwrite",), "Replace a run of other options.")] = False
    print_config: Annotated[
        bool, Flag(("--print-config",), "Print the resolved config as YAML and stop.")
    ] = False
    debug: Annotated[bool, Flag(("--debug",), "Show the traceback of an error.")] = False


def parse(arguments: Sequence[str] | None = None) -> TrainOptions:
    """The options that arguments name, by default those of this process; wrong ones end it with code 2."""
    parser = argparse.ArgumentParser(
        prog="wsl train", description="Train one stage under DeepSpeed.", allow_abbrev=False
    )
    for field, kind, flag in _fields():
        about: dict[str, Any] = {"dest": field.name, "help": flag.help}
        if kind is bool:
            about["action"] = "store_true"
        else:
            is_list = list[str] in (kind, *get_args(kind))
            about |= {"action": "append" if is_list else "store", "metavar": flag.metavar}
            about["type"] = Path if Path in get_args(kind) else str
            about["required"] = field.default is dataclasses.MISSING
            about["default"] = None if about["required"] else field.default
        parser.add_argument(*flag.names, **about)
    # DeepSpeed's launcher adds it; the rank is read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    found = vars(parser.parse_args(arguments))
    return TrainOptions(**{field.name: found[field.name] for field, _, _ in _fields()})


def arguments_of(options: TrainOptions) -> list[str]:
    """The arguments that `parse` makes these options of."""
    arguments = []
    for field, kind, flag in _fields():
        value = getattr(options, field.name)
        if value == field.default or value is None:
            continue
        name = flag.names[0]
        if kind is bool:
            arguments.append(name)
        else:
            arguments += [f"{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return arguments


def _fields() -> list[tuple[dataclasses.Field[Any], Any, Flag]]:
    """The options, each with its type and how it is written."""
    hints = get_type_hints(TrainOptions, include_extras=True)
    annotated = [(field, get_args(hints[field.name])) for field in dataclasses.fields(TrainOptions)]
    return [(field, kind, flag) for field, (kind, flag) in annotated]
