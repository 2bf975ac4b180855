"""Making one step of a study: training a run, or selecting pseudo-labels from one pass of scores."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from wsl.files.publish import publish_text, publishing
from wsl.scoring import pseudolabels
from wsl.scoring.request import SelectionRequest
from wsl.scoring.verbs import ScoringOptions, ScoringPaths, score
from wsl.studies.steps import DONE, Scoring, Selecting, Step, Training
from wsl.training.stages import run_stage


def make(step: Step) -> None:
    """Makes a step whose inputs are made; what was begun resumes where it was."""
    begun = time.monotonic()
    step.folder.mkdir(parents=True, exist_ok=True)
    if isinstance(step, Training):
        # The study shows its own progress, and one of the two is enough.
        run_stage(step.config, step.inputs, console=Console(file=io.StringIO()))
    elif isinstance(step, Selecting):
        _select(step)
    told = {"name": step.plan.place.name, "fingerprint": step.fingerprint, "settings": step.settings}
    seconds = time.monotonic() - begun
    publish_text(step.folder / DONE, json.dumps(told | {"seconds": seconds}, indent=1) + "\n")


def _select(step: Selecting) -> None:
    scoring = step.scoring
    scoring.folder.mkdir(parents=True, exist_ok=True)
    if scoring.whole:
        paths = ScoringPaths(scoring.teacher, scoring.index, scoring.folder)
        score(paths, options=ScoringOptions(flip=scoring.flip))
    else:
        # The state of the largest K is enough for every smaller one, so it has to be the first.
        largest = scoring.folder / f"largest-{scoring.largest_k}.parquet"
        _request(scoring, largest, k=scoring.largest_k, p=1)
    _request(scoring, step.pseudolabels, k=step.k, p=step.p, order=step.asked.order, overwrite=True)
    if step.limit is not None:
        keep_best(step.pseudolabels, step.limit)


def _request(scoring: Scoring, out: Path, **options: Any) -> None:
    pseudolabels.select(
        SelectionRequest(
            checkpoint=scoring.teacher,
            index=scoring.index,
            out=out,
            scores=scoring.folder,
            scoring=ScoringOptions(flip=scoring.flip),
            **options,
        )
    )


def keep_best(file: Path, limit: int) -> None:
    """Leaves the `limit` best pairs of all classes together in the selection.

    Ties go to the smaller sample, then to the smaller class, as in the selection itself.
    """
    about = json.loads(pl.read_parquet_metadata(file)["wsl"]) | {"limit": limit}
    table = pl.read_parquet(file)
    best = table.sort("score", "sample", "class", descending=[True, False, False]).head(limit)
    counts = dict(best.group_by("class").len().iter_rows())
    about["report"] |= {"num_pairs": len(best), "num_images": best["sample"].n_unique()}
    for number, row in enumerate(about["report"]["classes"]):
        row["after"] = counts.get(number, 0)
    with publishing(file) as temporary:
        best.sort("sample", "class").write_parquet(temporary, metadata={"wsl": json.dumps(about)})
