"""Charts of means with their intervals: lines over numbers, bars or points over names.

Every line has a colour, a dash and a marker of its own, every bar a colour and a hatch, so that a print
without colour still distinguishes them. Whiskers are the intervals, small open rings the single values:
nothing is hidden behind a mean. What comes from elsewhere is drawn in a panel of its own with its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsl.figures import plots
from wsl.figures.plots import DASHES, GREY, PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P")
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++")
INK = "#1d2733"
GEOMETRIC = 10.0
"""Positive x that span more than this factor are drawn on a logarithmic axis."""
MAX_TICKS = 9
READABLE = 0.6
"""Bars are drawn where the lowest value is below this share of the highest; above it they all look alike."""


@dataclass(frozen=True)
class Point:
    """The values at one place, their mean, and the ends of its interval where it has one."""

    x: float | str
    mean: float
    low: float | None = None
    high: float | None = None
    values: Sequence[float] = ()


@dataclass(frozen=True)
class Band:
    """A value that does not depend on x."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Chart:
    """What is drawn."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    bands: Sequence[Band] = ()
    xlabel: str = ""
    ylabel: str = ""
    percent: bool = False
    """Whether the values are shares, shown as percentages."""
    reference: Sequence[tuple[float | str, float]] = field(default_factory=tuple)
    """Values from elsewhere by their own x: a panel beside."""


def chart(chart: Chart) -> str:
    """The chart as SVG for a page."""
    if not any(chart.lines.values()):
        return plots.nothing("nothing was measured")
    with plots.style():
        figure = _draw(chart)
    return plots.svg(figure, chart.title)


def save_chart(path: Path, chart: Chart) -> None:
    """The same as a file; its suffix is the kind (.svg, .png, .pdf). ValueError for another."""
    plots.save(path, lambda: _draw(chart))


def begins_at_zero(chart: Chart) -> bool:
    """Whether the values' axis begins at 0; where it does not, the chart has to state it."""
    return not _is_numeric(chart) and _lowest(chart) < READABLE * _highest(chart)


