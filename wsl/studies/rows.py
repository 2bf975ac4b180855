"""The results of a study as a frame, and the questions that figures and findings ask of it.

One row for every step that was made: `step`, a column for each axis (null where the step does not depend on
it), `seed`, metrics as floats (null where not measured), and the settings as `config.*`. Where an axis is
asked for that a step does not depend on, the step counts for every value of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from wsl._core import DataError, UsageError
from wsl.studies.spec import SEED
from wsl.studies.statistics import interval

BEST = "best"
"""As the value of an axis: the value with the best mean over seeds."""
LOWER_IS_BETTER = frozenset({"loss", "seconds", "share_foreign", "num_missing"})
Where = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """The results of a study.

    Raises DataError for a frame without the columns step and seed.
    """

    frame: pl.DataFrame
    axes: Sequence[str]
    """Every axis of the study; the seed may be among them."""

    def __post_init__(self) -> None:
        missing = [name for name in ("step", SEED) if name not in self.frame.columns]
        if missing:
            raise DataError(
                f"the results of a study: expected columns step and {SEED}, found "
                f"{', '.join(self.frame.columns) or 'none'}"
            )

    @property
    def metrics(self) -> list[str]:
        """The columns of numbers that are neither axis, seed nor setting."""
        skipped = {"step", SEED, *self.axes}
        numbers = [name for name, kind in self.frame.schema.items() if kind.is_numeric() or kind == pl.Null]
        return [name for name in numbers if name not in skipped and not name.startswith("config.")]

    def of(self, step: str, where: Where) -> pl.DataFrame:
        """The rows of a step with these values of axes; UsageError for an unknown axis."""
        rows = self.frame.filter(pl.col("step") == step)
        for axis, value in where.items():
            if axis not in self.axes and axis != SEED:
                raise UsageError(f"a study has no axis {axis!r}; it has: {', '.join(self.axes)}")
            if self.depends(rows, axis):
                rows = rows.filter(_equals(rows.schema[axis], axis, value))
        return rows

    @staticmethod
    def depends(rows: pl.DataFrame, axis: str) -> bool:
        """Whether these rows have values of an axis."""
        return axis in rows.columns and rows[axis].null_count() < len(rows)

    def by_seed(self, step: str, where: Where, metric: str) -> dict[int | None, float]:
        """The metric of a step by seed; seeds where it was not measured, or not finite, are absent.

        Raises UsageError where the step varies over an axis that `where` does not fix, or there is no
        such metric, and DataError where two rows are of the same seed and axes.
        """
        rows = self.of(step, where)
        if metric not in self.metrics:
            raise UsageError(f"the results have no metric {metric!r}; they have: {', '.join(self.metrics)}")
        if open_axes := self._open(rows, where):
            raise UsageError(
                f"{step} varies over {', '.join(open_axes)}; say under 'where' which value is meant, or "
                f"'{BEST}'"
            )
        found: dict[int | None, float] = {}
        numbers = rows.select(SEED, pl.col(metric).cast(pl.Float64))
        for seed, value in numbers.iter_rows():
            if seed in found:
                raise DataError(f"the results hold {step} twice with seed {seed}; expected one row for each")
            found[seed] = math.nan if value is None else value
        return {seed: value for seed, value in found.items() if math.isfinite(value)}

    def settle(self, step: str, where: Where, metric: str, *, further: bool = False) -> dict[str, Any]:
        """`where` with every ``best`` replaced by the values with the best mean over seeds.

        With `further`, of every other axis that the step varies over the best value is taken too. Only
        combinations with the most seeds are candidates, lest one lucky seed win; of equals the first row's.
        Where nothing was measured, the first combination is taken.
        """
        fixed = {axis: value for axis, value in where.items() if value != BEST}
        rows = self.of(step, fixed)
        asked = [axis for axis in where if axis not in fixed and self.depends(rows, axis)]
        chosen = [*asked, *(self._open(rows, where) if further else [])]
        best: tuple[int, float] | None = None
        settled = fixed
        for values in _combinations(rows, chosen):
            found = self.by_seed(step, fixed | values, metric)
            mean = interval(list(found.values()))[0]
            if mean is None:
                settled = fixed | values if settled is fixed else settled
                continue
            rank = (len(found), -mean if metric in LOWER_IS_BETTER else mean)
            if best is None or rank > best:
                best, settled = rank, fixed | values
        return settled

    def _open(self, rows: pl.DataFrame, where: Where) -> list[str]:
        """The axes that `where` does not name and over which rows vary."""
        named = {SEED, *where}
        return [
            axis for axis in self.axes if axis not in named and axis in rows and rows[axis].n_unique() > 1
        ]


def _combinations(rows: pl.DataFrame, axes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The values of axes that occur together, in the order of the rows."""
    if axes:
        for values in rows.select(axes).unique(maintain_order=True).iter_rows():
            yield dict(zip(axes, values, strict=True))


def _equals(kind: pl.DataType, axis: str, value: Any) -> pl.Expr:
    """Whether a column of an axis equals `value`: numbers by number, all else by its text."""
    if kind.is_numeric() and isinstance(value, (int, float)):
        return pl.col(axis) == float(value)
    if kind == pl.Boolean and isinstance(value, bool):
        return pl.col(axis) == value
    return pl.col(axis).cast(pl.String) == str(value)
