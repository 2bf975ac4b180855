"""A template is made once for every combination of the axes that it depends on, and of no others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsl
from wsl.studies.plan import Place, Plan, StepPlan, axis_values, plan_indexes, plan_steps
from wsl.studies.run import with_axes
from wsl.studies.spec import RunStep, SelectionStep, StudyConfig
from wsl.workspace.settings import load

BASE: dict[str, Any] = {
    "title": "Sweep",
    "seeds": [0, 1, 2],
    "axes": {"k": [100, 200], "noise": [0.0, 0.5], "baseline": {"plain": {}, "decay": {"optimizer.lr": 0.5}}},
    "selections": {"chosen": {"teacher": "teacher", "index": "u", "k": "$k"}},
    "runs": {
        "teacher": {"stage": "teacher"},
        "student": {"stage": "student", "pseudolabels": "chosen"},
        "noisy": {"stage": "pretrain", "set": {"data.label_noise": "$noise"}},
        "scratch": {"stage": "teacher", "vary": ["baseline"], "set": {"num_steps": 7}},
        "fixed": {"stage": "teacher", "set": {"seed": 9}},
    },
}


def study(**more: Any) -> StudyConfig:
    return StudyConfig.model_validate(BASE | more)


def planned(config: StudyConfig) -> Plan:
    return plan_steps(config, axis_values(config, {}))


def step(plan: Plan, name: str, **values: Any) -> StepPlan:
    found = [s for place, s in plan.steps.items() if place.name == name and dict(place.values) == values]
    assert len(found) == 1
    return found[0]


def run_of(plan: Plan, name: str, **values: Any) -> RunStep:
    settings = step(plan, name, **values).settings
    assert isinstance(settings, RunStep)
    return settings


def test_what_does_not_depend_on_an_axis_is_made_once() -> None:
    made = {name: len(steps) for name, steps in planned(study()).templates().items()}
    assert made == {"teacher": 3, "chosen": 6, "student": 6, "noisy": 6, "scratch": 6, "fixed": 1}


def test_inputs_have_the_values_of_the_step_that_needs_them() -> None:
    plan = planned(study())
    student = step(plan, "student", k=200, seed=1)
    assert student.inputs == {"pseudolabels": Place("chosen", (("k", 200), ("seed", 1)))}
    assert plan.steps[student.inputs["pseudolabels"]].inputs == {"teacher": Place("teacher", (("seed", 1),))}


def test_axes_take_the_place_of_what_names_them() -> None:
    plan = planned(study())
    chosen = step(plan, "chosen", k=200, seed=0).settings
    assert isinstance(chosen, SelectionStep)
    assert chosen.k == 200
    assert run_of(plan, "noisy", noise=0.5, seed=2).set == {"data.label_noise": 0.5, "seed": 2}
    varied = run_of(plan, "scratch", baseline="decay", seed=1)
    assert varied.set == {"num_steps": 7, "optimizer.lr": 0.5, "seed": 1}
    assert run_of(plan, "fixed").set == {"seed": 9}


def test_a_key_of_a_mapping_is_named_by_a_dot() -> None:
    arms = {"all": {"k": 900, "p": 1}, "best": {"k": 50, "p": 10}}
    chosen = {"teacher": "teacher", "index": "u", "k": "$arm.k", "p": "$arm.p"}
    plan = planned(
        study(axes={"arm": arms, "noise": [0.0], "baseline": {"a": {}}}, selections={"chosen": chosen})
    )
    settings = step(plan, "chosen", arm="all", seed=0).settings
    assert isinstance(settings, SelectionStep)
    assert (settings.k, settings.p) == (900, 1)


def test_indexes_follow_their_axes_and_come_after_those_they_are_made_of() -> None:
    tree = BASE | {
        "axes": BASE["axes"] | {"n": [10, 20]},
        "indexes": {
            "test": {"shards": "t.tar", "vocabulary_of": "small"},
            "small": {"shards": "a.tar", "draw": {"of": "whole", "num_images": "$n"}},
            "whole": {"shards": "a.tar"},
        },
    }
    tree["runs"] = tree["runs"] | {"tagged": {"stage": "pretrain", "index": "small", "evaluate": "test"}}
    config = StudyConfig.model_validate(tree)
    axes = axis_values(config, {})
    names = [str(place) for place in plan_indexes(config, axes)]
    assert names == ["whole", "small n=10", "small n=20", "test n=10", "test n=20"]
    tagged = step(plan_steps(config, axes), "tagged", n=20, seed=0)
    assert {name: str(place) for name, place in tagged.indexes.items()} == {
        "small": "small n=20",
        "test": "test n=20",
    }


@given(
    num_k=st.integers(1, 4),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
    uses=st.lists(st.sampled_from(["k", "noise", "baseline"]), unique=True),
)
def test_the_number_of_steps_is_the_product_of_the_axes_they_use(
    num_k: int, seeds: list[int], uses: list[str]
) -> None:
    axes = BASE["axes"] | {"k": list(range(1, num_k + 1))}
    changed = {"batch_size": "$k", "data.label_noise": "$noise"}
    run: dict[str, Any] = {
        "stage": "finetune",
        "init": "teacher",
        "set": {key: value for key, value in changed.items() if value[1:] in uses},
        "vary": ["baseline"] if "baseline" in uses else [],
    }
    plan = planned(study(axes=axes, seeds=seeds, runs=BASE["runs"] | {"tuned": run}))
    sizes = {"k": num_k, "noise": 2, "baseline": 2}
    expected = len(seeds)
    for axis in uses:
        expected *= sizes[axis]
    assert len(plan.templates()["tuned"]) == expected
    seen: set[Place] = set()
    for place, made in plan.steps.items():
        assert set(made.inputs.values()) <= seen
        seen.add(place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": {}}, "needs at least one"),
        ({"selections": {"chosen": {"teacher": "nobody", "index": "u", "k": 1}}}, "there is no 'nobody'"),
        ({"axes": {"k": [], "noise": [0.0], "baseline": {"a": {}}}}, "axes.k: expected at least one value"),
        ({"seeds": [1, 1]}, "seeds: each once"),
        ({"workspace": "elsewhere"}, "'elsewhere' is no name of data"),
        ({"figures": [{"title": "t", "x": "q", "steps": {"student": "s"}}]}, "there is no 'q'"),
    ],
)
def test_a_study_that_does_not_hold_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(**change)


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ({"a": {"stage": "teacher", "set": {"seed": "$seeds"}}}, r"runs.a: \$seeds names no axis"),
        (
            {"a": {"stage": "teacher", "set": {"seed": "$k.x"}}},
            r"\$k.x: the values of the axis 'k' are no mapp",
        ),
        (
            {"a": {"stage": "teacher", "vary": ["k"]}},
            "runs.a.vary: the values of the axis 'k' are no mappings",
        ),
        (
            {"a": {"stage": "teacher", "set": {"seed": "$baseline.x"}}},
            "expected a key of axes.baseline.plain",
        ),
        (
            {"a": {"stage": "finetune", "init": "b"}, "b": {"stage": "finetune", "init": "a"}},
            "need one another; break the circle",
        ),
    ],
)
def test_a_fault_in_a_template_is_told_with_its_name(runs: dict[str, Any], said: str) -> None:
    with pytest.raises(wsl.UsageError, match=said):
        planned(study(runs=BASE["runs"] | runs))


def test_axes_are_changed_by_the_command_line() -> None:
    changed = with_axes(study(), ["k=5,6,7", "seed=4", "baseline=decay"])
    assert changed.axes["k"] == [5, 6, 7]
    assert changed.seeds == [4]
    assert changed.axes["baseline"] == {"decay": {"optimizer.lr": 0.5}}
    for wrong in ("q=1", "k", "baseline=strong"):
        with pytest.raises(wsl.UsageError, match=f"--axis {wrong}"):
            with_axes(study(), [wrong])


def test_a_share_axis_takes_numbers_in_its_place() -> None:
    shares = {"n": {"of": "u", "classes": "d", "values": [0.5]}}
    assert with_axes(study(shares=shares), ["n=12"]).axes["n"] == [12]


def test_an_unknown_key_of_a_study_is_told(tmp_path: Any) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("title: x\nruns: {a: {stage: teacher, evalute: test}}\n")
    with pytest.raises(wsl.UsageError, match="did you mean 'evaluate'"):
        load(StudyConfig, file)
