"""From a study to its steps: every template once for each combination of the axes that it depends on.

A template depends on the axes that it names, and on those of its inputs. So the plan is a graph whose
shared parts are in it once, and nothing here trains, scores or reads data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from wsl._core import UsageError
from wsl.studies.spec import SEED, RunStep, Scalar, SelectionStep, StudyConfig, StudyIndex
from wsl.workspace.settings import Config, check

Values = dict[str, Scalar]
"""Axis to value; of an axis of mappings, the name of the mapping."""
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Place:
    """A template and the values of its axes: what names a step within the plan."""

    name: str
    values: tuple[tuple[str, Scalar], ...]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{axis}={value}" for axis, value in self.values)])


@dataclass(frozen=True)
class IndexPlan:
    """An index to be made for the study, its settings without a `$`."""

    place: Place
    settings: StudyIndex


@dataclass(frozen=True)
class StepPlan:
    """A step to be made: a selection or a run, its settings without a `$`."""

    place: Place
    settings: SelectionStep | RunStep
    inputs: dict[str, Place]
    """The steps that it needs, by the field that names them."""
    indexes: dict[str, Place]
    """The study's indexes that it reads, by name; those that it lacks are the workspace's."""


@dataclass(frozen=True)
class Plan:
    """All steps of a study, each after those that it needs."""

    axes: dict[str, list[Scalar]]
    steps: dict[Place, StepPlan]

    def templates(self) -> dict[str, list[StepPlan]]:
        """The steps of each template, in order."""
        found: dict[str, list[StepPlan]] = {}
        for step in self.steps.values():
            found.setdefault(step.place.name, []).append(step)
        return found


def axis_values(study: StudyConfig, shares: Mapping[str, list[int]]) -> dict[str, list[Scalar]]:
    """Every axis with its values; `shares` are those of the axes of numbers of images."""
    axes: dict[str, list[Scalar]] = {axis: list(values) for axis, values in study.axes.items()}
    axes |= {axis: list(values) for axis, values in shares.items()}
    axes[SEED] = list(study.seeds)
    return axes


def plan_indexes(
    study: StudyConfig, axes: Mapping[str, list[Scalar]], only: set[str] | None = None
) -> dict[Place, IndexPlan]:
    """The indexes that the study makes, each after those that it is made of; `only` some and their own."""
    templates = _Templates(study)
    plans: dict[Place, IndexPlan] = {}
    wanted = [name for name in study.indexes if only is None or name in only]
    for name in _sorted(wanted, templates.index_inputs):
        for values in _combinations(axes, templates.axes_of_index(name)):
            place = _place(name, values)
            settings = substitute(study.indexes[name], study, values, f"indexes.{name}")
            plans[place] = IndexPlan(place, settings)
    return plans


def plan_steps(study: StudyConfig, axes: Mapping[str, list[Scalar]]) -> Plan:
    """The selections and runs."""
    templates = _Templates(study)
    steps: dict[Place, StepPlan] = {}
    for name in _sorted([*study.selections, *study.runs], templates.predecessors):
        chosen: SelectionStep | RunStep = study.selections.get(name) or study.runs[name]
        for values in _combinations(axes, templates.axes_of(name)):
            settings = substitute(chosen, study, values, f"{templates.kind(name)}.{name}")
            inputs = {
                field: _place(other, _only(values, axes, templates.axes_of(other)))
                for field, other in templates.inputs(name).items()
            }
            indexes = {
                index: _place(index, _only(values, axes, templates.axes_of_index(index)))
                for index in templates.indexes(name)
            }
            place = _place(name, values)
            steps[place] = StepPlan(place, settings, inputs, indexes)
    return Plan(dict(axes), steps)


def substitute(settings: C, study: StudyConfig, values: Values, where: str) -> C:
    """`settings` with every ``$axis`` and ``$axis.key`` replaced, checked once more."""
    tree = _replace(settings.model_dump(exclude_unset=True), study, values, where)
    if isinstance(settings, RunStep):
        tree.setdefault("set", {})
        for axis in settings.vary:
            variants = study.axes[axis]
            if not isinstance(variants, dict):
                raise UsageError(f"{where}.vary: the values of the axis {axis!r} are no mappings of settings")
            tree["set"] |= variants[str(values[axis])]
        if SEED in values:
            tree["set"].setdefault("seed", values[SEED])
    return check(type(settings), tree, where)


class _Templates:
    """What the templates of a study name."""

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self._axes: dict[str, set[str]] = {}

    def kind(self, name: str) -> str:
        return "selections" if name in self.study.selections else "runs"

    def inputs(self, name: str) -> dict[str, str]:
        """The steps that a step needs, by field."""
        if name in self.study.selections:
            return {"teacher": self.study.selections[name].teacher}
        run = self.study.runs[name]
        fields = {"init": run.init, "pseudolabels": run.pseudolabels}
        return {field: other for field, other in fields.items() if other is not None}

    def predecessors(self, name: str) -> list[str]:
        """The steps that must be known before a step: its inputs, and those whose length it has."""
        run = self.study.runs.get(name)
        return [*self.inputs(name).values(), *(run.steps_of if run else [])]

    def indexes(self, name: str) -> set[str]:
        """The study's own indexes that a step reads."""
        chosen: SelectionStep | RunStep = self.study.selections.get(name) or self.study.runs[name]
        names = {chosen.index}
        if isinstance(chosen, RunStep):
            names |= {chosen.evaluate, *(group.index for group in chosen.groups.values())}
        return {found for found in names if found in self.study.indexes}

    def index_inputs(self, name: str) -> list[str]:
        """The study's own indexes that an index is made of."""
        index = self.study.indexes[name]
        names = [index.vocabulary_of, index.draw.of if index.draw else None]
        return [other for other in names if other in self.study.indexes and other is not None]

    def axes_of_index(self, name: str) -> set[str]:
        """The axes that an index depends on."""
        own = set(_named(self.study.indexes[name].model_dump(), f"indexes.{name}", self.study))
        return own.union(*(self.axes_of_index(other) for other in self.index_inputs(name)))

    def axes_of(self, name: str) -> set[str]:
        """The axes that a step depends on; a run always on the seed, unless it sets its own."""
        if name not in self._axes:
            chosen: SelectionStep | RunStep = self.study.selections.get(name) or self.study.runs[name]
            axes = set(_named(chosen.model_dump(), f"{self.kind(name)}.{name}", self.study))
            if isinstance(chosen, RunStep):
                axes |= set(chosen.vary)
                if SEED not in chosen.set:
                    axes.add(SEED)
            axes = axes.union(*(self.axes_of(other) for other in self.inputs(name).values()))
            self._axes[name] = axes.union(*(self.axes_of_index(other) for other in self.indexes(name)))
        return self._axes[name]


