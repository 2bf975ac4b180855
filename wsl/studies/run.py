"""Running a study: its data laid out, its steps made one after another in this process, its results written.

DeepSpeed starts once. What is made already, by this study or another one under the same root, is not made
again; a study that was killed resumes where it was, within a run from its newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import yaml

from wsl import carried
from wsl._core import UsageError, WslError
from wsl.data.dataset import sharing_decoded
from wsl.index.mapped import Index
from wsl.progress import silent
from wsl.studies.data import StudyData, lay_out
from wsl.studies.making import make
from wsl.studies.measures import measure
from wsl.studies.plan import IndexPlan, Place, axis_values, plan_indexes, plan_steps
from wsl.studies.progress import Progress
from wsl.studies.results import results_table, write_results
from wsl.studies.spec import SEED, Scalar, StudyConfig
from wsl.studies.steps import Steps
from wsl.workspace.layout import Workspace
from wsl.workspace.settings import check, load

Note = Callable[[str], object]
FOLDER = "studies"


@dataclass(frozen=True)
class StudyRequest:
    """What a study is asked for."""

    study: str
    """A file, or the name of one in configs/studies."""
    out: Path | None = None
    """Folder of all studies; default: `studies` in the workspace, or here, of a study that brings data."""
    workspace: Path | None = None
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Full sets in the place of bundled ones, by name of the study's data."""
    overrides: Sequence[str] = ()
    """Settings changed in every run, KEY=VALUE."""
    axes: Sequence[str] = ()
    """Other values of axes, AXIS=VALUE,VALUE."""
    dry_run: bool = False
    """Say what would be made, and make nothing but the data."""


@dataclass(frozen=True)
class StudyResult:
    """What a study came to."""

    name: str
    folder: Path
    config: StudyConfig
    table: pl.DataFrame
    num_new: int
    """Steps made now."""
    num_missing: int
    """Steps that are not made: of a dry run."""


def study_file(name: str) -> Path:
    """The YAML of a study: a file, or one of the package's by name; UsageError where there is none."""
    folder = carried.configs_folder() / "studies"
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UsageError(f"there is no study {name!r}: expected a YAML file, or one of {known}")


def run_study(request: StudyRequest, *, note: Note = silent) -> StudyResult:
    """Makes what is missing of a study and writes `<out>/<name>/results.parquet`.

    Raises what the step that fails raises, with its name; what was made before stays and is in the results.
    """
    file = study_file(request.study)
    study = with_axes(load(StudyConfig, file), request.axes)
    root = _root(request, study)
    data = lay_out(study, root, request.workspace, request.sources, note)
    axes = _build_indexes(study, data, note)
    plan = plan_steps(study, axes)
    steps = Steps(data, plan, request.overrides)
    folder = root / file.stem
    progress = Progress(study.title, steps.found)
    made = _Made(study, data, steps, progress, folder)
    made.take_known()
    if request.dry_run:
        progress.console.print(progress.table())
    else:
        made.make_missing()
    num_missing = len(plan.steps) - len(made.measures)
    return StudyResult(file.stem, folder, study, made.table(), made.num_new, num_missing)


class _Made:
    """The steps of a study that are made, and what was measured of them."""

    def __init__(
        self, study: StudyConfig, data: StudyData, steps: Steps, progress: Progress, folder: Path
    ) -> None:
        self.study, self.data, self.steps = study, data, steps
        self.progress, self.folder = progress, folder
        self.measures: dict[Place, dict[str, float]] = {}
        self.num_new = 0

    def take_known(self) -> None:
        """Counts in what is made already."""
        for place, step in self.steps.found.items():
            if step.is_made:
                self.progress.end(place, self._measure(place)["seconds"])

    def make_missing(self) -> None:
        """Makes the rest, each after what it needs; the results are written whatever happens."""
        try:
            with self.progress.shown(), sharing_decoded():
                for place, step in self.steps.found.items():
                    if place in self.measures:
                        continue
                    if not step.is_made:
                        self.progress.begin(place)
                        try:
                            make(step)
                        except WslError as error:
                            error.args = (f"{place}: {error}",)
                            raise
                        self.num_new += 1
                    measures = self._measure(place)
                    self.progress.end(place, measures["seconds"], measures)
        finally:
            write_results(self.table(), self.study, self.folder)

    def _measure(self, place: Place) -> dict[str, float]:
        self.measures[place] = measure(self.steps.found[place], self.data)
        return self.measures[place]

    def table(self) -> pl.DataFrame:
        """The results so far."""
        return results_table(self.steps.plan.axes, self.steps.found, self.measures, self.data.root)


