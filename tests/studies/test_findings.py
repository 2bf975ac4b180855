"""Claims held against results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.help.frames import frame, row, rows_of, sweep, sweep_rows
from wsl._core import DataError, UsageError
from wsl.studies.findings import FindingResult, judge, judge_all, judge_peak, verdict_of
from wsl.studies.rows import Rows
from wsl.studies.spec import Finding, Peak
from wsl.studies.statistics import Estimate

STUDENT: dict[str, Any] = {"step": "student", "where": {"k": 1000, "order": "class-first"}}


def finding(less: dict[str, Any] | None = None, of: dict[str, Any] | None = None, **more: Any) -> Finding:
    tree = {"claim": "c", "of": of or STUDENT, "less": less or {"step": "teacher"}}
    return Finding.model_validate(tree | more)


def judged(claim: Finding, rows: list[dict[str, Any]] | None = None) -> FindingResult:
    return judge(claim, rows_of(sweep(), sweep_rows() if rows is None else rows), [0, 1, 2])


def verdict(values: list[float], **bounds: float) -> str:
    return verdict_of(Estimate.of(dict(enumerate(values))), bounds)


def test_a_gain_beyond_its_bound_and_the_noise_is_shown() -> None:
    found = judged(finding(at_least=0.005))
    assert found.verdict == "shown"
    assert found.difference.values == pytest.approx((0.011, 0.012, 0.010))
    assert found.difference.mean == pytest.approx(0.011)
    assert found.notes == []


def test_a_gain_below_its_bound_is_not_shown_however_sure_it_is() -> None:
    assert judged(finding(at_least=0.02)).verdict == "not shown"


def test_verdicts_by_bounds() -> None:
    sure, noisy = [0.010, 0.011, 0.012], [0.05, -0.03, 0.02]
    assert verdict(sure) == "shown"
    assert verdict(noisy) == "met, but within the noise"
    assert verdict([-value for value in sure]) == "not shown"
    assert verdict(noisy, at_least=0.01) == "met, but within the noise"
    assert verdict(sure, at_least=0.010, at_most=0.02) == "shown"
    assert verdict(sure, at_most=0.0105) == "not shown"
    assert verdict([-value for value in sure], at_most=-0.01) == "shown"
    assert verdict(noisy, at_most=0.02) == "met, but within the noise"
    assert verdict(sure, at_least=0.0, each_at_least=0.0105) == "not shown"
    assert verdict([0.0, 0.0, 0.0], at_least=0.0) == "met, but within the noise"
    assert verdict([]) == "not measured"
    assert verdict([0.5]) == "met, but within the noise"


def test_a_loss_that_a_claim_allows_is_told_from_more_of_it() -> None:
    small, noisy = [-0.002, -0.001, -0.0015], [-0.02, 0.02, 0.0]
    assert verdict(small, at_least=-0.01) == "shown"
    assert verdict(noisy, at_least=-0.01) == "met, but within the noise"
    assert verdict(small, at_least=-0.001) == "not shown"
    assert verdict([-value for value in small], at_most=0.01) == "shown"


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=6), st.floats(-0.5, 0.5))
def test_a_shown_gain_stays_shown_for_a_lesser_claim(values: list[float], bound: float) -> None:
    if verdict(values, at_least=bound) == "shown":
        assert verdict(values, at_least=bound - 0.1) == "shown"
        mean = sum(values) / len(values)
        assert mean >= bound


def test_the_best_value_is_chosen_by_its_mean_and_that_is_said() -> None:
    best = {"step": "scratch", "where": {"width": "best"}}
    found = judged(finding(less=best, at_least=0.0))
    assert found.less.where == {"width": 2}
    assert found.less.chosen == ["width"]
    assert any("flatters" in note for note in found.notes)


def test_a_value_with_fewer_seeds_is_no_candidate_for_the_best() -> None:
    rows = [line for line in sweep_rows() if not (line["step"] == "scratch" and line["width"] == 2)]
    rows.append(row("scratch", 0, width=2, top1=0.99))
    found = judged(finding(less={"step": "scratch", "where": {"width": "best"}}), rows)
    assert found.less.where == {"width": 1}


def test_the_best_loss_is_the_lowest() -> None:
    rows = [row("scratch", 0, width=width, loss=loss) for width, loss in ((1, 0.5), (2, 0.4))]
    study = rows_of(sweep(), rows)
    assert study.settle("scratch", {"width": "best"}, "loss") == {"width": 2}


def test_a_missing_seed_is_said_and_not_filled_in() -> None:
    rows = [line for line in sweep_rows() if not (line["step"] == "student" and line["seed"] == 1)]
    found = judged(finding(at_least=0.0), rows)
    assert found.difference.seeds == (0, 2)
    assert found.notes == ["without seed 1, not measured"]


def test_a_value_that_is_not_finite_counts_as_missing() -> None:
    rows = sweep_rows()
    for line in rows:
        if line["step"] == "teacher" and line["seed"] == 2:
            line["top1"] = float("nan")
    assert judged(finding(), rows).difference.seeds == (0, 1)


def test_one_seed_is_within_the_noise() -> None:
    found = judge(finding(at_least=0.0), rows_of(sweep(), sweep_rows((0,))), [0])
    assert found.verdict == "met, but within the noise"
    assert "one seed has no interval" in found.notes


def test_an_axis_that_a_step_does_not_depend_on_is_no_matter() -> None:
    found = judged(finding(less={"step": "teacher", "where": {"k": "best", "order": "class-first"}}))
    assert len(found.difference) == 3
    assert found.less.chosen == []


def test_a_side_that_means_several_values_is_refused() -> None:
    with pytest.raises(UsageError, match="scratch varies over width"):
        judged(finding(less={"step": "scratch"}))
    with pytest.raises(UsageError, match="no metric 'recall_rare'"):
        judged(finding(metric="recall_rare"))


def test_two_rows_of_one_seed_are_an_error() -> None:
    with pytest.raises(DataError, match="teacher twice with seed 0"):
        judged(finding(), [*sweep_rows(), row("teacher", 0, top1=0.5)])


def test_results_without_seeds_are_none() -> None:
    with pytest.raises(DataError, match="expected columns step and seed"):
        Rows(frame([{"step": "a"}]), ["seed"])


def test_a_peak_inside_the_axis_is_shown_where_it_is_above_both_ends() -> None:
    peak = Peak.model_validate(
        {"claim": "p", "step": "student", "axis": "k", "where": {"order": "class-first"}}
    )
    found = judge_peak(peak, rows_of(sweep(), sweep_rows()), [0, 1, 2])
    assert found.verdict == "shown"
    assert found.at == 1000
    assert [place for place, _ in found.values] == [100, 1000, 4000]
    assert [end for end, _ in found.over_ends] == [100, 4000]
    best_order = peak.model_copy(update={"where": {"order": "best"}})
    assert judge_peak(best_order, rows_of(sweep(), sweep_rows()), [0, 1, 2]).at == 1000


def test_the_highest_value_at_an_end_is_no_peak() -> None:
    rows = [row("student", seed, k=k, top1=k / 1e4) for seed in (0, 1) for k in (100, 1000, 4000)]
    peak = Peak(claim="p", step="student", axis="k")
    found = judge_peak(peak, rows_of(sweep(), rows), [0, 1])
    assert (found.verdict, found.at) == ("not shown", 4000)


def test_a_peak_within_the_noise_is_said_to_be() -> None:
    noise = {0: 0.0, 1: 0.2}
    rows = [
        row("student", seed, k=k, top1=top1 + (noise[seed] if k == 1000 else 0.0))
        for seed in (0, 1)
        for k, top1 in ((100, 0.5), (1000, 0.45), (4000, 0.5))
    ]
    found = judge_peak(Peak(claim="p", step="student", axis="k"), rows_of(sweep(), rows), [0, 1])
    assert found.verdict == "met, but within the noise"


def test_a_peak_over_an_axis_that_the_step_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="does not depend on k"):
        judge_peak(Peak(claim="p", step="teacher", axis="k"), rows_of(sweep(), sweep_rows()), [0])


def test_a_claim_that_cannot_be_held_against_the_results_says_why() -> None:
    config = sweep(
        findings=[finding(metric="nothing").model_dump(), finding(less={"step": "scratch"}).model_dump()],
        peaks=[{"claim": "p", "step": "teacher", "axis": "k"}],
    )
    findings, peaks = judge_all(config, rows_of(config, sweep_rows()))
    assert [found.verdict for found in (*findings, *peaks)] == ["not measured"] * 3
    assert "no metric" in findings[0].notes[0]
    assert "varies over width" in findings[1].notes[0]
