"""What a study claims, checked against its results: a verdict with all its numbers.

A finding is a claim about the difference of two sides. The difference is taken within every seed that has
both; its mean and 95 % interval decide:

    shown                        the claim's bounds are met by the mean, and the interval excludes chance
    met, but within the noise    they are met by the mean, and the interval does not exclude chance
    not shown                    they are not met
    not measured                 no seed has both sides

Chance is a difference of 0 for a claim of at least some gain (or at most some loss). A claim that allows a
loss ("no worse than -0.01") is distinguished from chance only where the interval keeps to that bound. One
seed has no interval, so it shows nothing. A peak is shown where its mean is above both ends of the axis, each
difference again by its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from wsl._core import UsageError, WslError
from wsl.figures.charts import number_text
from wsl.studies.rows import BEST, LOWER_IS_BETTER, Rows
from wsl.studies.spec import Finding, Peak, Side, StudyConfig
from wsl.studies.statistics import Estimate, differences

Verdict = Literal["shown", "met, but within the noise", "not shown", "not measured"]


@dataclass(frozen=True)
class SideResult:
    """One side of a finding, as it was measured."""

    step: str
    where: dict[str, Any]
    metric: str
    chosen: list[str]
    """Axes whose value was chosen as the best on the images that it is measured on."""
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return vars(self) | {"estimate": self.estimate.to_dict()}


@dataclass(frozen=True)
class FindingResult:
    """A finding and what became of it."""

    claim: str
    verdict: Verdict
    of: SideResult
    less: SideResult
    difference: Estimate
    bounds: dict[str, float]
    """at_least, at_most, each_at_least, as far as the claim gives them."""
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        parts = {"of": self.of.to_dict(), "less": self.less.to_dict()}
        return vars(self) | parts | {"difference": self.difference.to_dict()}


@dataclass(frozen=True)
class PeakResult:
    """A claim of a peak and what became of it."""

    claim: str
    verdict: Verdict
    step: str
    axis: str
    metric: str
    where: dict[str, Any]
    values: list[tuple[float | str, Estimate]]
    """The estimate at each value of the axis, in its order."""
    at: float | str | None
    """The value with the best mean."""
    over_ends: list[tuple[float | str, Estimate]]
    """The peak's difference to each end of the axis, seed by seed."""
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return vars(self) | {
            "values": [{"at": at, **estimate.to_dict()} for at, estimate in self.values],
            "over_ends": [{"end": at, **estimate.to_dict()} for at, estimate in self.over_ends],
        }


def judge_all(config: StudyConfig, rows: Rows) -> tuple[list[FindingResult], list[PeakResult]]:
    """Every claim of a study; one that cannot be checked is "not measured", with the reason."""
    findings, peaks = [], []

    # A claim that cannot be checked must not cost the others.
    for finding in config.findings:
        try:
            findings.append(judge(finding, rows, config.seeds))
        except WslError as error:
            nothing = Estimate.of({})
            of, less = (
                SideResult(side.step, dict(side.where), side.metric or finding.metric, [], nothing)
                for side in (finding.of, finding.less)
            )
            why = [str(error)]
            findings.append(FindingResult(finding.claim, "not measured", of, less, nothing, {}, why))
    for peak in config.peaks:
        try:
            peaks.append(judge_peak(peak, rows, config.seeds))
        except WslError as error:
            where, why = dict(peak.where), [str(error)]
            peaks.append(
                PeakResult(
                    peak.claim, "not measured", peak.step, peak.axis, peak.metric, where, [], None, [], why
                )
            )
    return findings, peaks


def judge(finding: Finding, rows: Rows, seeds: Sequence[int]) -> FindingResult:
    """Holds a finding against the results of a study with these seeds.

    Raises UsageError where a side means several values of an axis, or an unknown metric.
    """
    of, first = _side(finding.of, finding.metric, rows)
    less, second = _side(finding.less, finding.metric, rows)
    difference = Estimate.of(differences(first, second))
    bounds = {
        name: value
        for name in ("at_least", "at_most", "each_at_least")
        if (value := getattr(finding, name)) is not None
    }

    # What makes the interval look better than it is goes beside it.
    notes = _missing(difference, seeds)
    for side in (of, less):
        if None in side.estimate.seeds:
            notes.append(f"{side.step} was made once for all seeds: the interval leaves its own chance out")
        if side.chosen:
            notes.append(
                f"{side.step}: {', '.join(side.chosen)} chosen as the best mean on the images it is measured "
                "on, which flatters it"
            )
    return FindingResult(
        finding.claim,
        verdict_of(difference, bounds),
        of,
        less,
        difference,
        bounds or {"at_least": 0.0},
        notes,
    )