def _root(request: StudyRequest, study: StudyConfig) -> Path:
    if request.out is not None:
        return request.out.resolve()
    if study.workspace is not None and request.workspace is None:
        return Path(FOLDER).resolve()
    try:
        return Workspace.find(request.workspace).root / FOLDER
    except UsageError as error:
        brought = [path.stem for path in (carried.configs_folder() / "studies").glob("*-*.yaml")]
        names = ", ".join(sorted(brought))
        raise UsageError(f"{error} Or take a study that brings its data along: {names}") from None


def _build_indexes(study: StudyConfig, data: StudyData, note: Note) -> dict[str, list[Scalar]]:
    """Builds the indexes of the study; the axes with their values.

    Axes of numbers of images need the sizes of indexes, which must not depend on them.
    """
    bare = axis_values(study, {})
    built: dict[Place, IndexPlan] = {}

    def build(plans: dict[Place, IndexPlan]) -> None:
        for place, plan in plans.items():
            if place not in built:
                data.make(plan, {p.name: p for p in plans if set(p.values) <= set(place.values)}, note)
                built[place] = plan

    # First those indexes that the shares are of, since their sizes give the axes' values.
    if study.shares:
        fixed = {name for axis in study.shares.values() for name in (axis.of, axis.classes)}
        build(plan_indexes(study, bare, only=fixed))
    shares: dict[str, list[int]] = {}
    for axis, share in study.shares.items():
        places = {place.name: place for place in built}
        number = len(Index.open(data.index(share.of, places)))
        num_classes = Index.open(data.index(share.classes, places)).num_labels
        if num_classes < 1:
            raise UsageError(f"shares.{axis}.classes: the index {share.classes!r} has no labels")
        shares[axis] = list(
            dict.fromkeys(max(round(value * number / num_classes), 1) for value in share.values)
        )

    # Now all axes are known, and with them the rest of the indexes.
    axes = axis_values(study, shares)
    build(plan_indexes(study, axes))
    return axes


def with_axes(study: StudyConfig, changes: Sequence[str]) -> StudyConfig:
    """The study with other values of axes: ``AXIS=VALUE,VALUE``; of mappings, some of their names."""
    tree = study.model_dump(exclude_unset=True)
    for change in changes:
        axis, equals, text = change.partition("=")
        if axis not in study.axis_names or not equals:
            known = ", ".join(study.axis_names)
            raise UsageError(f"--axis {change}: expected AXIS=VALUE,VALUE with an axis of {known}")
        values = [yaml.safe_load(value) for value in text.split(",")]
        variants = study.axes.get(axis)
        if axis == SEED:
            tree["seeds"] = values

        # A variant is a name for several settings, so only names that the study has can be chosen.
        elif isinstance(variants, dict):
            unknown = [value for value in values if value not in variants]
            if unknown:
                raise UsageError(f"--axis {change}: expected some of {', '.join(variants)}, got {unknown[0]}")
            tree["axes"][axis] = {value: variants[value] for value in values}
        else:
            # A share that is given as numbers is an axis like any other.
            tree.get("shares", {}).pop(axis, None)
            tree.setdefault("axes", {})[axis] = values
    return check(StudyConfig, tree, "--axis")
