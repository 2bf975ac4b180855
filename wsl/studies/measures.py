"""What is measured of a step that is made; shares are between 0 and 1.

a run         top1, top5, macro, recall_at_10; recall_<group>, recall_at_10_<group>; loss
a selection   num_pairs, num_images; precision, share_foreign where the truth is known
both          seconds
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wsl.index.mapped import Index
from wsl.studies.data import StudyData, read_truth
from wsl.studies.spec import Group
from wsl.studies.steps import Selecting, Step, Training
from wsl.workspace.run import read_run


def measure(step: Step, data: StudyData) -> dict[str, float]:
    """The metrics of a step; one that was not measured is left out."""
    found: dict[str, float | None] = {"seconds": float(step.told()["seconds"])}
    if isinstance(step, Training):
        found |= _of_run(step, data)
    elif isinstance(step, Selecting):
        found |= _of_selection(step, data)
    return {key: float(value) for key, value in found.items() if value is not None}


def _of_run(step: Training, data: StudyData) -> dict[str, float | None]:
    info = read_run(step.folder)
    evaluation: dict[str, Any] = info.get("evaluation") or {}
    summary = info["summary"]
    found: dict[str, float | None] = {key: evaluation.get(key) for key in ("top1", "top5", "macro")}
    found |= {key: summary.get(key) for key in ("loss", "num_steps", "images_per_second")}
    recalls = evaluation.get("per_class_recall") or []
    at_ten = evaluation.get("per_class_recall_at_10") or []
    found["recall_at_10"] = mean(at_ten, range(len(at_ten)))
    for name, group in step.asked.groups.items():
        classes = classes_of(group, step, data)
        found[f"recall_{name}"] = mean(recalls, classes)
        found[f"recall_at_10_{name}"] = mean(at_ten, classes)
    return found


def classes_of(group: Group, step: Step, data: StudyData) -> list[int]:
    """The labels of a group."""
    if group.index is None:
        assert not isinstance(group.classes, str), "references are replaced before"
        return group.classes
    counts = np.asarray(Index.open(data.index(group.index, step.plan.indexes)).label_counts())
    highest = group.max_images if group.max_images is not None else int(counts.max(initial=0))
    return [int(label) for label in np.flatnonzero((counts >= group.min_images) & (counts <= highest))]


def mean(values: Sequence[float | None], classes: Iterable[int]) -> float | None:
    """The mean over those of `classes` that have a value; None where none has."""
    known = [values[label] for label in classes if label < len(values)]
    real = [value for value in known if value is not None]
    return sum(real) / len(real) if real else None


def _of_selection(step: Selecting, data: StudyData) -> dict[str, float | None]:
    table = pl.read_parquet(step.pseudolabels, columns=["sample", "key", "class"])
    found: dict[str, float | None] = {"num_pairs": len(table), "num_images": table["sample"].n_unique()}
    if step.asked.truth is None:
        return found
    truth = read_truth(Path(data.path(step.asked.truth))).rename({"class": "truth"})
    joined = table.join(truth.unique("key", keep="any"), on="key", how="left")
    known = joined.filter(pl.col("truth").is_not_null())
    found["share_foreign"] = 1 - len(known) / max(len(joined), 1)
    found["precision"] = float((known["class"] == known["truth"]).sum()) / max(len(known), 1)
    return found
