"""The results of a study as a table: one row a step, with its axes, metrics, time and settings.

step          the name of the selection or run
<axis>        its value, null where the step does not depend on it; of mappings the name
seed          null where the step has its own
<metric>      see `wsl.studies.measures`; null where it was not measured
fingerprint   by which the step is known
folder        where it is, relative to the folder of all studies
config.<key>  the resolved settings
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from wsl.files.publish import publishing
from wsl.studies.plan import Place
from wsl.studies.spec import SEED, Scalar, StudyConfig

if TYPE_CHECKING:
    from wsl.studies.steps import Step

RESULTS = "results.parquet"


def results_table(
    axes: Mapping[str, Sequence[Scalar]],
    steps: Mapping[Place, Step],
    measures: Mapping[Place, Mapping[str, float]],
    root: Path,
) -> pl.DataFrame:
    """The steps that are made (those in `measures`), in the order of the plan."""
    rows: list[dict[str, Any]] = []
    for place, step in steps.items():
        if place not in measures:
            continue
        row: dict[str, Any] = {"step": place.name, **dict(place.values), **measures[place]}
        row |= {"fingerprint": step.fingerprint, "folder": str(step.folder.relative_to(root))}
        rows.append(row | {f"config.{key}": value for key, value in step.settings.items()})
    first = ["step", *axes]
    metrics = _keys(measures.values())
    settings = sorted({key for row in rows for key in row if key.startswith("config.")})
    columns = [*first, *metrics, "fingerprint", "folder", *settings]
    return pl.DataFrame([_column(column, [row.get(column) for row in rows]) for column in columns])


def write_results(table: pl.DataFrame, study: StudyConfig, folder: Path) -> Path:
    """Publishes the table in the folder of a study; its metadata name the study."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"wsl": json.dumps({"study": study.model_dump(mode="json")})}
    with publishing(folder / RESULTS) as temporary:
        table.write_parquet(temporary, metadata=about)
    return folder / RESULTS


def _keys(rows: Iterable[Mapping[str, float]]) -> list[str]:
    found: dict[str, None] = {}
    for row in rows:
        found |= dict.fromkeys(row)
    return list(found)


def _column(name: str, values: Sequence[Any]) -> pl.Series:
    """Whole numbers, numbers, truth values or text, whichever all values are; anything else as JSON."""
    real = [value for value in values if value is not None]
    kinds = {type(value) for value in real}
    if name == SEED or kinds == {int}:
        return pl.Series(name, values, dtype=pl.Int64)
    if kinds == {bool}:
        return pl.Series(name, values, dtype=pl.Boolean)
    if kinds and kinds <= {int, float}:
        return pl.Series(name, values, dtype=pl.Float64)
    texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    return pl.Series(name, texts, dtype=pl.String)
