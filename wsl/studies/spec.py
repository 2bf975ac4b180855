"""What a study is, as in its YAML: data, axes, steps, figures and findings.

    axes:        what is varied; every seed too
    indexes:     indexes made for the study, beside those of the workspace
    selections:  steps that select pseudo-labels
    runs:        steps that train
    figures:     what is drawn over the results
    findings:    what is claimed of them, tested seed by seed

A step names other steps as its inputs, and axes as `$axis` (or `$axis.key`, where the values of the axis
are mappings). It is made once for every combination of the axes that it or its inputs name, so a teacher that
does not depend on K is trained once for a sweep over K.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsl.workspace.config import IndexConfig
from wsl.workspace.settings import Config, Positive
from wsl.workspace.stage import Stage

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")]
Scalar = str | int | float | bool
Reference = Annotated[str, Field(pattern=r"^\$")]
"""``$axis.key``, in place of a value."""
SEED = "seed"
"""The axis that every run has."""


class CarriedData(Config):
    """One of the sets that the package carries, laid out as a workspace for the study."""

    dataset: Literal["fashion-mnist", "openclipart"]
    num_labelled: Positive = 500
    """fashion-mnist: images in D."""


class ShareAxis(Config):
    """An axis of numbers of images: shares of an index's size over its number of classes."""

    of: str
    """The index whose images are shared out."""
    classes: str
    """The index whose labels are the classes."""
    values: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class Draw(Config):
    """Some of an index's images, drawn by a hash of their keys: a smaller draw is within a larger one."""

    of: str | None = None
    """The index whose keys (and first labels) are drawn from."""
    truth: str | None = None
    """A table of ``key`` and ``class`` to draw from instead."""
    num_images: int | str | None = None
    """Images in all."""
    share: float | str | None = None
    """The share of the images in all."""
    per_class: float | str | None = None
    """Images of each class, or below 1 their share, where `classes` has no other number."""
    classes: dict[int, float | str] | Reference = {}
    """The same of single classes."""
    rest: bool = False
    """Take what the draw would leave."""
    seed: int | str = 0

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.of is None) == (self.truth is None):
            raise ValueError("draw: expected either `of`, an index, or `truth`, a table of key and class")
        ways = [self.num_images is not None, self.share is not None]
        ways.append(self.per_class is not None or bool(self.classes))
        if sum(ways) != 1:
            raise ValueError("draw: expected one of num_images, share, or per_class with classes")
        return self


class StudyIndex(IndexConfig):
    """An index of a study: that of a workspace, and which of its images it takes."""

    like: str | None = None
    """The workspace's index whose settings it has, where it has none of its own."""
    set: dict[str, Any] = {}
    """Settings changed, such as {vocabulary.max_labels: $labels}."""
    draw: Draw | None = None
    vocabulary_of: str | None = None
    """The index of this study whose vocabulary it has."""


class SelectionStep(Config):
    """Pseudo-labels of an index by a teacher."""

    teacher: str
    """The run that scores."""
    index: str
    k: int | str
    """Images of each class; ``all`` takes every image, with P = 1 by its best class."""
    p: int | str = 10
    order: str = "class-first"
    limit: int | str | None = None
    """Keep this many pairs in all, the best of all classes together (unbalanced selection)."""
    truth: str | None = None
    """A table of ``key`` and ``class``: the true classes, to measure by. Keys it lacks are of no class."""
    flip: bool = True
    """Score the mirror image too."""


class Group(Config):
    """Classes whose recall is averaged: named by number, or by how many images an index has of them."""

    classes: list[int] | Reference = []
    index: str | None = None
    min_images: int = 0
    max_images: int | None = None


class RunStep(Config):
    """A stage of training; what it leaves out comes from the workspace's `wsl.yaml`."""

    stage: Stage
    like: Stage | None = None
    """The workspace's stage whose config and indexes it has; absent, its own."""
    config: str | None = None
    """The stage's YAML, seen from the workspace, else from the configs of the package."""
    steps_of: list[str] = []
    """Runs whose steps together it takes, so that they are compared after as many."""
    index: str | None = None
    evaluate: str | None = None
    """The held-out index; ``none`` where the labels of the workspace's are others."""
    init: str | None = None
    """The run whose weights it starts from."""
    pseudolabels: str | None = None
    """The selection it trains on."""
    set: dict[str, Any] = {}
    """Settings changed, such as {optimizer.lr: 0.05, data.label_noise: $noise}."""
    vary: list[str] = []
    """Axes whose values are mappings of settings to change."""
    groups: dict[Name, Group] = {}
    """Recalls to average: ``recall_<name>`` and, with more than ten classes, ``recall_at_10_<name>``."""


