"""A stage under way: steps, log, checkpoints, evaluations, and stopping when asked."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from wsl.data.dataset import ImageIndex, Images
from wsl.data.loader import CorruptCount, Loader
from wsl.data.sampler import Sampler
from wsl.files.publish import publish_text, publishing
from wsl.index.mapped import Index
from wsl.training import checkpoint, deepspeed
from wsl.training.distillation import TeacherScores
from wsl.training.ema import Ema
from wsl.training.evaluation import evaluate_model
from wsl.training.export import BEST
from wsl.training.loop import Batch, Batches, Clock, memory_bytes, peak_memory_bytes
from wsl.training.metrics import Evaluation, MetricsLog
from wsl.training.schedule import learning_rate
from wsl.training.step import NotFiniteError, Stepper, StepResult
from wsl.training.stop import Stopped, StopRequest
from wsl.training.task import Task, make_order
from wsl.training.watch import DATA, Watch
from wsl.workspace.layout import StageInputs
from wsl.workspace.stage import StageConfig

NOT_FINITE = "not-finite.json"


class Trainer:
    """The state of a stage under way on one rank."""

    def __init__(
        self,
        config: StageConfig,
        inputs: StageInputs,
        task: Task,
        engine: Any,
        sampler: Sampler,
        device: torch.device,
        console: Console,
        watch: Watch,
    ) -> None:
        self.config, self.inputs, self.task, self.engine = config, inputs, task, engine
        self.sampler, self.device, self.console, self.watch = sampler, device, console, watch
        self.ema = Ema(engine.module, config.ema_decay) if config.ema_decay is not None else None
        images = Images.of(task.index, config.model, config.data)
        teacher = None if task.samples is None else TeacherScores(inputs.out, task.samples)
        loader = Loader(images, task.examples, make_order(config, task), config.seed)
        self.batches = Batches(config, loader, sampler, teacher)
        self.corrupt = CorruptCount(
            config.data.max_corrupt_share,
            inputs.named,
        )
        self.clock = Clock()
        self.loss: float | None = None
        self.best: float | None = None
        """The best top-1 of all evaluations."""
        self._held_out: tuple[Images, ImageIndex] | None = None

    def restore(self, marker: dict[str, Any]) -> None:
        """Goes on counting where the checkpoint was."""
        self.corrupt.num_seen = int(marker.get("num_seen", 0))
        self.corrupt.num_corrupt = int(marker.get("num_corrupt", 0))
        self.best = marker.get("best")

    def train(self, start: int) -> None:
        """Steps `start` to the last; Stopped after a checkpoint where a rank was asked to stop."""
        config = self.config
        self.engine.train()
        if config.train == "last-layer":
            freeze_statistics(self.engine.module)

        # Whatever ends the loop, the log is closed and the handlers of signals are as before.
        with contextlib.ExitStack() as ending:
            request = ending.enter_context(StopRequest())
            log = MetricsLog(self.inputs.out, start) if self.sampler.rank == 0 else None
            if log:
                ending.callback(log.close)
            stepper = Stepper(self.engine, config, self.device)
            ending.callback(stepper.close)
            progress, bar = ending.enter_context(self._progress(start))
            batches = self.batches.stream(start, config.num_steps)
            for step in range(start, config.num_steps):
                batch, waited = self._next(batches, step)
                self.watch.doing("takes a step", step)
                lr = learning_rate(config.optimizer, step, config.num_steps, config.batch_size)
                result = self._step(stepper, batch, lr, step, stop=request.wanted)
                self.clock.tick(config.batch_size, waited)
                note = self._note(result.loss, lr)
                progress.update(bar, advance=1, note=note)
                self._after(step + 1, start, result, lr, note, log)

                # The step agrees over ranks on stopping, so all ranks stop after the same step.
                if result.stop:
                    self._stop(step + 1, request)
        self.corrupt.check()

    def _next(self, batches: Iterator[Batch], step: int) -> tuple[Batch, float]:
        """The next batch, and the seconds that it was waited for."""
        self.watch.doing(DATA, step)
        since = time.monotonic()
        batch = next(batches)
        return batch, time.monotonic() - since

    def _step(self, stepper: Stepper, batch: Batch, lr: float, step: int, *, stop: bool) -> StepResult:
        try:
            result = stepper.step(batch, lr, step, stop=stop)
        except NotFiniteError as error:
            self._write_not_finite(stepper, batch, step, error)
            raise
        self.loss = result.loss
        if self.ema is not None:
            self.ema.update()
        self.corrupt.add(self.config.batch_size, result.num_corrupt)
        return result

    def _write_not_finite(self, stepper: Stepper, batch: Batch, step: int, error: NotFiniteError) -> None:
        """Writes down the samples of the batch, and adds to the error where."""
        own = [sample for samples in deepspeed.gather(stepper.not_finite(batch)) for sample in samples]
        samples = np.concatenate(deepspeed.gather(batch.ordinals))
        file = self.inputs.out / NOT_FINITE
        if self.sampler.rank == 0:
            keys = getattr(self.task.index, "keys", None)
            content = {
                "step": step,
                "ranks": error.ranks,
                "samples": samples.tolist(),
                "samples_with_a_loss_that_is_not_finite": own,
                "keys": [str(key) for key in keys(samples)] if keys else None,
            }
            publish_text(file, json.dumps(content, indent=1) + "\n")
        error.args = (f"{error}. The samples of the batch are in {file}",)

    @contextlib.contextmanager
    def _progress(self, start: int) -> Iterator[tuple[Progress, TaskID]]:
        progress = Progress(
            TextColumn(self.config.stage),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}  {task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.sampler.rank != 0 or not self.console.is_terminal,
            transient=True,
        )
        with progress:
            yield progress, progress.add_task("", total=self.config.num_steps, completed=start, note="")

    def _note(self, loss: float, lr: float) -> str:
        return (
            f"loss {loss:.4f}  lr {lr:.4g}  {self.clock.images_per_second:,.0f} images/s  "
            f"data {self.clock.waiting_share:.0%}  {memory_bytes() / 2**20:,.0f} MiB"
        )

    def _after(
        self, done: int, start: int, result: StepResult, lr: float, note: str, log: MetricsLog | None
    ) -> None:
        """Logs, checkpoints and evaluates after `done` steps where it is time."""
        config = self.config

        # A few steps are enough for an estimate.
        if log and done == start + min(4, config.num_steps - start):
            left = config.num_steps - start
            line = f"{config.stage}: about {self.clock.seconds_for(left):,.0f} s for {left:,} steps"
            self.console.print(line, soft_wrap=True, highlight=False)

        # The last step is evaluated by who calls `train`.
        values: dict[str, float] = {}
        last = done == config.num_steps
        if config.evaluate_every and not last and done % config.evaluate_every == 0 and self.inputs.evaluate:
            values = self.evaluate(done).summary()
        if log and (values or last or done % config.log_every == 0):
            log.write(
                done,
                loss=result.loss,
                lr=lr,
                images_per_second=self.clock.images_per_second,
                waiting_share=self.clock.waiting_share,
                memory_bytes=memory_bytes(),
                num_corrupt=self.corrupt.num_corrupt,
                **values,
            )

            # A terminal shows a progress line.
            if not self.console.is_terminal and (last or done % (10 * config.log_every) == 0):
                line = f"{config.stage} {done}/{config.num_steps}  {note}"
                self.console.print(line, soft_wrap=True, highlight=False)
        best = bool(values) and config.keep_best > 0
        if not last and (best or done % config.checkpoint_every == 0):
            self.save(done, values.get("top1"))

    def save(self, done: int, score: float | None = None) -> Path:
        """A checkpoint after `done` steps; every rank must call."""
        self.watch.doing("saves a checkpoint", done)
        state = {
            "position": done * self.config.batch_size,
            "micro_batch_size": int(self.engine.train_micro_batch_size_per_gpu()),
            "num_seen": self.corrupt.num_seen,
            "num_corrupt": self.corrupt.num_corrupt,
            "best": self.best,
        }
        folder = self.inputs.out / "checkpoints"
        keep = checkpoint.Keep(self.config.keep_last, self.config.keep_best)
        return checkpoint.save(self.engine, folder, done, state, keep=keep, ema=self.ema, score=score)

    def _stop(self, done: int, request: StopRequest) -> None:
        path = self.save(done)
        why = [reason for reason in deepspeed.gather(request.reason) if reason]
        raise Stopped(
            f"{self.config.stage}: stopped after step {done} of {self.config.num_steps} "
            f"({', '.join(sorted(set(why))) or 'asked to'}), {path} is complete; run the same command "
            "again to go on"
        )

    def evaluate(self, done: int) -> Evaluation:
        """Accuracy on the held-out index, of the average of the weights where there is one."""
        # Opened once, as later evaluations find its images decoded.
        if self._held_out is None:
            assert self.inputs.evaluate is not None
            opened = Index.open(self.inputs.evaluate)
            self._held_out = Images.of(opened, self.config.model, self.config.data), opened
        images, index = self._held_out
        with self.published_weights():
            result = evaluate_model(
                self.engine.module,
                images,
                index,
                self.task.num_labels,
                rank=self.sampler.rank,
                world_size=self.sampler.world_size,
                device=self.device,
                beat=lambda: self.watch.doing("evaluates", done),
            )
            if self.config.keep_best > 0 and (self.best is None or result.top1 > self.best):
                self.best = result.top1
                self.write_weights(BEST)

        # The evaluation has set the whole network back to training, frozen statistics too.
        if self.config.train == "last-layer":
            freeze_statistics(self.engine.module)
        return result

    @contextlib.contextmanager
    def published_weights(self) -> Iterator[None]:
        """The model is what is evaluated and published inside: averaged buffers, averaged weights."""
        average = self.ema.applied() if self.ema is not None else contextlib.nullcontext()
        with deepspeed.averaged_buffers(self.engine.module), average:
            yield

    def write_weights(self, name: str) -> None:
        """Publishes the model's whole weights in the run folder; every rank must call."""
        weights = deepspeed.full_state(self.engine.module)
        if self.sampler.rank == 0:
            with publishing(self.inputs.out / name) as temporary:
                save_file(weights, temporary)

    @property
    def peak_memory_bytes(self) -> list[int]:
        """The most memory that each rank had, in the order of ranks; every rank must ask."""
        return [int(value) for value in deepspeed.gather(peak_memory_bytes())]


def freeze_statistics(model: torch.nn.Module) -> None:
    """All but the last layer in evaluation mode, so that BatchNorm's statistics stay too."""
    model.eval()
