"""A study as a page: what was claimed and what became of it, figures, every row, and what it does not show.

`write_study` leaves in a folder what a reader needs: `results.parquet` (with the study in its metadata, so
that the folder explains itself), `findings.json`, `figures/*.svg` and `*.png`, and `report.html`.
`read_study` opens such a folder again.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ValidationError

from wsl._core import DataError, WslError, __version__
from wsl.figures import page
from wsl.figures.charts import begins_at_zero, chart, number_text, save_chart
from wsl.figures.page import Badge, HeadingBlock, Lines, Page, Section, SvgBlock, TableBlock, TextBlock
from wsl.files.publish import publish_text
from wsl.studies import figures
from wsl.studies.figures import FigureData, figure_data
from wsl.studies.findings import FindingResult, PeakResult, SideResult, Verdict, judge_all
from wsl.studies.results import RESULTS, write_results
from wsl.studies.rows import Rows
from wsl.studies.spec import SEED, Figure, StudyConfig
from wsl.studies.statistics import Estimate

FINDINGS = "findings.json"
REPORT = "report.html"
FIGURES = "figures"
KINDS: dict[Verdict, Any] = {"shown": "good", "met, but within the noise": "open", "not shown": "bad"}
VERSIONS = ("torch", "deepspeed", "polars")
RULES = (
    "A difference is taken within every seed that has both sides, then averaged; the interval is Student's t "
    "at 95 %. Differences of shares are in points of a hundred. "
    '"Shown" means that the claim\'s bound holds for the mean and the interval leaves out a difference of '
    "nothing (or, where the claim allows a loss, keeps to that loss); "
    '"met, but within the noise" that only the mean holds. Each claim is tested by itself: of twenty that '
    "are not true, one may be shown by chance."
)


@dataclass(frozen=True)
class Study:
    """A study and its results."""

    config: StudyConfig
    rows: Rows

    @classmethod
    def of(cls, config: StudyConfig, results: pl.DataFrame) -> Study:
        """The study with the frame of its results; DataError for a frame without step and seed."""
        return cls(config, Rows(results, config.axis_names))


def write_study(
    folder: Path, config: StudyConfig, results: pl.DataFrame, *, facts: Sequence[tuple[str, str]] = ()
) -> None:
    """Writes the results and all that is seen of them, each file whole or not at all, the page last."""
    study = Study.of(config, results)
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    write_results(results, config, folder)
    drawn = [(figure, _figure(figure, study.rows)) for figure in config.figures]
    for number, (figure, data) in enumerate(drawn, start=1):
        if isinstance(data, FigureData):
            for suffix in ("svg", "png"):
                save_chart(folder / FIGURES / f"{file_name(number, figure)}.{suffix}", figures.chart_of(data))
    publish_text(folder / FINDINGS, json.dumps(findings_of(study), indent=2, ensure_ascii=False) + "\n")
    page.write(folder / REPORT, study_page(config, results, facts=facts))


def read_study(folder: Path) -> Study:
    """Opens what `write_study` wrote; DataError for results of anything else."""
    file = folder / RESULTS
    try:
        about = pl.read_parquet_metadata(file).get("wsl")
        results = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(
            f"{file}: expected the results of a study as Parquet, found: {error}; run the study again"
        ) from None
    if about is None:
        raise DataError(f"{file}: the file does not say of which study it is; run the study again")
    try:
        config = StudyConfig.model_validate(json.loads(about)["study"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{file}: its study cannot be read: {error}; run the study again") from None
    return Study.of(config, results)


def file_name(number: int, figure: Figure) -> str:
    """The name of a figure's files: its number and title."""
    words = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")
    return f"{number:02}-{words[:60].rstrip('-')}".rstrip("-")


def findings_of(study: Study) -> dict[str, Any]:
    """Findings, peaks and the numbers of the figures, for JSON."""
    findings, peaks = judge_all(study.config, study.rows)
    drawn = [_figure(figure, study.rows) for figure in study.config.figures]
    return {
        "title": study.config.title,
        "seeds": study.config.seeds,
        "findings": [finding.to_dict() for finding in findings],
        "peaks": [peak.to_dict() for peak in peaks],
        "figures": [data.to_dict() for data in drawn if isinstance(data, FigureData)],
    }


