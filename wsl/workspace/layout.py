"""A workspace: a folder with a `wsl.yaml`, and where everything made from it lies.

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
import glob
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsl._core import DataError, UsageError
from wsl.files import stores
from wsl.workspace.config import IndexConfig, Stage, StageSource, WorkspaceConfig, load

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
    """D-hat, for the student."""
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
        config = load(WorkspaceConfig, file)
        stores.use_workspace(config.storage.settings(root))
        return cls(root, config)

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
        """Where the index `name` lies or will lie."""
        self.index(name)
        return self.root / "index" / name

    def built_index(self, name: str) -> Path:
        """Where the index `name` lies; UsageError while it is not built."""
        path = self.index_path(name)
        if not (path / "manifest.json").is_file():
            raise UsageError(f"the index {path} is not built yet; run 'wsl index build {name}' first")
        return path

    def run_path(self, stage: Stage) -> Path:
        """Where the stage's run lies or will lie."""
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
        """Where the teacher's predictions of the index `name` lie or will lie."""
        return self.root / "predictions" / name

    @property
    def pseudolabels(self) -> Path:
        """Where the selection writes D-hat."""
        return self.root / PSEUDOLABELS

    def unlabelled(self) -> str:
        """The name of the index that the teacher scores: the student's, else `unlabelled`."""
        student = self.config.stages.get("student")
        name = next(iter(student.weights)) if student else "unlabelled"
        self.index(name)
        return name

    def stage(self, stage: Stage) -> StageSource:
        """What `wsl.yaml` says of the stage."""
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

        `config`, `init`, `out` and `pseudolabels` stand in for what the workspace would choose.
        """
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


def match_files(root: Path, patterns: str | list[str]) -> list[Path | str]:
    """The files of one or several globs seen from `root`, in the byte order of their paths.

    A glob may be written as ``file://`` URI, or as URI of a store: its objects are URIs. UsageError for
    another kind, and where nothing matches.
    """
    found: set[Path | str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if stores.is_remote(pattern):
            found.update(_match_objects(pattern))
            continue
        local = pattern.removeprefix("file://")
        if "://" in local:
            raise UsageError(
                f"{pattern} lies in a store of kind {local.partition('://')[0]!r}, which is not read; "
                "copy the shards to a local folder or a store of kind s3, gs or az"
            )
        matches = glob.glob(str(root / local), recursive=True)
        if not matches:
            raise UsageError(f"no file matches {pattern!r} under {root}")
        found.update(Path(match) for match in matches)
    return sorted(found, key=os.fsencode)


def _match_objects(pattern: str) -> list[str]:
    """URIs of the objects of a glob; one without a star is taken at its word."""
    if not stores.MAGIC.search(pattern):
        return [pattern]
    found = [one.uri for one in stores.listing(pattern)]
    if not found:
        raise UsageError(f"no object matches {pattern!r}; look for it by listing the bucket")
    return found


def fingerprint(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def is_complete(run: Path) -> bool:
    """Whether a run folder holds a finished run (its `run.json` says so and is written last)."""
    return (run / "run.json").is_file() and read_run(run).get("state") == "complete"


def read_run(run: Path) -> dict[str, Any]:
    """The content of a run's `run.json`; DataError where it is not JSON."""
    file = run / "run.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: expected JSON as 'wsl train' writes it, found: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content
