"""The demo: both papers' pipelines in a few minutes on two cores, in one process.

(a) Fashion-MNIST: a teacher on 500 labelled images scores the unlabelled ones, the best of each class
train a small student, which is finetuned on the labelled images; beside it the same small network on
the labelled images alone, for as many steps (Yalniz et al. 2019).
(b) Open Clip Art: pretraining on the tags of its authors with square-root sampling, then finetuning on
20 images of each folder; beside it the same network from scratch (Mahajan et al. 2018).

DeepSpeed starts once. Run again in the same folder, what is complete is left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from wsl import carried
from wsl.demo.page import Outcome, demo_page
from wsl.figures.page import write
from wsl.index import jobs
from wsl.index.mapped import Index
from wsl.scoring import pseudolabels
from wsl.scoring.request import SelectionRequest
from wsl.training.stages import RunSummary, run_stage
from wsl.workspace.layout import Workspace
from wsl.workspace.settings import load
from wsl.workspace.stage import Stage, StageConfig

Note = Callable[[str], object]


@dataclass(frozen=True)
class DemoResult:
    """What the demo came to."""

    outcomes: list[Outcome]
    report: Path
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "outcomes": [vars(outcome) for outcome in self.outcomes],
            "report": str(self.report),
            "seconds": self.seconds,
        }


def run_demo(
    out: Path,
    *,
    note: Note,
    overrides: list[str] | None = None,
    num_labelled: int = 500,
    num_unlabelled: int | None = None,
    num_test: int | None = None,
) -> DemoResult:
    """Runs both parts in the folder `out` and writes `out/report.html`.

    `overrides` change settings of every stage (KEY=VALUE), the numbers are those of
    `wsl.carried.make_workspace`; any step that fails raises what it raises.
    """
    start = time.monotonic()
    demo = _Demo(out, note, overrides or [])
    sizes = {"num_labelled": num_labelled, "num_unlabelled": num_unlabelled, "num_test": num_test}
    outcomes = demo.fashion_mnist(sizes) + demo.openclipart()
    report = out / "report.html"
    note("report")
    write(report, demo_page(outcomes, out / "fashion-mnist", out / "openclipart", time.monotonic() - start))
    return DemoResult(outcomes, report, time.monotonic() - start)


class _Demo:
    def __init__(self, out: Path, note: Note, overrides: list[str]) -> None:
        self.out, self.note, self.overrides = out, note, overrides
        self.console = Console(stderr=True)

    def fashion_mnist(self, sizes: dict[str, int | None]) -> list[Outcome]:
        """Teacher, selection, student, finetune, and the baseline."""
        folder = self._workspace("fashion-mnist", **sizes)
        workspace = Workspace.find(folder)
        teacher = self._train(workspace, "teacher")
        built = Index.open(workspace.built_index("unlabelled"))
        k = len(built) // 10
        self.note(f"fashion-mnist: the teacher scores {len(built):,} images; the {k:,} best of each class")
        pseudolabels.select(SelectionRequest(k=k, p=10), folder, warn=self.note)
        student = self._train(workspace, "student")
        finetuned = self._train(workspace, "finetune")
        scratch = self._train(workspace, "teacher", name="scratch")

        def outcome(what: str, run: RunSummary, num_steps: int | None = None) -> Outcome:
            return _outcome("Fashion-MNIST", what, run, "top1", num_steps)

        both = student.num_steps + finetuned.num_steps
        return [
            outcome(f"teacher on {sizes['num_labelled']} labelled images", teacher),
            outcome("student on the teacher's pseudo-labels", student),
            outcome("student, finetuned on the labelled images", finetuned, both),
            outcome("the student's network on the labelled images alone", scratch),
        ]

    def openclipart(self) -> list[Outcome]:
        """Pretraining on hashtags, finetuning, and the baseline."""
        folder = self._workspace("openclipart")
        workspace = Workspace.find(folder)
        pretrained = self._train(workspace, "pretrain")
        finetuned = self._train(workspace, "finetune")
        scratch = self._train(workspace, "teacher", name="scratch", like="finetune")
        total = pretrained.num_steps + finetuned.num_steps
        return [
            _outcome("Open Clip Art", "pretrained on hashtags, finetuned", finetuned, "macro", total),
            _outcome("Open Clip Art", "the same network from scratch", scratch, "macro"),
        ]

    def _workspace(self, dataset: str, **sizes: Any) -> Path:
        folder = self.out / dataset
        self.note(f"{dataset}: workspace and indexes in {folder}")
        carried.make_workspace(folder, dataset, **sizes)
        for _, path, settings, root in jobs.index_jobs(Workspace.find(folder), None):
            jobs.build_one_index(path, settings, root)
        return folder

    def _train(
        self, workspace: Workspace, stage: Stage, name: str | None = None, like: Stage | None = None
    ) -> RunSummary:
        """Trains a stage as `wsl.yaml` has it, or the config `<dataset>-<name>` in its place."""
        config = None
        dataset = workspace.root.name
        if name is not None:
            config = workspace.root / "configs" / "stages" / f"{dataset}-{name}.yaml"
        inputs = workspace.stage_inputs(
            like or stage, config=config, out=workspace.root / "runs" / (name or stage)
        )
        if name is not None:
            inputs = inputs.replace(init=None)
        settings = load(StageConfig, inputs.config, self.overrides)
        self.note(f"{dataset}: {name or stage}, {settings.num_steps:,} steps")
        return run_stage(settings, inputs, console=self.console)


def _outcome(data: str, what: str, run: RunSummary, measure: str, num_steps: int | None = None) -> Outcome:
    accuracy = (run.evaluation or {}).get(measure, 0.0)
    return Outcome(data, what, run.num_parameters, num_steps or run.num_steps, accuracy, measure, run.seconds)
