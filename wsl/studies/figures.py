"""A figure of a study: which rows it draws, its chart, and the table under it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wsl._core import UsageError
from wsl.figures.charts import Band, Chart, Point, number_text
from wsl.studies.findings import axis_values, without_best
from wsl.studies.rows import BEST, Rows
from wsl.studies.spec import Figure
from wsl.studies.statistics import Estimate

SHARES = ("top1", "top5", "macro", "recall_", "precision", "share_")
"""Metrics, or their beginnings, that are shares and shown as percentages."""
NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "macro": "macro-averaged recall",
    "precision": "share of selected pairs that are right",
    "share_foreign": "share of selected pairs of no class",
    "num_pairs": "selected pairs",
    "num_images": "selected images",
    "num_missing": "images missing to K",
    "recall_at_10": "recall among the ten best",
    "num_steps": "steps",
    "images_per_second": "images a second",
}


@dataclass(frozen=True)
class Place:
    """What was measured at one place of a line."""

    line: str
    x: float | str | None
    """None for a step that does not depend on the axis."""
    estimate: Estimate
    where: dict[str, Any]
    """Its values of axes."""


@dataclass(frozen=True)
class FigureData:
    """The numbers of a figure."""

    figure: Figure
    places: list[Place]
    """The lines, place by place."""
    across: list[Place]

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of 0 to 1."""
        return is_share(self.figure.metric)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "title": self.figure.title,
            "metric": self.figure.metric,
            "x": self.figure.x,
            "rows": [
                {"line": place.line, "x": place.x, "where": place.where, **place.estimate.to_dict()}
                for place in (*self.places, *self.across)
            ],
        }


def figure_data(figure: Figure, rows: Rows) -> FigureData:
    """Collects what a figure draws; places where no seed was measured have an empty estimate.

    Raises UsageError where a step varies over an axis that the figure does not fix, or an unknown metric.
    """
    if len(set(figure.steps.values())) < len(figure.steps):
        raise UsageError(f"figure {figure.title!r}: expected a name of its own for each step")
    places = [place for step, name in figure.steps.items() for place in _line(figure, rows, step, name)]
    across = [_across(figure, rows, step, name) for step, name in figure.across.items()]
    return FigureData(figure, places, across)


def _line(figure: Figure, rows: Rows, step: str, name: str) -> list[Place]:
    where = {axis: value for axis, value in figure.where.items() if axis not in (figure.x, figure.by)}
    frame = rows.of(step, without_best(where))
    xs = axis_values(rows, figure.x, frame)
    if len(frame) and not xs:
        raise UsageError(
            f"figure {figure.title!r}: {step} does not depend on {figure.x}; name it under 'across'"
        )
    # A step that does not depend on the second axis has one line.
    groups = axis_values(rows, figure.by, frame) if figure.by else []
    found = []
    for group in groups or [None]:
        line = name if group is None else _line_name(figure, name, group)
        for x in xs:
            asked = where | {figure.x: x} | ({} if group is None else {str(figure.by): group})
            settled = rows.settle(step, asked, figure.metric)
            found.append(Place(line, x, Estimate.of(rows.by_seed(step, settled, figure.metric)), settled))
    return found


def _line_name(figure: Figure, name: str, group: Any) -> str:
    text = group if isinstance(group, str) else f"{figure.by} {number_text(group)}"
    return f"{name}, {text}" if len(figure.steps) > 1 else str(text)


def _across(figure: Figure, rows: Rows, step: str, name: str) -> Place:
    settled = rows.settle(step, figure.where, figure.metric, further=True)
    estimate = Estimate.of(rows.by_seed(step, settled, figure.metric))
    further = [axis for axis in settled if figure.where.get(axis, BEST) == BEST]
    variant = ", ".join(f"{axis} {axis_text(settled[axis])}" for axis in further)
    return Place(f"{name} ({variant})" if variant else name, None, estimate, settled)


def chart_of(data: FigureData) -> Chart:
    """What is drawn; places without a measurement are gaps."""
    figure = data.figure
    lines: dict[str, list[Point]] = {}
    for place in data.places:
        found = place.estimate
        if place.x is not None and found.mean is not None:
            x = place.x if isinstance(place.x, (int, float, str)) else str(place.x)
            x = str(x) if isinstance(x, bool) else x
            lines.setdefault(place.line, []).append(Point(x, found.mean, found.low, found.high, found.values))
    bands = [
        Band(place.line, place.estimate.mean, place.estimate.low, place.estimate.high)
        for place in data.across
        if place.estimate.mean is not None
    ]
    return Chart(
        figure.title,
        lines,
        bands,
        xlabel=figure.x_label or figure.x,
        ylabel=metric_name(figure.metric),
        percent=data.is_share,
        reference=figure.reference_points,
    )


def table_of(data: FigureData) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table under a figure: mean, interval, and every seed's value."""
    figure = data.figure
    rows = []
    for place in (*data.places, *data.across):
        found = place.estimate
        seeds = ", ".join(
            f"{'all' if seed is None else seed}: {value_text(figure.metric, value)}"
            for seed, value in zip(found.seeds, found.values, strict=True)
        )
        x = "any" if place.x is None else axis_text(place.x)
        rows.append([place.line, x, *estimate_cells(figure.metric, found), seeds or "not measured"])
    return ["line", figure.x, "mean", "95 % interval", "by seed"], rows


def estimate_cells(metric: str, estimate: Estimate) -> list[str]:
    """The mean and the interval as they are shown."""
    mean = "-" if estimate.mean is None else value_text(metric, estimate.mean)
    return [mean, interval_text(metric, estimate.low, estimate.high)]


def interval_text(metric: str, low: float | None, high: float | None) -> str:
    """``81.5 to 83.6 %``; a dash where there is none."""
    if low is None or high is None:
        return "-"
    if is_share(metric):
        return f"{100 * low:.2f}\u00a0to\u00a0{100 * high:.2f}\u00a0%"
    return f"{value_text(metric, low)} to {value_text(metric, high)}"


def value_text(metric: str, value: float) -> str:
    """A value of a metric as it is shown: shares as percentages."""
    if is_share(metric):
        return f"{100 * value:.2f}\u00a0%"
    if metric == "seconds":
        return f"{value:,.1f}"
    is_count = metric.startswith("num_") or metric == "images_per_second"
    return f"{value:,.0f}" if is_count or abs(value) >= 1000 else number_text(value)


def difference_text(metric: str, value: float) -> str:
    """A difference as it is shown: of shares in points of a hundred, with its sign."""
    if is_share(metric):
        return f"{100 * value:+.2f}"
    return f"{value:+,.4g}"


def metric_name(metric: str) -> str:
    """A metric in words."""
    if metric in NAMES:
        return NAMES[metric]
    if metric.startswith("recall_at_10_"):
        return f"recall among the ten best, {metric.removeprefix('recall_at_10_')}"
    if metric.startswith("recall_"):
        return f"recall, {metric.removeprefix('recall_')}"
    return metric


def is_share(metric: str) -> bool:
    """Whether a metric is a share of 0 to 1."""
    return metric.startswith(SHARES)


def where_text(where: dict[str, Any], leave_out: Sequence[str] = ()) -> str:
    """Values of axes in words: ``k 2,000, order class-first``."""
    return ", ".join(f"{axis} {axis_text(value)}" for axis, value in where.items() if axis not in leave_out)


def axis_text(value: Any) -> str:
    """A value of an axis as it is shown."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number_text(value) if is_number else str(value)