def _draw(chart: Chart) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7.6, _height(chart)), layout="constrained")

    # Results from elsewhere have a panel and a scale of their own.
    if chart.reference:
        axes, beside = figure.subplots(1, 2, width_ratios=(5, 3))
        _reference(beside, chart)
    else:
        axes = figure.subplots()
    axes.set_axisbelow(True)
    draw = _lines if _is_numeric(chart) else _bars
    draw(axes, chart)
    for number, band in enumerate(chart.bands):
        _band(axes, band, number)
    axes.set_xlabel(plots.plain(chart.xlabel))
    axes.set_ylabel(plots.plain(chart.ylabel))
    if chart.percent:
        axes.yaxis.set_major_formatter(_percent())

    # One line needs no legend; with long names fewer fit side by side.
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        widest = max(map(len, labels))
        columns = max(1, min(len(labels), 84 // (widest + 8)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=9)
    return figure


def _height(chart: Chart) -> float:
    return 3.9 + 0.16 * max(0, len(chart.lines) + len(chart.bands) - 4)


def _is_numeric(chart: Chart) -> bool:
    return all(isinstance(point.x, (int, float)) for points in chart.lines.values() for point in points)


def _all_values(chart: Chart) -> list[float]:
    points = [point for points in chart.lines.values() for point in points]
    drawn: list[Point | Band] = [*points, *chart.bands]
    ends = [end for one in drawn for end in (one.mean, one.low, one.high) if end is not None]
    return ends + [value for point in points for value in point.values]


def _lowest(chart: Chart) -> float:
    return min(_all_values(chart), default=0.0)


def _highest(chart: Chart) -> float:
    return max(_all_values(chart), default=0.0)


def _lines(axes: Axes, chart: Chart) -> None:
    places = sorted({float(point.x) for points in chart.lines.values() for point in points})
    logarithmic = _numbers(axes, places, room=44 if chart.reference else 70)
    span = places[-1] - places[0] or 1.0
    for number, (name, points) in enumerate(chart.lines.items()):
        # Lines side by side by a hair, or their whiskers hide each other.
        aside = (number - (len(chart.lines) - 1) / 2) * 0.008
        shift = _shift(aside, span, places, logarithmic)
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        ordered = sorted(points, key=lambda point: float(point.x))
        xs = [shift(float(point.x)) for point in ordered]
        means = [point.mean for point in ordered]
        dash = DASHES[number % len(DASHES)]
        axes.plot(
            xs, means, color=colour, linestyle=dash, marker=marker, markersize=5, label=plots.plain(name)
        )
        _whiskers(axes, xs, ordered, colour)


def _shift(aside: float, span: float, places: Sequence[float], logarithmic: bool) -> Callable[[float], float]:
    if logarithmic:
        factor = (places[-1] / places[0]) ** aside
        return lambda x: x * factor
    return lambda x: x + aside * span


def _whiskers(axes: Axes, xs: Sequence[float], points: Sequence[Point], colour: str) -> None:
    for x, point in zip(xs, points, strict=True):
        if point.low is not None and point.high is not None:
            ends = [[point.mean - point.low], [point.high - point.mean]]
            axes.errorbar([x], [point.mean], yerr=ends, fmt="none", ecolor=colour, elinewidth=1.3, capsize=4)
        seeds = [x] * len(point.values)
        axes.plot(seeds, point.values, "o", mfc="none", mec=colour, mew=0.8, markersize=3.6, alpha=0.75)


def _numbers(axes: Axes, places: Sequence[float], room: int) -> bool:
    """Sets up an axis of numbers with the places themselves as ticks; True where it is logarithmic.

    `room` is how many letters fit along the axis.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    logarithmic = places[0] > 0 and places[-1] / places[0] > GEOMETRIC
    if logarithmic:
        axes.set_xscale("log")
    if len(places) <= MAX_TICKS:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        if _are_crowded(places, logarithmic, room):
            axes.tick_params(axis="x", labelrotation=40)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: number_text(x)))
    return logarithmic


def _are_crowded(places: Sequence[float], logarithmic: bool, room: int) -> bool:
    """Whether ticks at these places would run into each other."""
    along = [math.log(place) for place in places] if logarithmic else list(places)
    span = along[-1] - along[0] or 1.0
    for number in range(1, len(places)):
        letters = (len(number_text(places[number - 1])) + len(number_text(places[number]))) / 2 + 1
        if (along[number] - along[number - 1]) / span * room < letters:
            return True
    return False


def number_text(number: float) -> str:
    """A number as short as it can be read: 8,000 or 0.25."""
    if math.isfinite(number) and number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.4g}"


def _bars(axes: Axes, chart: Chart) -> None:
    """A group for each name, in it a bar for each line; points instead where bars would all be as long."""
    names = list(dict.fromkeys(str(point.x) for points in chart.lines.values() for point in points))
    from_zero = begins_at_zero(chart)
    width = 0.8 / max(len(chart.lines), 1)
    for number, (name, points) in enumerate(chart.lines.items()):
        colour = PALETTE[number % len(PALETTE)]
        offset = (number - (len(chart.lines) - 1) / 2) * width
        xs = [names.index(str(point.x)) + offset for point in points]
        means = [point.mean for point in points]
        label = plots.plain(name)

        # The length of a bar is its value only where the axis begins at 0.
        if from_zero:
            style: dict[str, Any] = {"hatch": HATCHES[number % len(HATCHES)], "edgecolor": "white"}
            axes.bar(xs, means, width=0.92 * width, color=colour, linewidth=0, label=label, **style)
            _whiskers(axes, xs, points, INK)
        else:
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(xs, means, marker, color=colour, markersize=7, label=label)
            _whiskers(axes, xs, points, colour)

    # Long names side by side would overlap.
    longest = max(map(len, names), default=0)
    slanted = longest * len(names) > 64
    labels = [plots.plain(name) for name in names]
    axes.set_xticks(
        range(len(names)), labels, rotation=30 if slanted else 0, ha="right" if slanted else "center"
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)
    if from_zero:
        axes.set_ylim(bottom=min(0.0, _lowest(chart)))


def _band(axes: Axes, band: Band, number: int) -> None:
    colour = (GREY, "#7a5195", "#8c6d1f")[number % 3]
    dash = DASHES[(number + 1) % len(DASHES)]
    axes.axhline(
        band.mean, color=colour, linestyle=dash, linewidth=1.5, zorder=1.5, label=plots.plain(band.name)
    )
    if band.low is not None and band.high is not None:
        axes.axhspan(band.low, band.high, color=colour, alpha=0.13, linewidth=0, zorder=0.6)


def _reference(axes: Axes, chart: Chart) -> None:
    axes.set_axisbelow(True)
    axes.set_title("published, its own scale", loc="left", fontsize=9, color=GREY)
    values = [value for _, value in chart.reference]
    if all(isinstance(x, (int, float)) for x, _ in chart.reference):
        points = sorted((float(x), value) for x, value in chart.reference)
        _numbers(axes, [x for x, _ in points], room=22)
        xs, ys = [x for x, _ in points], [value for _, value in points]
        axes.plot(xs, ys, color=INK, marker="s", markersize=5, linestyle=(0, (2, 2)), linewidth=1.2)
    else:
        places = range(len(values))
        axes.plot(places, values, "s", color=INK, markersize=6)
        axes.set_xticks(places, [plots.plain(str(x)) for x, _ in chart.reference], rotation=30, ha="right")
        axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_xlabel(plots.plain(chart.xlabel))
    if chart.percent:
        axes.yaxis.set_major_formatter(_percent())


def _percent() -> Any:
    """Percentages with as many decimals as the ticks need to differ."""
    from matplotlib.ticker import Formatter

    class Percent(Formatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return self.format_ticks([x])[0]

        def format_ticks(self, values: Any) -> list[str]:
            shares = [100 * float(value) for value in values]
            decimals = next((d for d in range(3) if all(abs(s - round(s, d)) < 1e-6 for s in shares)), 3)
            return [f"{share:.{decimals}f} %" for share in shares]

    return Percent()