class Figure(Config):
    """A plot of one metric over one axis, means over seeds with their 95 % intervals."""

    title: str
    text: str = ""
    """What the reader should see, and what not to conclude."""
    metric: str = "top1"
    x: str
    """The axis: numbers make a line, names bars."""
    x_label: str = ""
    """What the axis is called; its name where empty."""
    steps: dict[str, str]
    """Steps that depend on the axis, and how they are called."""
    by: str | None = None
    """Another axis: a line or a group of bars for each of its values."""
    where: dict[str, Scalar] = {}
    """Values of further axes, or ``best``; rows of others are left out."""
    across: dict[str, str] = {}
    """Steps that do not depend on the axis, drawn as bands; of several variants the best mean."""
    reference: str | None = None
    """The published figure, in words with its source."""
    reference_points: list[tuple[float | str, float]] = []
    """Published values by x, in the unit of the metric (0.79 for 79 %)."""


class Side(Config):
    """One side of a comparison: a step, and the values of its axes."""

    step: str
    where: dict[str, Scalar] = {}
    """Values of axes; ``best`` takes the value with the best mean over seeds."""
    metric: str | None = None


class Finding(Config):
    """A claim about a difference, tested seed by seed; without a bound, that it is above 0."""

    claim: str
    of: Side
    less: Side
    metric: str = "top1"
    at_least: float | None = None
    """The claim is met where the mean difference is no less."""
    at_most: float | None = None
    """The claim is met where the mean difference is no more."""
    each_at_least: float | None = None
    """And that of no seed is less than this."""


class Peak(Config):
    """A claim that the mean of a metric has its highest value inside the range of an axis."""

    claim: str
    step: str
    axis: str
    metric: str = "top1"
    where: dict[str, Scalar] = {}


class StudyConfig(Config):
    """A study, the content of `configs/studies/*.yaml`."""

    title: str
    about: str = ""
    data: dict[Name, CarriedData] = {}
    """Bundled sets laid out for it; {NAME} in a path means their folder."""
    workspace: str | None = None
    """Whose stages and indexes are meant: a name of `data`; absent, the workspace it is started in."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    axes: dict[Name, list[Scalar] | dict[str, dict[str, Any]]] = {}
    """What is varied: values, or names of mappings."""
    shares: dict[Name, ShareAxis] = {}
    """Axes of numbers of images."""
    indexes: dict[Name, StudyIndex] = {}
    selections: dict[Name, SelectionStep] = {}
    runs: dict[Name, RunStep] = {}
    figures: list[Figure] = []
    findings: list[Finding] = []
    peaks: list[Peak] = []
    limits: str = ""
    """What the results do not show."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for holds, text in self._faults():
            if holds:
                raise ValueError(text)
        return self

    @property
    def axis_names(self) -> list[str]:
        """All axes, the seed last."""
        return [*self.axes, *self.shares, SEED]

    def _faults(self) -> list[tuple[bool, str]]:
        steps, axes = [*self.selections, *self.runs], self.axis_names
        twice = {name for name in steps if name in self.selections and name in self.runs}
        faults: list[tuple[bool, str]] = [
            (not self.runs, "runs: a study needs at least one"),
            (bool(twice), f"{sorted(twice)} name both a selection and a run"),
            (len(set(axes)) < len(axes), "axes and shares must have different names, and none 'seed'"),
            (len(set(self.seeds)) < len(self.seeds), "seeds: each once"),
            (
                self.workspace is not None and self.workspace not in self.data,
                f"workspace: {self.workspace!r} is no name of data ({', '.join(self.data) or 'empty'})",
            ),
        ]

        # Names that are not there would otherwise show only after hours of training.
        for axis, values in self.axes.items():
            faults.append((len(values) == 0, f"axes.{axis}: expected at least one value"))
        for name, select in self.selections.items():
            faults.append(_unknown(f"selections.{name}.teacher", select.teacher, self.runs))
        for name, run in self.runs.items():
            if run.init is not None:
                faults.append(_unknown(f"runs.{name}.init", run.init, self.runs))
            if run.pseudolabels is not None:
                where = f"runs.{name}.pseudolabels"
                faults.append(_unknown(where, run.pseudolabels, self.selections))
            faults += [_unknown(f"runs.{name}.vary", axis, self.axes) for axis in run.vary]
            faults += [_unknown(f"runs.{name}.steps_of", other, self.runs) for other in run.steps_of]
        for number, figure in enumerate(self.figures):
            used = [figure.x, *figure.where, *([figure.by] if figure.by else [])]
            faults += [_unknown(f"figures.{number}", axis, axes) for axis in used]
            faults += [_unknown(f"figures.{number}", step, steps) for step in [*figure.steps, *figure.across]]
        for number, finding in enumerate(self.findings):
            for side in (finding.of, finding.less):
                faults.append(_unknown(f"findings.{number}", side.step, steps))
                faults += [_unknown(f"findings.{number}", axis, axes) for axis in side.where]
        for number, peak in enumerate(self.peaks):
            faults.append(_unknown(f"peaks.{number}", peak.step, steps))
            faults += [_unknown(f"peaks.{number}", axis, axes) for axis in [peak.axis, *peak.where]]
        return faults


def _unknown(where: str, name: str, known: Any) -> tuple[bool, str]:
    return name not in known, f"{where}: there is no {name!r} (there are: {', '.join(known) or 'none'})"
