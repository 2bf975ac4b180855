"""The stages: what pretrain, teacher, student and finetune read, and how a run becomes a folder.

    runs/<stage>/config.yaml          the resolved config
                 run.json             inputs, state (running, complete), results; complete comes last
                 checkpoints/         see `wsl.training.checkpoint`
                 metrics.csv events/  the curves
                 model.safetensors    whole float32 weights, all that later stages read

A run is determined by its config and the fingerprints of its inputs. Run again, a complete one is
up to date, an incomplete one goes on, and one of other options is refused unless overwritten.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

import wsl
from wsl._core import DataError, UsageError
from wsl.config import Config, StageConfig, check, dump
from wsl.data.dataset import (
    Examples,
    ImageIndex,
    Images,
    LabelledExamples,
    PseudolabelledExamples,
    read_pseudolabels,
)
from wsl.data.sampler import Sampler
from wsl.models import build_model, last_layer, num_parameters
from wsl.publish import publish_text, publishing
from wsl.training import checkpoint, deepspeed
from wsl.training.export import WEIGHTS, load_run, load_weights
from wsl.training.loop import (
    Batches,
    Clock,
    CorruptCount,
    evaluate_model,
    learning_rate,
    train_step,
)
from wsl.training.metrics import Evaluation, MetricsLog
from wsl.workspace import StageInputs, fingerprint, read_run

Resume = Literal["auto", "never"] | Path

FREE_TO_CHANGE = {"checkpoint_every", "log_every", "data.num_workers", "data.cache_bytes"}
"""Settings that change no weight, so a run may go on with others."""


@dataclass(frozen=True)
class RunSummary:
    """What a stage came to."""

    run: Path
    num_steps: int
    seconds: float
    images_per_second: float
    num_parameters: int
    num_corrupt: int
    evaluation: dict[str, float] | None
    """top1, top5 and macro accuracy on the held-out index."""
    up_to_date: bool = False
    """The run was complete already."""


@dataclass
class _Task:
    """Everything a stage trains on."""

    index: ImageIndex
    examples: Examples
    num_labels: int
    class_names: list[str] | None
    vocabulary_fingerprint: Any
    inputs: dict[str, Any]
    """What determines the run beside its config."""


def run_stage(
    config: StageConfig,
    inputs: StageInputs,
    *,
    resume: Resume = "auto",
    overwrite: bool = False,
    console: Console | None = None,
) -> RunSummary:
    """Trains one stage under DeepSpeed and publishes its run folder; every rank must call it.

    Without a launcher the process trains alone. `resume`: "auto" goes on from the newest complete
    checkpoint, "never" starts at step 0, a path names one checkpoint of this run. UsageError where
    a run of other options is there and `overwrite` is not given; DataError for corrupt inputs.
    """
    rank, world_size, device = deepspeed.init_distributed()
    console = console or Console(stderr=True)
    sampler = Sampler(config.batch_size, rank, world_size)
    settings = deepspeed.read_settings(config.deepspeed, inputs.config)
    task = _prepare(config, inputs)
    finished = _look(config, inputs, task, overwrite)
    if finished is not None:
        if rank == 0:
            console.print(f"{inputs.out}: up to date", soft_wrap=True)
        return finished
    found = _find_checkpoint(config, inputs, task, resume, overwrite)
    deepspeed.barrier()
    if rank == 0:
        _begin(config, inputs, task, keep=found is not None)
    deepspeed.barrier()
    model = _make_model(config, inputs, task).to(device)
    count = num_parameters(model)
    engine, num_micro = deepspeed.initialize(config, settings, model, world_size)
    start = checkpoint.load(engine, found, rank, world_size) if found else 0
    if rank == 0 and found:
        console.print(f"{config.stage}: going on after step {start}", soft_wrap=True)
    run = _Run(config, inputs, task, engine, num_micro, sampler, device, console)
    run.train(start)
    evaluation = run.evaluate() if inputs.evaluate else None
    summary = RunSummary(
        run=inputs.out,
        num_steps=config.num_steps,
        seconds=run.clock.seconds,
        images_per_second=run.clock.images_per_second,
        num_parameters=count,
        num_corrupt=run.corrupt.num_corrupt,
        evaluation=evaluation.summary() if evaluation else None,
    )
    _publish(config, inputs, task, engine, summary, evaluation, rank)
    return summary


class _Run:
    """The state of a stage under way."""

    def __init__(
        self,
        config: StageConfig,
        inputs: StageInputs,
        task: _Task,
        engine: Any,
        num_micro: int,
        sampler: Sampler,
        device: torch.device,
        console: Console,
    ) -> None:
        self.config, self.inputs, self.task, self.engine = config, inputs, task, engine
        self.num_micro, self.sampler, self.device, self.console = num_micro, sampler, device, console
        factors = None
        if config.data.sampling != "natural" and config.stage != "student":
            factors = wsl.repeat_factors(
                cast("wsl.Index", task.index), scheme=config.data.sampling, threshold=config.data.threshold
            )
        order = wsl.EpochOrder(task.examples.num_examples, factors, seed=config.seed)
        images = Images(task.index, config.model, config.data)
        self.batches = Batches(config, images, task.examples, order, sampler)
        self.corrupt = CorruptCount(config.data.max_corrupt_share, str(inputs.index))
        self.clock = Clock()
        self._held_out: tuple[Images, ImageIndex] | None = None

    def train(self, start: int) -> None:
        """Steps `start` to the last."""
        config, rank = self.config, self.sampler.rank
        log = MetricsLog(self.inputs.out, start) if rank == 0 else None
        progress = Progress(
            TextColumn(config.stage),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=rank != 0 or not self.console.is_terminal,
            transient=True,
        )
        self.engine.train()
        if config.train == "last-layer":
            _freeze_statistics(self.engine.module)
        with contextlib.ExitStack() as ending:
            if log:
                ending.callback(log.close)
            ending.enter_context(progress)
            bar = progress.add_task(config.stage, total=config.num_steps, completed=start, note="")
            for step, batch in enumerate(self.batches.stream(start, config.num_steps), start):
                lr = learning_rate(config.optimizer, step, config.num_steps)
                result = train_step(self.engine, batch, self.num_micro, lr, step, self.device)
                self.clock.tick(config.batch_size)
                self.corrupt.add(config.batch_size, result.num_corrupt)
                note = f"loss {result.loss:.4f}  lr {lr:.4f}  {self.clock.images_per_second:,.0f} images/s"
                progress.update(bar, advance=1, note=note)
                self._after(step + 1, start, result.loss, lr, note, log)
        self.corrupt.check()

    def _after(
        self, done: int, start: int, loss: float, lr: float, note: str, log: MetricsLog | None
    ) -> None:
        """Logs, checkpoints and evaluates after `done` steps where it is time."""
        config = self.config
        if log and done == start + min(4, config.num_steps - start):
            left = config.num_steps - start
            seconds = self.clock.seconds_for(left)
            self.console.print(
                f"{config.stage}: about {seconds:,.0f} s for {left:,} steps", soft_wrap=True, highlight=False
            )
        values: dict[str, float] = {}
        last = done == config.num_steps
        if config.evaluate_every and not last and done % config.evaluate_every == 0 and self.inputs.evaluate:
            values = self.evaluate().summary()
        if log and (values or last or done % config.log_every == 0):
            speed = self.clock.images_per_second
            log.write(
                done,
                loss=loss,
                lr=lr,
                images_per_second=speed,
                num_corrupt=self.corrupt.num_corrupt,
                **values,
            )
            if not self.console.is_terminal and (last or done % (10 * config.log_every) == 0):
                line = f"{config.stage} {done}/{config.num_steps}  {note}"
                self.console.print(line, soft_wrap=True, highlight=False)
        if done % config.checkpoint_every == 0 and not last:
            state = {"position": done * config.batch_size, "inputs": self.task.inputs}
            folder = self.inputs.out / "checkpoints"
            checkpoint.save(self.engine, folder, done, state, self.sampler.rank, self.sampler.world_size)

    def evaluate(self) -> Evaluation:
        """Accuracy on the held-out index."""
        if self._held_out is None:
            assert self.inputs.evaluate is not None
            opened = wsl.Index.open(self.inputs.evaluate)
            _same_vocabulary(self.task, opened, self.inputs)
            self._held_out = Images(opened, self.config.model, self.config.data), opened
        deepspeed.average_buffers(self.engine.module)
        images, index = self._held_out
        result = evaluate_model(
            self.engine.module,
            images,
            index,
            self.task.num_labels,
            rank=self.sampler.rank,
            world_size=self.sampler.world_size,
            device=self.device,
        )
        if self.config.train == "last-layer":
            _freeze_statistics(self.engine.module)
        return result


def evaluate_run(run: Path, index: Path | ImageIndex, *, batch_size: int = 256) -> Evaluation:
    """Accuracy of a complete run on every labelled sample of `index`; one process, no DeepSpeed."""
    loaded = load_run(run)
    opened: ImageIndex = wsl.Index.open(index) if isinstance(index, Path | str) else index
    made, found = loaded.info.get("vocabulary_fingerprint"), opened.vocabulary_fingerprint
    if made is not None and found is not None and made != found:
        raise UsageError(
            f"{run} was trained on vocabulary {made}, the index has {found}; use an index of the same"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = Images(opened, loaded.config.model, loaded.config.data)
    model = loaded.model.to(device)
    result = evaluate_model(
        model, images, opened, loaded.info["num_labels"], batch_size=batch_size, device=device
    )
    corrupt = CorruptCount(loaded.config.data.max_corrupt_share, str(index))
    corrupt.num_seen, corrupt.num_corrupt = len(opened), result.num_corrupt
    corrupt.check()
    return result


def _prepare(config: StageConfig, inputs: StageInputs) -> _Task:
    """Opens what the stage reads and fixes its label set."""
    index: ImageIndex = wsl.Index.open(inputs.index)
    names = getattr(index, "class_names", None)
    vocabulary = index.vocabulary_fingerprint
    facts: dict[str, Any] = {"index_fingerprint": index.fingerprint}
    if inputs.init is not None:
        facts["init"] = fingerprint(inputs.init / WEIGHTS)
    if config.stage != "student":
        if index.num_labels < 1:
            raise UsageError(
                f"the stage {config.stage!r} needs labels, and the index {inputs.index} has none; "
                "build it with --label-kind class or hashtag"
            )
        examples: Examples = LabelledExamples(index, config.data, config.seed)
        return _Task(index, examples, index.num_labels, names, vocabulary, facts)
    if inputs.pseudolabels is None:
        raise UsageError("the student trains on pseudo-labels; make them with 'wsl pseudolabel --k K --p P'")
    table, metadata = read_pseudolabels(inputs.pseudolabels, index)
    facts["pseudolabels"] = fingerprint(inputs.pseudolabels)
    highest = int(table["class"].max() or 0) + 1  # type: ignore[arg-type]
    num_labels = int(metadata.get("num_labels") or metadata.get("num_classes") or highest)
    vocabulary = metadata.get("vocabulary_fingerprint")
    if inputs.evaluate is not None:
        held_out: ImageIndex = wsl.Index.open(inputs.evaluate)
        num_labels = max(num_labels, held_out.num_labels)
        names = getattr(held_out, "class_names", None)
    if highest > num_labels:
        raise DataError(
            f"{inputs.pseudolabels}: class {highest - 1} is beyond the {num_labels} classes it names"
        )
    examples = PseudolabelledExamples(table, config.data.target)
    return _Task(index, examples, num_labels, names, vocabulary, facts)


def _same_vocabulary(task: _Task, index: ImageIndex, inputs: StageInputs) -> None:
    made, found = task.vocabulary_fingerprint, index.vocabulary_fingerprint
    if made is not None and found is not None and made != found:
        raise UsageError(
            f"the held-out index {inputs.evaluate} has vocabulary {found}, training has {made}; "
            "build it with --vocabulary FILE of the training index"
        )


def _look(config: StageConfig, inputs: StageInputs, task: _Task, overwrite: bool) -> RunSummary | None:
    """The summary of an identical complete run; UsageError where a run of other options is there."""
    if overwrite or not (inputs.out / "run.json").is_file():
        return None
    info = read_run(inputs.out)
    changed = _differences(config, task, info)
    if changed:
        raise UsageError(
            f"{inputs.out} holds a run of other options: {', '.join(changed)} differ. "
            "Pass --overwrite to replace it, or --out DIR for another folder"
        )
    if info.get("state") != "complete":
        return None
    return RunSummary(**{**info["summary"], "run": inputs.out, "up_to_date": True})


def _differences(config: StageConfig, task: _Task, info: dict[str, Any]) -> list[str]:
    """Keys of config and inputs that are not as the run has them."""
    old = _flat(check(StageConfig, info["config"], "run.json").model_dump(mode="json"))
    new = _flat(config.model_dump(mode="json"))
    keys = [key for key in sorted(old | new) if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE]
    before = info.get("inputs", {})
    return keys + [key for key in sorted(before | task.inputs) if before.get(key) != task.inputs.get(key)]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _find_checkpoint(
    config: StageConfig, inputs: StageInputs, task: _Task, resume: Resume, overwrite: bool
) -> Path | None:
    """The checkpoint to go on from, if any."""
    if resume == "never":
        return None
    if resume != "auto":
        path = Path(resume).resolve()
        checkpoint.read_marker(path)
        run = path.parents[1]
        if run != inputs.out.resolve() or not (run / "run.json").is_file():
            raise UsageError(
                f"{path} is no checkpoint of the run {inputs.out}; a run goes on from its own checkpoints, "
                "and takes the weights of another with --init RUN"
            )
        changed = _differences(config, task, read_run(run))
        if changed:
            raise UsageError(f"{path} was made with other options: {', '.join(changed)} differ")
        return path
    if overwrite:
        return None
    return next(reversed(checkpoint.find_all(inputs.out / "checkpoints")), None)


def _begin(config: StageConfig, inputs: StageInputs, task: _Task, *, keep: bool) -> None:
    """Makes the run folder; without `keep` what an earlier run left is removed first."""
    out = inputs.out
    out.mkdir(parents=True, exist_ok=True)
    if not keep:
        for name in ("run.json", WEIGHTS, "config.yaml", "metrics.csv"):
            (out / name).unlink(missing_ok=True)
        for name in ("checkpoints", "events"):
            shutil.rmtree(out / name, ignore_errors=True)
    publish_text(out / "config.yaml", dump(config))
    publish_text(out / "run.json", json.dumps(_info(config, task, "running"), indent=2) + "\n")


def _info(config: StageConfig, task: _Task, state: str) -> dict[str, Any]:
    import deepspeed as library

    return {
        "stage": config.stage,
        "state": state,
        "num_labels": task.num_labels,
        "class_names": task.class_names,
        "vocabulary_fingerprint": task.vocabulary_fingerprint,
        "inputs": task.inputs,
        "config": config.model_dump(mode="json"),
        "versions": {
            "wsl": wsl.__version__,
            "torch": torch.__version__,
            "deepspeed": library.__version__,
            "python": platform.python_version(),
        },
    }


def _make_model(config: StageConfig, inputs: StageInputs, task: _Task) -> torch.nn.Module:
    """The network with fresh weights or those of `init`; a last layer of another label set stays fresh."""
    torch.manual_seed(config.seed)
    model = build_model(config.model, task.num_labels)
    name, layer = last_layer(model)
    if inputs.init is not None:
        loaded = load_run(inputs.init)
        _same_network(config.model, loaded.config.model, inputs.init)
        before = loaded.info.get("vocabulary_fingerprint")
        same = loaded.info["num_labels"] == task.num_labels and before in (None, task.vocabulary_fingerprint)
        load_weights(model, inputs.init / WEIGHTS, skip=None if same else name)
    elif config.train == "last-layer":
        raise UsageError("train: last-layer needs the weights of an earlier run; name one with --init RUN")
    if config.train == "last-layer":
        model.requires_grad_(False)
        layer.requires_grad_(True)
    return model


def _same_network(new: Config, old: Config, run: Path) -> None:
    fields = new.model_dump()
    changed = [key for key, value in old.model_dump().items() if fields[key] != value and key != "image_size"]
    if changed:
        settings = ", ".join(f"model.{key}={old.model_dump()[key]}" for key in changed)
        raise UsageError(f"the run {run} has another network; set {settings} to start from it")


def _freeze_statistics(model: torch.nn.Module) -> None:
    """All but the last layer in evaluation mode, so that BatchNorm's statistics stay too."""
    model.eval()


def _publish(
    config: StageConfig,
    inputs: StageInputs,
    task: _Task,
    engine: Any,
    summary: RunSummary,
    evaluation: Evaluation | None,
    rank: int,
) -> None:
    """Writes the weights, then `run.json` with state complete, and drops the checkpoints."""
    deepspeed.average_buffers(engine.module)
    weights = deepspeed.full_state(engine.module)
    if rank == 0:
        with publishing(inputs.out / WEIGHTS) as temporary:
            save_file(weights, temporary)
        info = _info(config, task, "complete") | {
            "summary": {**asdict(summary), "run": str(summary.run)},
            "evaluation": evaluation.to_dict() if evaluation else None,
        }
        publish_text(inputs.out / "run.json", json.dumps(info, indent=2) + "\n")
        shutil.rmtree(inputs.out / "checkpoints", ignore_errors=True)
    deepspeed.barrier()
