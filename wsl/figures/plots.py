"""The plots of reports, as inline SVG: Matplotlib draws, nothing is fetched by a browser.

Every figure has a white card of its own, so that it reads in light and dark pages, and colours that
colour-blind people can distinguish (Okabe and Ito 2008). Plain numbers in, text out.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsl.files.publish import publishing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#5f6b7a"
PALETTE = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), "-.")
MAX_BARS = 40
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#c5ccd6",
    "axes.labelcolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e8ecf1",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "svg.fonttype": "path",
    # The same figures are the same bytes.
    "svg.hashsalt": "wsl",
    "legend.frameon": False,
}


def zipf(
    multiplicities: Mapping[int, int], *, alpha: float, x_min: int, loglog_slope: float, title: str = ""
) -> str:
    """Counts by rank on logarithmic axes, the fitted power law over its tail, the least-squares line.

    `multiplicities` is how many hashtags have each count. The law p(x) ~ x^-alpha from x_min on makes
    the count of rank r fall as r^(-1/(alpha-1)); its line ends where the counts fall to x_min.
    """
    if not multiplicities:
        return nothing("there are no hashtags")
    return svg(_zipf_figure(multiplicities, alpha, x_min, loglog_slope, title), "Hashtags by rank")


def save_zipf(
    path: Path,
    multiplicities: Mapping[int, int],
    *,
    alpha: float,
    x_min: int,
    loglog_slope: float,
    title: str = "",
) -> None:
    """The same as a file; its suffix is the kind (.svg, .png, .pdf). ValueError for another."""
    save(path, lambda: _zipf_figure(multiplicities, alpha, x_min, loglog_slope, title))


def save(path: Path, draw: Callable[[], Figure]) -> None:
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise ValueError(f"{path}: expected a name that ends in .svg, .png or .pdf")
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with style(), publishing(path) as temporary:
        draw().savefig(temporary, format=path.suffix[1:], dpi=160, facecolor="white", metadata=undated)


def _zipf_figure(
    multiplicities: Mapping[int, int], alpha: float, x_min: int, slope: float, title: str
) -> Figure:
    figure, axes = new_figure(7.2, 4.4)
    values = np.array(sorted(multiplicities, reverse=True), dtype=np.float64)
    numbers = np.array([multiplicities[int(value)] for value in values])
    last = np.cumsum(numbers)
    # Tags of one count are a level stretch of ranks: its two ends are enough to draw it.
    ranks = np.stack([last - numbers + 1, last], axis=1).ravel()
    axes.loglog(ranks, np.repeat(values, 2), ".-", color=BLUE, markersize=4, linewidth=0.6, label="hashtags")

    # The law is about the tail alone, so it begins at the height of the tail and is drawn no further.
    num_tail = int(numbers[values >= x_min].sum())
    if num_tail:
        tail = ranks[ranks <= num_tail]
        law = x_min * (tail / num_tail) ** (-1.0 / (alpha - 1.0))
        name = f"power law, alpha {alpha:.2f}: rank$^{{-{1 / (alpha - 1):.2f}}}$ for counts from {x_min:,}"
        axes.loglog(tail, law, color=RED, linewidth=1.6, label=name)
    num_tags = int(last[-1])
    if num_tags > 1:
        # Means over all tags; the sum of log r is the logarithm of a factorial.
        mean_rank = math.lgamma(num_tags + 1) / num_tags
        offset = float((np.log(values) * numbers).sum()) / num_tags - slope * mean_rank
        label = f"least squares over all, slope {slope:.2f}"
        line = np.exp(offset + slope * np.log(ranks))
        axes.loglog(ranks, line, "--", color=GREY, linewidth=1, label=label)
    axes.set_ylim(bottom=0.7)
    axes.set_xlabel("rank")
    axes.set_ylabel("records with the hashtag")
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    if title:
        axes.set_title(title, loc="left", color="#1d2733")
    return figure


def save_balance(path: Path, before: Sequence[float], after: Sequence[float], *, title: str = "") -> None:
    """How often each label is seen, before and after resampling, by its rank before, as a file."""
    save(path, lambda: _balance_figure(before, after, title))


def _balance_figure(before: Sequence[float], after: Sequence[float], title: str) -> Figure:
    figure, axes = new_figure(7.2, 4.4)
    first = np.asarray(before, dtype=np.float64)
    order = np.argsort(-first, kind="stable")
    ranks = np.arange(1, len(first) + 1)
    # Thousands of points at most, evenly over the logarithm of the rank.
    shown = np.unique(np.geomspace(1, len(first), 4000).astype(int)) - 1
    for values, colour, name in ((first, BLUE, "once each"), (np.asarray(after), RED, "resampled")):
        axes.loglog(ranks[shown], values[order][shown], ".", color=colour, markersize=4, label=name)
    axes.set_xlabel("label, by its rank before")
    axes.set_ylabel("times seen in an epoch")
    axes.legend(loc="lower left", fontsize=9, frameon=False)
    if title:
        axes.set_title(title, loc="left", color="#1d2733")
    return figure


def selection_balance(names: Sequence[str], before: Sequence[int], after: Sequence[int]) -> str:
    """Images of every class before and after the P cut, one bar each; at most 40 classes are drawn."""
    if not len(names):
        return nothing("nothing was selected")
    shown = min(len(names), MAX_BARS)
    figure, axes = new_figure(7.2, 0.9 + 0.3 * shown)
    places = np.arange(shown)
    axes.barh(places, before[:shown], color="#c9dcea", height=0.72, label="before the P cut")
    axes.barh(places, after[:shown], color=BLUE, height=0.42, label="after")
    axes.set_yticks(places, [plain(name) for name in names[:shown]])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    more = f" (first {shown} of {len(names):,} classes)" if len(names) > shown else ""
    axes.set_xlabel(f"images{more}")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 1 + 0.55 / (0.9 + 0.3 * shown)),
        ncols=2,
        fontsize=9,
        frameon=False,
    )
    return svg(figure, "Selected images by class")


def selection(classes: Sequence[Mapping[str, Any]], images: Mapping[str, int]) -> str:
    """What `save_selection` writes, for a page."""
    with style():
        figure = _selection_figure(classes, images)
    return svg(figure, "Selection by class")


def save_selection(path: Path, classes: Sequence[Mapping[str, Any]], images: Mapping[str, int]) -> None:
    """A selection as a file: images of each class, score at its cut, images by their number of classes.

    `classes` are the rows of the selection's report, `images` says how many images serve how many
    classes. ValueError for a name of another kind of file.
    """
    save(path, lambda: _selection_figure(classes, images))


def _selection_figure(classes: Sequence[Mapping[str, Any]], images: Mapping[str, int]) -> Figure:
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(8.4, 8.4), layout="constrained")
    counts, cuts, served = figure.subplots(3, 1)
    order = sorted(range(len(classes)), key=lambda number: -classes[number]["after"])
    places = np.arange(1, len(classes) + 1)
    for key, color, label in (("before", ORANGE, "taken"), ("after", BLUE, "after the P cut")):
        values = [classes[number][key] for number in order]
        counts.step(places, values, where="mid", color=color, label=label)
    counts.axhline(classes[0]["wanted"], color=GREY, linestyle="--", linewidth=1, label="K")
    counts.set_ylabel("images")
    counts.set_ylim(bottom=0)
    counts.legend(loc="lower left", fontsize=9)
    probability = [classes[number]["lowest_probability"] for number in order]
    shown = [np.nan if value is None else value for value in probability]
    cuts.plot(places, shown, ".", color=RED, markersize=4)
    cuts.set_ylabel("probability at the cut")
    cuts.set_xlabel("classes, the largest first")
    numbers = [int(number) for number in images]
    served.bar(numbers, list(images.values()), color=GREEN)
    served.set_xlabel("classes that an image serves")
    served.set_ylabel("images")
    for axes in (counts, cuts, served):
        axes.set_axisbelow(True)
    return figure


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], *, ylabel: str, title: str = "") -> str:
    """Lines of (step, value), one for each run, as they were measured: nothing is smoothed."""
    drawn = {name: points for name, points in lines.items() if len(points)}
    if not drawn:
        return nothing("there are no measurements")
    figure, axes = new_figure(7.2, 3.8)
    for number, (name, points) in enumerate(drawn.items()):
        steps, values = zip(*points, strict=True)
        colour, dash = PALETTE[number % len(PALETTE)], DASHES[number % len(DASHES)]
        axes.plot(steps, values, color=colour, linestyle=dash, linewidth=1.6, label=plain(name))
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=9, frameon=False)
    if title:
        axes.set_title(title, loc="left", color="#1d2733")
    return svg(figure, title or ylabel)


def accuracies(bars: Sequence[tuple[str, float, float | None]]) -> str:
    """One bar for each (label, value from 0 to 1, seconds), with the value beside it."""
    if not bars:
        return nothing("nothing was measured")
    figure, axes = new_figure(7.6, 0.7 + 0.42 * len(bars))
    places = np.arange(len(bars))
    colours = _by_group([label.split(":", 1)[0] for label, _, _ in bars])
    axes.barh(places, [value for _, value, _ in bars], color=colours, height=0.62)
    for place, (_, value, _) in enumerate(bars):
        axes.text(value + 0.01, place, f"{value:.1%}", va="center", color="#1d2733", fontsize=10)
    axes.set_yticks(places, [plain(label) for label, _, _ in bars])
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return svg(figure, "Accuracy")


def confusion(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> str:
    """Shares of each true class (row) by predicted class (column), with the numbers in the cells."""
    if not len(names):
        return nothing("there are no classes")
    counts = np.asarray(matrix, dtype=np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.8 + 0.44 * len(names)
    figure, axes = new_figure(side + 0.8, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]

        # Smaller shares would read as 0.
        if share >= 0.005:
            colour = "white" if share > 0.55 else "#1d2733"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    labels = [plain(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.grid(visible=False)
    axes.set_xlabel("predicted, % of the true class")
    return svg(figure, "Confusion of classes")


def _by_group(groups: list[str]) -> list[str]:
    order = list(dict.fromkeys(groups))
    return [PALETTE[order.index(group) % len(PALETTE)] for group in groups]


def plain(text: str) -> str:
    """A label as it is written: Matplotlib reads dollars as formulas."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short.replace("$", r"\$")


def style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(STYLE)  # type: ignore[arg-type]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_axisbelow(True)
        return figure, axes


def svg(figure: Figure, title: str) -> str:
    """The figure as an element of a page: no prolog, no metadata, identifiers of its own."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    mark = "g" + hashlib.sha256(text.encode()).hexdigest()[:10]
    text = re.sub(r'\bid="', f'id="{mark}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}-", text)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    end = text.index(">") + 1
    width = round(figure.get_figwidth() * 100)
    head = text[: end - 1] + f' role="img" style="max-width:{width}px">'
    return f"{head}<title>{escape(title)}</title>{text[end:]}"


def nothing(why: str) -> str:
    return f'<p class="nothing">Nothing to draw: {why}.</p>'