def verdict_of(difference: Estimate, bounds: dict[str, float]) -> Verdict:
    """The verdict on a difference; without a bound the claim is that it is above 0."""
    if difference.mean is None:
        return "not measured"
    bounds = bounds or {"at_least": 0.0}
    least, most = bounds.get("at_least", -math.inf), bounds.get("at_most", math.inf)
    each = bounds.get("each_at_least", -math.inf)
    if not least <= difference.mean <= most or min(difference.values) < each:
        return "not shown"
    low, high = difference.low, difference.high
    if low is None or high is None:
        return "met, but within the noise"
    # A gain must be distinguished from nothing; where some loss is allowed, from more of it.
    floors = [min(bound, 0.0) for bound in (least, each) if bound > -math.inf]
    above = all(low > floor or (low == floor and floor < 0) for floor in floors)
    ceiling = max(most, 0.0)
    below = most == math.inf or high < ceiling or (high == ceiling and ceiling > 0)
    return "shown" if above and below else "met, but within the noise"


def judge_peak(peak: Peak, rows: Rows, seeds: Sequence[int]) -> PeakResult:
    """Holds a peak against the results: is the best mean strictly inside the axis, and above both ends?

    Raises UsageError where the step does not depend on the axis.
    """
    where = {axis: value for axis, value in peak.where.items() if axis != peak.axis}
    places = axis_values(rows, peak.axis, rows.of(peak.step, without_best(where)))
    if not places and len(rows.of(peak.step, {})):
        raise UsageError(f"peak {peak.claim!r}: {peak.step} does not depend on {peak.axis}")
    found = {}
    for place in places:
        settled = rows.settle(peak.step, where | {peak.axis: place}, peak.metric)
        found[place] = rows.by_seed(peak.step, settled, peak.metric)
    values = [(place, Estimate.of(found[place])) for place in places]

    # From here on more is better, whatever the metric.
    sign = -1.0 if peak.metric in LOWER_IS_BETTER else 1.0
    measured = [(place, sign * estimate.mean) for place, estimate in values if estimate.mean is not None]
    at = max(measured, key=lambda point: point[1])[0] if measured else None

    # A best mean at an end of the axis, or on one side only, is a slope and not a peak.
    ends = [places[0], places[-1]] if len(places) > 1 else []
    over_ends = [
        (end, Estimate.of({seed: sign * value for seed, value in differences(found[at], found[end]).items()}))
        for end in ends
        if at is not None and end != at
    ]
    notes = [
        f"{_place_text(place)}: {text}" for place, estimate in values for text in _missing(estimate, seeds)
    ]

    # Both differences have to be above chance, not only above 0.
    inside = at is not None and len(over_ends) == 2
    verdict: Verdict = "not measured" if at is None else "not shown"
    if inside:
        shown = all(estimate.low is not None and estimate.low > 0 for _, estimate in over_ends)
        verdict = "shown" if shown else "met, but within the noise"
        notes.append("the peak is the best of several means, which flatters it")
    return PeakResult(
        peak.claim, verdict, peak.step, peak.axis, peak.metric, dict(peak.where), values, at, over_ends, notes
    )


def axis_values(rows: Rows, axis: str, frame: pl.DataFrame) -> list[Any]:
    """The values of an axis in these rows: numbers ascending, names in the order of the rows."""
    if not rows.depends(frame, axis):
        return []
    values = frame[axis].drop_nulls().unique(maintain_order=True)
    return list(values.sort() if values.dtype.is_numeric() else values)


def _place_text(place: Any) -> str:
    is_number = isinstance(place, (int, float)) and not isinstance(place, bool)
    return number_text(place) if is_number else str(place)


def without_best(where: dict[str, Any]) -> dict[str, Any]:
    """The axes whose value is given."""
    return {axis: value for axis, value in where.items() if value != BEST}


def _side(side: Side, metric: str, rows: Rows) -> tuple[SideResult, dict[int | None, float]]:
    metric = side.metric or metric
    where = rows.settle(side.step, side.where, metric)
    found = rows.by_seed(side.step, where, metric)
    chosen = [axis for axis, value in side.where.items() if value == BEST and axis in where]
    return SideResult(side.step, where, metric, chosen, Estimate.of(found)), found


def _missing(estimate: Estimate, seeds: Sequence[int]) -> list[str]:
    """Remarks on the seeds that count."""
    missing = [str(seed) for seed in seeds if seed not in estimate.seeds and None not in estimate.seeds]
    notes = []
    if missing:
        notes.append(f"without seed{'s' if len(missing) > 1 else ''} {', '.join(missing)}, not measured")
    if len(estimate) == 1:
        notes.append("one seed has no interval")
    return notes
