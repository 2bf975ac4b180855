"""A workspace: a folder with a `wsl.yaml`, and where everything made from it is.

Commands ask the workspace for their inputs, so that they need no paths; what is missing is a
UsageError that names the command to run first. Nothing here reads data.

    wsl.yaml
    index/<name>/            the indexes
    runs/<stage>/            the trained stages
    predictions/<index>/     the teacher's predictions
    pseudolabels.parquet     what the selection chose
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from wsl._core import UsageError
from wsl.files import stores
from wsl.workspace.config import IndexConfig, StageSource, WorkspaceConfig
from wsl.workspace.run import is_complete
from wsl.workspace.settings import load
from wsl.workspace.stage import Stage

WORKSPACE_FILE = "wsl.yaml"
ENVIRONMENT = "WSL_WORKSPACE"
PSEUDOLABELS = "pseudolabels.parquet"


@dataclass(frozen=True)
class StageInputs:
    """What a stage reads and where it writes; every path is absolute."""

    config: Path
    """The stage's YAML."""
    index: Path
    """The index it trains on."""
    out: Path
    """Its run folder."""
    evaluate: Path | None = None
    """The held-out index."""
    pseudolabels: Path | None = None
    """The selection, for the student."""
    init: Path | None = None
    """The run whose weights it starts from, or a file of downloaded ones."""
    predictions: Path | None = None
    """The folder of the teacher's scores, for a student that learns from them."""
    mixed: tuple[tuple[Path, float], ...] = ()
    """Where it trains on several indexes, all of them with their weights; `index` is the first."""

    @property
    def named(self) -> str:
        """The indexes that it trains on, for messages."""
        return " and ".join(str(path) for path, _ in self.mixed) or str(self.index)

    def replace(self, **paths: Path | None) -> StageInputs:
        """The same with other paths."""
        return dataclasses.replace(self, **paths)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Workspace:
    """A folder with a `wsl.yaml`."""

    root: Path
    config: WorkspaceConfig

    @classmethod
    def find(cls, folder: Path | None = None) -> Workspace:
        """Opens `folder`, or $WSL_WORKSPACE, or the current folder; UsageError where none is there."""
        root = (folder or Path(os.environ.get(ENVIRONMENT) or ".")).resolve()
        file = root / WORKSPACE_FILE
        if not file.is_file():
            raise UsageError(
                f"{root} is no workspace: it has no {WORKSPACE_FILE}. Make one with "
                f"'wsl init {root} --dataset fashion-mnist', or name one with --workspace DIR."
            )
        return cls(root, load(WorkspaceConfig, file))

    def stores(self) -> AbstractContextManager[None]:
        """A scope in which object stores are reached as `wsl.yaml` sets; nothing else changes that."""
        return stores.as_set_by(self.config.storage.settings(self.root))

    def index(self, name: str) -> IndexConfig:
        """The settings of the index `name`."""
        try:
            return self.config.indexes[name]
        except KeyError:
            names = ", ".join(self.config.indexes)
            raise UsageError(f"{self.file} names no index {name!r}; it names {names}") from None

    @property
    def file(self) -> Path:
        """The path of `wsl.yaml`."""
        return self.root / WORKSPACE_FILE

    def index_path(self, name: str) -> Path:
        """Where the index `name` is or will be."""
        self.index(name)
        return self.root / "index" / name

    def built_index(self, name: str) -> Path:
        """Where the index `name` is; UsageError while it is not built."""
        path = self.index_path(name)
        if not (path / "manifest.json").is_file():
            raise UsageError(f"the index {path} is not built yet; run 'wsl index build {name}' first")
        return path

    def run_path(self, stage: Stage) -> Path:
        """Where the stage's run is or will be."""
        return self.root / "runs" / stage

    def complete_run(self, stage: Stage) -> Path:
        """The newest complete run of `stage` (`runs/<stage>` or `runs/<stage>-*`)."""
        runs = [self.run_path(stage), *self.root.glob(f"runs/{stage}-*")]
        complete = [run for run in runs if is_complete(run)]
        if not complete:
            raise UsageError(
                f"there is no complete {stage} run under {self.root / 'runs'}; "
                f"run 'wsl train --stage {stage}' first"
            )
        return max(complete, key=lambda run: (run / "run.json").stat().st_mtime_ns)

    def predictions_path(self, name: str) -> Path:
        """Where the teacher's predictions of the index `name` are or will be."""
        return self.root / "predictions" / name

    @property
    def pseudolabels(self) -> Path:
        """Where the selection is written."""
        return self.root / PSEUDOLABELS

    def unlabelled(self) -> str:
        """The name of the index that the teacher scores: the student's, else `unlabelled`."""
        student = self.config.stages.get("student")
        name = next(iter(student.weights)) if student else "unlabelled"
        self.index(name)
        return name

    def stage(self, stage: Stage) -> StageSource:
        """The stage's entry in `wsl.yaml`."""
        source = self.config.stages.get(stage)
        if source is None:
            known = ", ".join(self.config.stages) or "none"
            raise UsageError(
                f"{self.file} has no stage {stage!r} (it has: {known}); "
                f"add 'stages.{stage}: {{config: ..., index: ...}}'"
            )
        return source

    def stage_inputs(
        self,
        stage: Stage,
        *,
        config: Path | None = None,
        init: Path | None = None,
        out: Path | None = None,
        pseudolabels: Path | None = None,
    ) -> StageInputs:
        """Everything `stage` needs, each piece checked to be there.

        `config`, `init`, `out` and `pseudolabels` replace what the workspace would choose.
        """
        # All that may be missing is looked for here, so that a stage fails before it has begun.
        source = self.stage(stage)
        file = config or self.path(source.config)
        if not file.is_file():
            raise UsageError(f"the config of stage {stage!r} is not there: {file}")
        if stage == "student":
            pseudolabels = pseudolabels or self.pseudolabels
            if not pseudolabels.is_file():
                raise UsageError(
                    f"the student trains on pseudo-labels, and {pseudolabels} is not there; "
                    "run 'wsl pseudolabel --k K --p P' first"
                )
        if init is None and source.init is not None:
            init = self.complete_run(source.init)
        indexes = {name: self.built_index(name) for name in source.weights}
        first = next(iter(indexes))
        mixed = tuple((path, source.weights[name]) for name, path in indexes.items())
        return StageInputs(
            config=file.resolve(),
            index=indexes[first],
            out=(out or self.run_path(stage)).resolve(),
            evaluate=self.built_index(source.evaluate) if source.evaluate else None,
            pseudolabels=pseudolabels,
            init=init.resolve() if init else None,
            predictions=self._newest_predictions(first) if stage == "student" else None,
            mixed=mixed if len(mixed) > 1 else (),
        )

    def _newest_predictions(self, index: str) -> Path | None:
        """The newest teacher's folder of predictions of an index, None where nothing was scored."""
        folders = [path for path in self.predictions_path(index).glob("*") if path.is_dir()]
        return max(folders, key=lambda path: path.stat().st_mtime_ns, default=None)

    def path(self, path: Path) -> Path:
        """A path of `wsl.yaml`, which is relative to the workspace."""
        return path if path.is_absolute() else self.root / path