def study_page(config: StudyConfig, results: pl.DataFrame, *, facts: Sequence[tuple[str, str]] = ()) -> Page:
    """The report of a study; `facts` come after those of the results."""
    study = Study.of(config, results)
    sections = [findings_section(study), *figure_sections(study), rows_section(study), limits_section(study)]
    return Page(
        title=config.title,
        subtitle=config.about.strip(),
        facts=[*study_facts(study), *facts, *_versions()],
        sections=[section for section in sections if section is not None],
    )


def study_facts(study: Study) -> list[tuple[str, str]]:
    """Seeds, runs and time, as the results have them."""
    frame, config = study.rows.frame, study.config
    runs = frame.filter(pl.col("step").is_in(list(config.runs)))
    found = [
        ("seeds", ", ".join(map(str, config.seeds))),
        ("runs", f"{len(runs):,}"),
        ("selections", f"{len(frame.filter(pl.col('step').is_in(list(config.selections)))):,}"),
    ]
    if "seconds" in frame.columns and frame["seconds"].null_count() < len(frame):
        found.append(("time of all steps", _time(float(frame["seconds"].sum()))))
    return found


def findings_section(study: Study) -> Section | None:
    """Verdicts; None for a study that claims nothing."""
    findings, peaks = judge_all(study.config, study.rows)
    if not findings and not peaks:
        return None
    rows = [*map(_finding_row, findings), *map(_peak_row, peaks)]
    columns = ["verdict", "claim", "difference", "95 % interval", "by seed"]
    return Section("Findings", "", [TableBlock(columns, rows, RULES, stack=True)])


def figure_sections(study: Study, prefix: str = "") -> list[Section]:
    """A section for each figure."""
    return [
        Section(f"{prefix}{figure.title}", figure.text.strip(), figure_blocks(figure, study.rows))
        for figure in study.config.figures
    ]


def figure_blocks(figure: Figure, rows: Rows) -> list[page.Block]:
    """Chart, what it shows, the table of its numbers, and the published figure."""
    data = _figure(figure, rows)
    if isinstance(data, str):
        return [TextBlock(f"This figure cannot be drawn: {data}")]
    drawn = figures.chart_of(data)
    words = "Means over seeds; whiskers are 95 % intervals (Student's t), rings single seeds."
    if drawn.bands:
        words += " Level lines do not depend on the axis; their bands are the intervals."
    if not begins_at_zero(drawn):
        words += " The values' axis does not begin at 0."
    chosen = sorted({axis for place in data.across for axis in place.where if axis not in figure.where})
    if chosen:
        words += f" Of several values of {', '.join(chosen)} the best mean is drawn, which flatters it."
    columns, table = figures.table_of(data)
    blocks: list[page.Block] = [SvgBlock(chart(drawn), words), TableBlock(columns, table, stack=True)]
    return blocks + _reference_blocks(figure)


def _reference_blocks(figure: Figure) -> list[page.Block]:
    """What was published, beside: never the same experiment."""
    if not figure.reference and not figure.reference_points:
        return []
    blocks: list[page.Block] = [HeadingBlock("Published")]
    if figure.reference:
        blocks.append(TextBlock(figure.reference.strip()))
    if figure.reference_points:
        rows = [
            [x if isinstance(x, str) else number_text(x), figures.value_text(figure.metric, value)]
            for x, value in figure.reference_points
        ]
        columns = [figure.x, figures.metric_name(figure.metric)]
        words = "Other data, other sizes: to be compared by shape, not by value."
        blocks.append(TableBlock(columns, rows, words))
    return blocks


def rows_section(study: Study) -> Section:
    """Every row of the results, a table for each step."""
    frame = study.rows.frame
    blocks: list[page.Block] = []
    known = [*study.config.selections, *study.config.runs]
    others = [step for step in frame["step"].unique(maintain_order=True) if step not in known]
    for step in [*known, *others]:
        rows = frame.filter(pl.col("step") == step)
        blocks.append(HeadingBlock(step))
        blocks.append(_step_table(study.rows, rows) if len(rows) else TextBlock("Not made."))
    text = f"All {len(frame):,} rows, no seed left out. The settings of each stand beside them in {RESULTS}."
    return Section("Every step", text, blocks)


