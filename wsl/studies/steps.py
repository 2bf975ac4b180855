"""The steps of a plan with their inputs known: what each is known by, and where it is.

    <root>/steps/<stage>-<fingerprint>/       a run folder, as any stage leaves it
    <root>/steps/selection-<fingerprint>/     pseudolabels.parquet
    <root>/steps/scores-<fingerprint>/        a teacher's scores of an index, once for all selections
              .../step.json                   what was made, and in how many seconds; written last

A fingerprint hashes the resolved settings of the step and the fingerprints of its indexes and of the
steps that it needs. Equal steps of any studies under one root are one folder, and what is there is not
made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsl import carried
from wsl._core import UsageError
from wsl.index.mapped import Index
from wsl.studies.data import StudyData
from wsl.studies.plan import Place, Plan, StepPlan
from wsl.studies.spec import RunStep, SelectionStep
from wsl.training.deepspeed import read_settings
from wsl.training.stages import FREE_TO_CHANGE
from wsl.workspace.config import StageSource
from wsl.workspace.layout import StageInputs
from wsl.workspace.settings import flat, load
from wsl.workspace.stage import StageConfig

DONE = "step.json"
PSEUDOLABELS = "pseudolabels.parquet"
NOT_EVALUATED = "none"
EVERY_IMAGE = "all"


@dataclass(frozen=True)
class Step:
    """A step whose inputs are known, so that its folder is."""

    plan: StepPlan
    fingerprint: str
    folder: Path
    settings: dict[str, Any]
    """Everything that determines it, beside its inputs; flat, for the results."""

    @property
    def is_made(self) -> bool:
        """Whether nothing is left to do."""
        return (self.folder / DONE).is_file()

    def told(self) -> dict[str, Any]:
        """The content of `step.json` for a step that is made."""
        return dict(json.loads((self.folder / DONE).read_text(encoding="utf-8")))

    @property
    def num_steps(self) -> int:
        """Steps of training."""
        return 0


@dataclass(frozen=True)
class Training(Step):
    """A run of a stage."""

    asked: RunStep
    config: StageConfig
    inputs: StageInputs

    @property
    def num_steps(self) -> int:
        return self.config.num_steps


@dataclass
class Scoring:
    """One pass of a teacher over an index, for all selections that need it."""

    teacher: Path
    index: Path
    folder: Path
    flip: bool
    largest_k: int = 1
    whole: bool = False
    """Whether every score is kept, since no single state is enough for all that need them."""


@dataclass(frozen=True)
class Selecting(Step):
    """A selection of pseudo-labels."""

    asked: SelectionStep
    k: int
    p: int
    limit: int | None
    scoring: Scoring

    @property
    def pseudolabels(self) -> Path:
        """The selection."""
        return self.folder / PSEUDOLABELS


@dataclass
class Steps:
    """All steps of a plan; UsageError where the settings of one are not valid."""

    data: StudyData
    plan: Plan
    overrides: Sequence[str] = ()
    """Settings changed in every run, KEY=VALUE."""
    found: dict[Place, Step] = field(default_factory=dict)
    _scoring: dict[Path, Scoring] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place, plan in self.plan.steps.items():
            asked = plan.settings
            if isinstance(asked, SelectionStep):
                self.found[place] = self._selecting(plan, asked)
            else:
                self.found[place] = self._training(plan, asked)

    @property
    def folder(self) -> Path:
        """Where all steps are."""
        return self.data.root / "steps"

    def _selecting(self, plan: StepPlan, asked: SelectionStep) -> Selecting:
        teacher = self.found[plan.inputs["teacher"]]
        index = self.data.index(asked.index, plan.indexes)
        opened = Index.open(index)
        k = len(opened) if asked.k == EVERY_IMAGE else _number(asked.k, f"{plan.place}: k")
        p = _number(asked.p, f"{plan.place}: p")
        limit = None if asked.limit is None else _number(asked.limit, f"{plan.place}: limit")
        pass_mark = _fingerprint([teacher.fingerprint, opened.fingerprint, asked.flip])
        scores = self.folder / f"scores-{pass_mark[:16]}"
        scoring = self._scoring.setdefault(scores, Scoring(teacher.folder, index, scores, asked.flip))
        scoring.largest_k = max(scoring.largest_k, k)
        scoring.whole |= asked.order != "class-first"
        chosen = {"k": k, "p": p, "order": asked.order, "limit": limit, "flip": asked.flip}
        mark = _fingerprint([pass_mark, chosen])
        folder = self.folder / f"selection-{mark[:16]}"
        return Selecting(plan, mark, folder, chosen, asked=asked, k=k, p=p, limit=limit, scoring=scoring)

    def _training(self, plan: StepPlan, asked: RunStep) -> Training:
        # The study's own settings come before those of the workspace.
        source = self.data.workspace.config.stages.get(asked.like or asked.stage)
        file = self._config_file(plan, asked, source)
        config = load(StageConfig, file, [*self._changes(plan, asked), *self.overrides])
        if config.stage != asked.stage:
            raise UsageError(
                f"{plan.place}: {file} configures the stage {config.stage!r}, not {asked.stage!r}"
            )
        weights = {asked.index: 1.0} if asked.index else source.weights if source else {}
        if not weights:
            raise UsageError(f"{plan.place}: the study names no index, and neither does the workspace")
        trained_on = [
            (self.data.index(name, plan.indexes).resolve(), weight) for name, weight in weights.items()
        ]
        evaluate = asked.evaluate or (source.evaluate if source else None)
        held_out = None if evaluate in (None, NOT_EVALUATED) else self.data.index(evaluate, plan.indexes)

        # Settings that do not change the weights may differ without making it another step.
        chosen = flat(config.model_dump(mode="json", exclude={"deepspeed"}))
        chosen = {key: value for key, value in chosen.items() if key not in FREE_TO_CHANGE}
        content = {
            "config": chosen,
            "deepspeed": read_settings(config.deepspeed, file),
            "index": [(Index.open(path).fingerprint, weight) for path, weight in trained_on],
            "evaluate": None if held_out is None else Index.open(held_out).fingerprint,
            "inputs": {key: self.found[place].fingerprint for key, place in plan.inputs.items()},
        }
        mark = _fingerprint(content)
        folder = self.folder / f"{asked.stage}-{mark[:16]}"
        inputs = StageInputs(
            config=file,
            index=trained_on[0][0],
            out=folder.resolve(),
            evaluate=held_out,
            mixed=tuple(trained_on) if len(trained_on) > 1 else (),
        )
        inputs = self._with_files(plan, config, inputs)
        return Training(plan, mark, folder, chosen, asked=asked, config=config, inputs=inputs)

    def _changes(self, plan: StepPlan, asked: RunStep) -> list[str]:
        """What a run has otherwise than its config, as KEY=VALUE."""
        changes: dict[str, Any] = {}
        if asked.like is not None:
            changes["stage"] = asked.stage
        if asked.steps_of:
            changes["num_steps"] = sum(self._length(plan, name) for name in asked.steps_of)
        return [f"{key}={json.dumps(value)}" for key, value in (changes | asked.set).items()]

    def _length(self, plan: StepPlan, name: str) -> int:
        """The steps of training of a run, which must be one number whatever its axes."""
        found = {step.num_steps for place, step in self.found.items() if place.name == name}
        if len(found) != 1:
            raise UsageError(
                f"{plan.place}: steps_of names {name}, whose runs are of different lengths; set num_steps"
            )
        return found.pop()

    def _with_files(self, plan: StepPlan, config: StageConfig, inputs: StageInputs) -> StageInputs:
        """`inputs` with the files of the steps that a run needs."""
        if "init" in plan.inputs:
            inputs = inputs.replace(init=self.found[plan.inputs["init"]].folder.resolve())
        if "pseudolabels" not in plan.inputs:
            return inputs
        selecting = self.found[plan.inputs["pseudolabels"]]
        assert isinstance(selecting, Selecting)
        if config.distillation.weight > 0:
            # A student that learns from its teacher's scores needs all of them.
            selecting.scoring.whole = True
            inputs = inputs.replace(predictions=selecting.scoring.folder.resolve())
        return inputs.replace(pseudolabels=selecting.pseudolabels.resolve())

    def _config_file(self, plan: StepPlan, asked: RunStep, source: StageSource | None) -> Path:
        """The stage's YAML: of the workspace, else of the package."""
        if asked.config is None:
            if source is None:
                stage = asked.like or asked.stage
                raise UsageError(
                    f"{plan.place}: the study names no config, and {self.data.workspace.file} has no stage "
                    f"{stage!r}; add 'stages.{stage}: {{config: ..., index: ...}}' to it"
                )
            return self.data.workspace.path(source.config)
        places = [Path(self.data.path(asked.config)), carried.configs_folder().parent / asked.config]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UsageError(f"{plan.place}: the config is not there: {places[0]}")
        return found.resolve()


def _number(value: int | str, where: str) -> int:
    """A number from 1, which was one or took the place of an axis."""
    if isinstance(value, int) and value >= 1:
        return value
    raise UsageError(f"{where}: expected a whole number from 1, got {value!r}")


def _fingerprint(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