def _named(tree: Any, where: str, study: StudyConfig) -> Iterator[str]:
    """The axes that texts within `tree` name."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _named(value, where, study)
    elif isinstance(tree, list):
        for value in tree:
            yield from _named(value, where, study)
    elif isinstance(tree, str) and tree.startswith("$"):
        axis = tree[1:].partition(".")[0]
        if axis not in study.axis_names:
            known = ", ".join(study.axis_names)
            raise UsageError(f"{where}: {tree} names no axis; the axes are {known}")
        yield axis


def _replace(tree: Any, study: StudyConfig, values: Values, where: str) -> Any:
    if isinstance(tree, dict):
        return {key: _replace(value, study, values, where) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace(value, study, values, where) for value in tree]
    if not (isinstance(tree, str) and tree.startswith("$")):
        return tree
    axis, dot, key = tree[1:].partition(".")
    value, variants = values[axis], study.axes.get(axis)
    if not isinstance(variants, dict):
        if dot:
            raise UsageError(f"{where}: {tree}: the values of the axis {axis!r} are no mappings")
        return value
    if key not in variants[str(value)]:
        have = ", ".join(variants[str(value)]) or "nothing"
        raise UsageError(f"{where}: {tree}: expected a key of axes.{axis}.{value}, which has {have}")
    return variants[str(value)][key]


def _combinations(axes: Mapping[str, list[Scalar]], wanted: set[str]) -> Iterator[Values]:
    """Every combination of the axes wanted, in the order of `axes`, the last changing fastest."""
    names = [axis for axis in axes if axis in wanted]
    for chosen in itertools.product(*(axes[axis] for axis in names)):
        yield dict(zip(names, chosen, strict=True))


def _only(values: Values, axes: Mapping[str, list[Scalar]], wanted: set[str]) -> Values:
    return {axis: values[axis] for axis in axes if axis in wanted}


def _place(name: str, values: Values) -> Place:
    return Place(name, tuple(values.items()))


def _sorted(names: Iterable[str], inputs: Any) -> list[str]:
    """`names`, each after its inputs; UsageError where they go in a circle."""
    done: dict[str, bool] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UsageError(f"the steps {' -> '.join([*path, name])} need one another; break the circle")
        if name not in done:
            for other in inputs(name):
                visit(other, (*path, name))
            done[name] = True

    for name in names:
        visit(name, ())
    return list(done)