def _step_table(rows: Rows, frame: pl.DataFrame) -> TableBlock:
    axes = [axis for axis in rows.axes if axis != SEED and rows.depends(frame, axis)]
    metrics = [metric for metric in rows.metrics if frame[metric].null_count() < len(frame)]
    ordered = frame.sort([*axes, SEED], nulls_last=True)
    body = [
        [
            *(figures.axis_text(row[axis]) for axis in axes),
            "-" if row[SEED] is None else str(row[SEED]),
            *(_metric_cell(metric, row[metric]) for metric in metrics),
        ]
        for row in ordered.iter_rows(named=True)
    ]
    return TableBlock([*axes, SEED, *map(_column, metrics)], body)


def _column(metric: str) -> str:
    """A metric as the head of a column."""
    return {"top1": "top-1", "top5": "top-5"}.get(metric, metric.replace("_", " "))


def _metric_cell(metric: str, value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number:
        return figures.value_text(metric, float(str(value)))
    return "-" if value is None else str(value)


def limits_section(study: Study) -> Section:
    """What the results do not show: the study's own words, and what is true of every study."""
    num = len(study.config.seeds)
    general = (
        f"The intervals speak of {num} seeds: of other initial weights, orders of images and whatever else "
        "the study draws by seed."
        if num > 1
        else "With one seed there is no interval at all."
    )
    general += (
        " All are measured on the same held-out images, so nothing here speaks of other images, data or "
        "sizes. Where a best setting was chosen, it was chosen on the images that it is measured on, which "
        "flatters it."
    )
    blocks: list[page.Block] = [TextBlock(general)]
    if study.config.limits.strip():
        blocks.insert(0, TextBlock(study.config.limits.strip()))
    return Section("Limits", "", blocks)


def _figure(figure: Figure, rows: Rows) -> FigureData | str:
    """The numbers of a figure, or why there are none."""
    try:
        return figure_data(figure, rows)
    except WslError as error:
        return str(error)


def _finding_row(finding: FindingResult) -> list[Any]:
    metric = finding.of.metric
    asked = [
        f"{words} {figures.difference_text(metric, finding.bounds[name])}"
        for name, words in (
            ("at_least", "at least"),
            ("at_most", "at most"),
            ("each_at_least", "in every seed at least"),
        )
        if name in finding.bounds
    ]
    unit = " points" if figures.is_share(metric) else ""
    small = [
        f"{figures.metric_name(metric)}: {_side_text(finding.of)}, less {_side_text(finding.less)}",
        *([f"claimed: {', '.join(asked)}{unit}"] if asked else []),
        *finding.notes,
    ]
    return [
        _badge(finding.verdict),
        Lines(finding.claim, small),
        *_difference_cells(metric, finding.difference),
    ]


def _side_text(side: SideResult) -> str:
    where = figures.where_text(side.where)
    mean = (
        "not measured" if side.estimate.mean is None else figures.value_text(side.metric, side.estimate.mean)
    )
    return f"{side.step}{f' ({where})' if where else ''} {mean}"


def _peak_row(peak: PeakResult) -> list[Any]:
    means = ", ".join(
        f"{figures.axis_text(place)}: "
        + ("not measured" if found.mean is None else figures.value_text(peak.metric, found.mean))
        for place, found in peak.values
    )
    small = [f"{figures.metric_name(peak.metric)} of {peak.step} by {peak.axis}: {means or 'not measured'}"]
    if peak.at is not None:
        small.append(f"highest at {peak.axis} {figures.axis_text(peak.at)}")
    cells: list[list[str]] = [[], [], []]
    for end, estimate in peak.over_ends:
        for cell, text in zip(cells, _difference_cells(peak.metric, estimate), strict=True):
            cell.append(text)
        cells[0][-1] += f" over {figures.axis_text(end)}"
    shown = [Lines(cell[0], cell[1:]) if cell else "-" for cell in cells]
    return [_badge(peak.verdict), Lines(peak.claim, [*small, *peak.notes]), *shown]


def _difference_cells(metric: str, difference: Estimate) -> list[str]:
    def text(value: float | None) -> str:
        return "-" if value is None else figures.difference_text(metric, value)

    ends = "-" if difference.low is None else f"{text(difference.low)} to {text(difference.high)}"
    return [text(difference.mean), ends, ", ".join(map(text, difference.values)) or "-"]


def _badge(verdict: Verdict) -> Badge:
    return Badge(verdict, KINDS.get(verdict, "none"))


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _versions() -> list[tuple[str, str]]:
    found = [("wsl", __version__)]
    for name in VERSIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
