"""Small studies with made-up results."""

from __future__ import annotations

from typing import Any

import polars as pl

from wsl.studies.rows import Rows
from wsl.studies.spec import StudyConfig


def sweep(**more: Any) -> StudyConfig:
    """A sweep over K and the order, with a teacher and a baseline of two widths."""
    tree: dict[str, Any] = {
        "title": "Sweep",
        "axes": {"order": ["class-first", "image-first"], "k": [100, 1000, 4000], "width": [1, 2]},
        "selections": {"chosen": {"teacher": "teacher", "index": "u", "k": "$k", "order": "$order"}},
        "runs": {
            "teacher": {"stage": "teacher"},
            "student": {"stage": "student", "pseudolabels": "chosen"},
            "scratch": {"stage": "teacher", "set": {"model.width": "$width"}},
        },
    }
    return StudyConfig.model_validate(tree | more)


def row(step: str, seed: int | None, **values: Any) -> dict[str, Any]:
    """One row."""
    return {"step": step, "seed": seed, **values}


def sweep_rows(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """A peak at K = 1,000, image-first a point lower, the seeds half a point apart."""
    found = []
    for seed in seeds:
        drift = 0.005 * seed
        found.append(row("teacher", seed, top1=0.82 + drift, loss=0.5, seconds=30.0))
        for width in (1, 2):
            found.append(row("scratch", seed, width=width, top1=0.78 + 0.01 * width + drift, seconds=5.0))
        for lower, order in enumerate(("class-first", "image-first")):
            for number, (k, top1) in enumerate({100: 0.79, 1000: 0.83, 4000: 0.77}.items()):
                jitter = 0.001 * ((seed + number) % 3)
                axes = {"order": order, "k": k}
                found.append(row("student", seed, top1=top1 - 0.01 * lower + drift + jitter, **axes))
                found.append(row("chosen", seed, precision=0.9 - k / 1e4, num_pairs=10.0 * k, **axes))
    return found


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a frame; what a row does not have is null."""
    return pl.DataFrame(rows, infer_schema_length=None)


def rows_of(config: StudyConfig, rows: list[dict[str, Any]]) -> Rows:
    """The results of a study."""
    return Rows(frame(rows), config.axis_names)
