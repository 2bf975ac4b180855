"""Figures and pages of studies."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.help.frames import frame, row, rows_of, sweep, sweep_rows
from tests.help.thoroughness import examples
from wsl._core import DataError, UsageError
from wsl.figures.charts import Chart, Point, begins_at_zero, chart
from wsl.figures.page import render
from wsl.studies import figures
from wsl.studies.figures import chart_of, figure_data, table_of
from wsl.studies.findings import judge_all
from wsl.studies.page import read_study, study_page, write_study
from wsl.studies.plan import axis_values, plan_steps
from wsl.studies.spec import Figure, StudyConfig
from wsl.workspace.settings import load

ROOT = Path(__file__).resolve().parents[2]
MEASURED = {
    "top1",
    "top5",
    "macro",
    "recall_at_10",
    "loss",
    "seconds",
    "precision",
    "share_foreign",
    "num_pairs",
}
HOSTILE = '<script>alert("x")</script> & $x$'
BY_K: dict[str, Any] = {
    "title": "Accuracy by K",
    "x": "k",
    "steps": {"student": "student"},
    "where": {"order": "class-first"},
    "across": {"teacher": "teacher", "scratch": "labelled images alone"},
}


def figure(**more: Any) -> Figure:
    return Figure.model_validate(BY_K | more)


@examples(25)
@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=4), min_size=1, max_size=4))
def test_a_line_is_the_mean_and_interval_of_its_seeds(values: list[list[float]]) -> None:
    """Against NumPy and SciPy, place by place."""
    rows = [
        row("student", seed, k=10 ** (place + 1), order="class-first", top1=top1)
        for place, seeds in enumerate(values)
        for seed, top1 in enumerate(seeds)
    ]
    data = figure_data(figure(across={}), rows_of(sweep(), rows))
    assert [place.x for place in data.places] == [10 ** (place + 1) for place in range(len(values))]
    for place, seeds in zip(data.places, values, strict=True):
        error = scipy.stats.sem(seeds)
        half = scipy.stats.t.ppf(0.975, len(seeds) - 1) * error
        found = place.estimate
        assert found.values == tuple(seeds)
        expected = np.mean(seeds) + np.array([0, -half, half])
        assert (found.mean, found.low, found.high) == pytest.approx(expected, abs=1e-9)


def test_a_second_axis_makes_lines_and_what_depends_on_neither_goes_across() -> None:
    data = figure_data(figure(by="order", where={}), rows_of(sweep(), sweep_rows()))
    assert list(dict.fromkeys(place.line for place in data.places)) == ["class-first", "image-first"]
    assert [place.line for place in data.across] == ["teacher", "labelled images alone (width 2)"]
    drawn = chart_of(data)
    assert [len(points) for points in drawn.lines.values()] == [3, 3]
    assert len(drawn.bands) == 2


def test_a_figure_of_a_step_without_its_axis_is_refused() -> None:
    rows = rows_of(sweep(), sweep_rows())
    with pytest.raises(UsageError, match="does not depend on k"):
        figure_data(figure(steps={"teacher": "teacher"}), rows)
    with pytest.raises(UsageError, match="student varies over order"):
        figure_data(figure(where={}), rows)
    with pytest.raises(UsageError, match="a name of its own"):
        figure_data(figure(steps={"student": "a", "chosen": "a"}), rows)


def test_the_table_under_a_figure_has_every_seed() -> None:
    rows = [line for line in sweep_rows() if (line["step"], line["seed"]) != ("teacher", 1)]
    columns, table = table_of(figure_data(figure(), rows_of(sweep(), rows)))
    assert columns == ["line", "k", "mean", "95 % interval", "by seed"]
    assert table[0][:2] == ["student", "100"]
    assert table[0][2] == "79.60\u00a0%"
    assert table[3] == [
        "teacher",
        "any",
        "82.50\u00a0%",
        "76.15\u00a0to\u00a088.85\u00a0%",
        "0: 82.00\u00a0%, 2: 83.00\u00a0%",
    ]


@pytest.mark.parametrize("metric", ["loss", "seconds"])
def test_what_was_not_measured_is_a_gap(metric: str) -> None:
    data = figure_data(figure(metric=metric, across={}), rows_of(sweep(), sweep_rows()))
    assert "Nothing to draw" in chart(chart_of(data))
    assert table_of(data)[1][0][-1] == "not measured"


def test_names_make_bars_where_they_can_be_read_and_points_where_they_cannot() -> None:
    close = Chart("t", {"a": [Point("x", 0.80, 0.79, 0.81), Point("y", 0.82)]})
    far = Chart("t", {"a": [Point("x", 0.2, 0.1, 0.3, [0.1, 0.3]), Point("y", 0.8)], "b": [Point("y", 0.5)]})
    assert not begins_at_zero(close)
    assert begins_at_zero(far)
    for drawn in (close, far):
        assert chart(drawn).startswith("<svg")


def test_the_same_results_are_the_same_bytes(tmp_path: Path) -> None:
    config = sweep(figures=[BY_K | {"reference_points": [[1000, 0.5], [8000, 0.6]]}])
    for name in ("a", "b"):
        write_study(tmp_path / name, config, frame(sweep_rows()))
    for file in ("report.html", "findings.json", "figures/01-accuracy-by-k.svg"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_study_is_written_and_read_again(tmp_path: Path) -> None:
    claim = {"claim": "c", "of": {"step": "teacher"}, "less": {"step": "scratch", "where": {"width": "best"}}}
    config = sweep(figures=[BY_K, BY_K | {"title": "Seconds!", "metric": "no such"}], findings=[claim])
    results = frame(sweep_rows())
    write_study(tmp_path / "study", config, results)
    files = {str(path.relative_to(tmp_path / "study")) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "results.parquet",
        "findings.json",
        "report.html",
        "figures/01-accuracy-by-k.svg",
        "figures/01-accuracy-by-k.png",
    }
    found = read_study(tmp_path / "study")
    assert found.config == config
    assert found.rows.frame.equals(results)
    findings = json.loads((tmp_path / "study" / "findings.json").read_text())
    assert findings["findings"][0]["verdict"] == "shown"
    assert len(findings["figures"]) == 1
    text = (tmp_path / "study" / "report.html").read_text()
    assert "This figure cannot be drawn: the results have no metric" in text
    assert text.count("<tr>") > len(results)


def test_results_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.parquet"
    for content, words in ((b"junk", "as Parquet"), (b"", "as Parquet")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_study(tmp_path)
    frame(sweep_rows()).write_parquet(file)
    with pytest.raises(DataError, match="does not say of which study"):
        read_study(tmp_path)
    frame(sweep_rows()).write_parquet(file, metadata={"wsl": '{"study": {"runs": 3}}'})
    with pytest.raises(DataError, match="its study cannot be read"):
        read_study(tmp_path)


def hostile_study() -> StudyConfig:
    tree: dict[str, Any] = {
        "title": HOSTILE,
        "about": HOSTILE,
        "limits": HOSTILE,
        "axes": {"order": [HOSTILE, "b"]},
        "runs": {"student": {"stage": "student"}},
        "figures": [
            {
                "title": HOSTILE,
                "text": HOSTILE,
                "x": "order",
                "steps": {"student": HOSTILE},
                "reference": HOSTILE,
                "reference_points": [[HOSTILE, 0.5]],
            }
        ],
        "findings": [
            {
                "claim": HOSTILE,
                "of": {"step": "student", "where": {"order": HOSTILE}},
                "less": {"step": "student", "where": {"order": "b"}},
            }
        ],
    }
    return StudyConfig.model_validate(tree)


def test_hostile_names_stay_text() -> None:
    rows = [row("student", seed, order=order, top1=0.5) for seed in (0, 1, 2) for order in (HOSTILE, "b")]
    text = render(study_page(hostile_study(), frame(rows), facts=[("a", HOSTILE)]))
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 8
    assert not re.search(r"https?://(?!www\.w3\.org/)", text)


def test_no_effect_is_said_with_its_interval() -> None:
    rows = [row("student", seed, order=order, top1=0.5) for seed in (0, 1, 2) for order in (HOSTILE, "b")]
    text = render(study_page(hostile_study(), frame(rows)))
    assert '<span class="badge open">met, but within the noise</span>' in text
    assert "+0.00 to +0.00" in text


def test_a_study_of_one_seed_says_that_it_has_no_interval() -> None:
    config = sweep(seeds=[0], figures=[BY_K])
    text = render(study_page(config, frame(sweep_rows((0,)))))
    assert "With one seed there is no interval at all." in text


def test_every_row_stands_on_the_page_and_steps_that_were_not_made_are_named() -> None:
    rows = [line for line in sweep_rows() if line["step"] != "teacher"]
    config = sweep()
    text = render(study_page(config, frame(rows)))
    assert "<h3>teacher</h3>\n<p>Not made.</p>" in text
    assert text.count("<td") >= len(rows) * 3
    assert f"All {len(rows)} rows" in text


def test_numbers_are_shown_as_their_metric_asks() -> None:
    assert figures.value_text("top1", 0.8235) == "82.35\u00a0%"
    assert figures.value_text("num_pairs", 20000.0) == "20,000"
    assert figures.difference_text("recall_rare", -0.015) == "-1.50"
    assert figures.difference_text("loss", 0.25) == "+0.25"
    assert figures.metric_name("recall_at_10_rare") == "recall among the ten best, rare"


def test_an_empty_frame_makes_a_page() -> None:
    empty = pl.DataFrame(schema={"step": pl.String, "seed": pl.Int64, "k": pl.Int64, "top1": pl.Float64})
    text = render(study_page(sweep(figures=[BY_K | {"across": {}}]), empty))
    assert "Nothing to draw" in text


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_figure_and_claim_of_a_shipped_study_is_made_of_its_plan(file: Path) -> None:
    config = load(StudyConfig, file)
    sizes = {axis: [100 * (place + 1) for place in range(5)] for axis in config.shares}
    plan = plan_steps(config, axis_values(config, sizes))
    metrics = {figure.metric for figure in config.figures} | {peak.metric for peak in config.peaks}
    for finding in config.findings:
        metrics |= {finding.metric, *(side.metric or finding.metric for side in (finding.of, finding.less))}
    groups = {group for step in config.runs.values() for group in step.groups}
    known = {f"{recall}_{group}" for recall in ("recall", "recall_at_10") for group in groups}
    assert metrics <= known | MEASURED
    rng = np.random.default_rng(0)
    rows = [
        {"step": place.name, **dict(place.values), **{metric: float(rng.random()) for metric in metrics}}
        for place in plan.steps
    ]
    study = rows_of(config, rows)
    for drawn in config.figures:
        data = figure_data(drawn, study)
        assert all(len(place.estimate) == len(config.seeds) for place in (*data.places, *data.across))
        assert len({place.x for place in data.places}) > 1
    findings, peaks = judge_all(config, study)
    for found in (*findings, *peaks):
        assert found.verdict != "not measured", found
