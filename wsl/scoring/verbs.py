"""The verbs of scoring over a workspace or plain paths; nothing here parses or prints.

No torch is loaded before a network has to run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wsl._core import UsageError
from wsl.files.globs import fingerprint
from wsl.files.locking import locked
from wsl.files.publish import remove_unfinished
from wsl.files.resources import Resources
from wsl.index.mapped import Index
from wsl.selection.predictions import gaps
from wsl.selection.states import RANGE, covered_by
from wsl.selection.topk import Cut, TopK
from wsl.workspace.layout import Workspace
from wsl.workspace.run import is_complete, read_run

SCORING = "scoring into this folder"
"""What a process that has locked the folder is doing."""


@dataclass(frozen=True)
class ScoringPaths:
    """Whose scores of what go where."""

    run: Path
    index: Path
    out: Path


def scoring_paths(
    run: Path | None, index: Path | None, out: Path | None, folder: Path | None
) -> ScoringPaths:
    """Fills in what the workspace knows: the newest teacher, the unlabelled index, its predictions."""
    if run is not None and index is not None and out is not None:
        return ScoringPaths(run, index, out)
    if run is not None and index is not None:
        raise UsageError("--checkpoint and --index need --out DIR, the folder of the predictions")
    workspace = Workspace.find(folder)
    name = workspace.unlabelled()
    run = run or workspace.complete_run("teacher")
    index = index or workspace.built_index(name)
    if out is None:
        weights = run / "model.safetensors"
        if not weights.is_file():
            raise UsageError(f"{run} is not a complete run: it has no model.safetensors; train it first")
        out = workspace.predictions_path(index.name) / fingerprint(weights)[:12]
    return ScoringPaths(run, index, out)


class Executor(Protocol):
    """Where images are scored and predictions are selected from, when not in this process."""

    def score(self, job: Mapping[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
        """Scores what no file under ``job["out"]`` covers; the report of `wsl score`."""
        ...

    def score_into_state(
        self,
        job: Mapping[str, Any],
        made_by: Mapping[str, Any],
        cut: Cut,
        resources: Resources,
    ) -> tuple[TopK, str]:
        """Lets the network score all samples into one selection; and where its parts are."""
        ...

    def select(
        self,
        files: Sequence[str],
        columns: Sequence[str],
        cut: Cut,
        resources: Resources,
    ) -> TopK:
        """A selection that has taken all pairs of the files."""
        ...


@dataclass(frozen=True)
class ScoringOptions:
    """How a network scores."""

    flip: bool = True
    temperature: float = 1.0
    batch_size: int = 256
    num_accelerators: int | None = None
    """Ranks; one in this process where None or 1."""
    executor: Executor | None = None
    """What scores instead of this process."""


def score(
    paths: ScoringPaths,
    *,
    keep: int | None = None,
    options: ScoringOptions | None = None,
) -> dict[str, Any]:
    """Scores every sample of an index into files; what is there already is left as it is.

    UsageError where another process does so.
    """
    options = options or ScoringOptions()
    with locked(paths.out, SCORING):
        remove_unfinished(paths.out)
        job = job_of(paths, options) | {"out": str(paths.out), "keep": keep}
        if options.executor is not None:
            return options.executor.score(job, teacher_of(paths, options))
        return _finished(paths, keep, options) or score_on_ranks(job, options, paths.out)


def _finished(paths: ScoringPaths, keep: int | None, options: ScoringOptions) -> dict[str, Any] | None:
    """The report where every sample is scored already, without loading the network; else None."""
    made_by = teacher_of(paths, options) | {"teacher": str(paths.run.resolve()), "keep": keep}
    if keep is not None and not 1 <= keep <= made_by["num_classes"]:
        return None
    index = Index.open(paths.index)
    covered = covered_by(paths.out, made_by, index)
    if not covered or any(True for _ in gaps(covered, len(index), RANGE)):
        return None
    about = {key: value for key, value in made_by.items() if key != "class_names"}
    return {
        "state": "up to date",
        "num_scored": 0,
        "images_per_second": 0.0,
        "num_corrupt": 0,
        "out": str(paths.out),
        "num_samples": len(index),
        **about,
    }


def job_of(paths: ScoringPaths, options: ScoringOptions) -> dict[str, Any]:
    """What the ranks get: whose scores of what, and how."""
    named = {"run": str(paths.run.resolve()), "index": str(paths.index.resolve())}
    return named | {name: getattr(options, name) for name in ("flip", "temperature", "batch_size")}


def score_on_ranks(job: dict[str, Any], options: ScoringOptions, folder: Path) -> dict[str, Any]:
    """Runs the job on its ranks; the last look, in this process, finds what is done up to date."""
    from wsl.scoring import rank

    number = options.num_accelerators or 1
    if number > 1:
        from wsl.training.launch import launch_program

        with tempfile.NamedTemporaryFile("w", suffix=".json", prefix=".job-", dir=folder) as file:
            json.dump(job, file)
            file.flush()
            code = launch_program(rank.__name__, [file.name], number, shared=rank.shared(Path(job["run"])))
        if code == 130:
            raise KeyboardInterrupt
        if code:
            raise RuntimeError(
                f"scoring on {number} ranks ended with code {code}; run it again to go on where it was"
            )
    return rank.run(job, 0, 1)


def parse_keep(text: str) -> int | None:
    """The value of --keep: a number of classes, or None for all."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--keep {text}: expected a number of classes from 1, or all")
    return int(text)


def teacher_of(paths: ScoringPaths, options: ScoringOptions) -> dict[str, Any]:
    """The provenance that scoring would give, without loading the network."""
    if not is_complete(paths.run):
        raise UsageError(
            f"{paths.run} is not a complete run; train the teacher first: 'wsl train --stage teacher'"
        )
    info = read_run(paths.run)
    return {
        "teacher": str(paths.run),
        "teacher_fingerprint": fingerprint(paths.run / "model.safetensors"),
        "vocabulary_fingerprint": info.get("vocabulary_fingerprint"),
        "index_fingerprint": Index.open(paths.index).fingerprint,
        "num_classes": info["num_labels"],
        "class_names": info.get("class_names"),
        "flip": options.flip,
        "temperature": options.temperature,
    }
