"""What the tests let several ranks do: `python -m tests.help.ranks FOLDER PART...`, by `launch_program`.

A launch costs seconds, so each does as much as it can in one process group and leaves its results as
JSON in FOLDER, which the tests read. Every stage trains on the small index of `tests.help.stages`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.help.stages import StageMaker
from wsl._core import WslError
from wsl.data.dataset import Images, LabelledExamples
from wsl.data.loader import Loader
from wsl.data.sampler import Sampler
from wsl.errors import explain
from wsl.train import _interrupt
from wsl.training import checkpoint, deepspeed, stages, task
from wsl.training.launch import LAUNCHER
from wsl.training.loop import Batch, Batches
from wsl.training.step import Stepper, StepResult
from wsl.training.stop import Stopped
from wsl.workspace.stage import StageConfig

ZERO = {number: {"deepspeed": f"configs/deepspeed/zero{number}.json"} for number in range(4)}
WORLD: dict[str, Any] = {"num_steps": 12, "checkpoint_every": 100, "log_every": 1, "micro_batch_size": 4}
CHANGED: dict[str, dict[str, Any]] = {f"zero{number}": {**WORLD, **ZERO[number]} for number in range(4)}
for _number in (2, 3):
    CHANGED |= {
        f"last layer {_number}": {**WORLD, **ZERO[_number], "stage": "finetune", "train": "last-layer"},
        f"no momentum {_number}": {**WORLD, **ZERO[_number], "optimizer": {"momentum": 0}},
    }
"""How runs go on with another number of ranks."""
RESUMED: dict[str, Any] = {"num_steps": 16, "checkpoint_every": 2, "log_every": 1, "ema_decay": 0.9}


class Net(nn.Module):
    """BatchNorm and dropout, whose states differ between ranks; or neither."""

    def __init__(self, num_labels: int, *, plain: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, 2)
        self.norm = nn.Identity() if plain else nn.BatchNorm2d(6)
        self.drop = nn.Identity() if plain else nn.Dropout(0.3)
        self.fc = nn.Linear(6 * 25, num_labels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.norm(self.conv(images))).flatten(1)
        logits: torch.Tensor = self.fc(self.drop(inner))
        return logits


def use_net(*, plain: bool) -> None:
    """The stages train `Net` from now on."""
    vars(task)["build_model"] = lambda config, num_labels: Net(num_labels, plain=plain)


class Trace:
    """Writes down what this rank sees at every step; `at` may do something just before one."""

    def __init__(self, file: Path, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.file, self.at = file, at or {}
        self._plain = Stepper.step

    def __enter__(self) -> None:
        trace = self

        def step(self: Stepper, batch: Batch, lr: float, number: int, *, stop: bool = False) -> StepResult:
            trace.at.get(number, lambda: None)()
            result = trace._plain(self, batch, lr, number, stop=stop)
            row = [number, result.loss.hex(), batch.ordinals.tolist(), torch.get_rng_state()[:16].tolist()]
            with trace.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            return result

        Stepper.step = step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Stepper.step = self._plain  # type: ignore[method-assign]


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save() -> None:
    """From now on this rank dies where it would write its own part of a checkpoint."""
    vars(checkpoint)["own_state"] = lambda *_: kill_self()


class Part:
    """What one rank does; the names of the public methods are the parts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rank, self.world_size, _ = deepspeed.init_distributed()
        if self.rank == 0 and not (folder / "index").exists():
            StageMaker(folder)
        deepspeed.barrier()
        self.maker = StageMaker(folder, write=False)
        self.results: dict[str, Any] = {}

    def write(self, name: str, content: Any) -> None:
        (self.folder / f"{name}-{self.rank}.json").write_text(json.dumps(content))

    def run(self, out: str, **options: Any) -> stages.RunSummary:
        inputs = self.maker.inputs(out)
        if options.get("train") == "last-layer":
            inputs = replace(inputs, init=self.folder / "world whole zero0/model.safetensors")
        return stages.run_stage(self.maker.config(**options), inputs)

    def losses(self, out: str) -> list[float]:
        lines = (self.folder / out / "metrics.csv").read_text().splitlines()[1:]
        return [float(line.split(",")[1]) for line in lines]

    # Equality of ZeRO stages and a plain loop.

    def equal(self) -> None:
        self.equal_over(30)

    def equal_long(self) -> None:
        self.equal_over(100)

    def equal_over(self, num_steps: int) -> None:
        options = {"num_steps": num_steps, "log_every": 1, "checkpoint_every": 1000}
        found = {}
        for number in range(4):
            self.run(f"zero{number}", **options, **ZERO[number])
            found[f"zero{number}"] = self.losses(f"zero{number}")
        found["ddp"] = self.plain_loop(self.maker.config(**options))
        self.write("equal", found)

    def plain_loop(self, config: StageConfig) -> list[float]:
        """The same training by PyTorch's DistributedDataParallel alone."""
        import wsl

        index: Any = wsl.Index.open(self.maker.index)
        order: Any = wsl.EpochOrder(len(index), seed=config.seed)
        images = Images.of(index, config.model, config.data)
        loader = Loader(images, LabelledExamples(index), order, config.seed)
        batches = Batches(config, loader, Sampler(16, self.rank, self.world_size))
        torch.manual_seed(config.seed)
        net = nn.parallel.DistributedDataParallel(task.build_model(config.model, 4))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
        losses = []
        for step in range(config.num_steps):
            batch = batches.get(step)
            optimizer.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + np.cos(np.pi * step / config.num_steps))
            loss = nn.functional.cross_entropy(net(batch.images), batch.labels[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(deepspeed.total([float(loss.detach()) / self.world_size])[0])
        return losses

    # Options.

    def options(self) -> None:
        """Losses of six steps under each option, and what they are compared with."""
        base = {"num_steps": 6, "log_every": 1, "checkpoint_every": 100}
        cases: dict[str, dict[str, Any]] = {
            "plain": {},
            "accumulated": {"micro_batch_size": 2},
            "checkpointed": {"execution": {"activation_checkpointing": True}},
            "checkpointed zero3": {"execution": {"activation_checkpointing": True}, **ZERO[3]},
            "channels-last": {"execution": {"channels_last": True}},
            "channels-last zero0": {"execution": {"channels_last": True}, **ZERO[0]},
            "compiled": {"execution": {"compile": "aot_eager"}},
            "offload zero2": {"deepspeed": "configs/deepspeed/zero2-offload.json"},
            "offload zero3": {"deepspeed": "configs/deepspeed/zero3-offload.json"},
            "clipped": {"optimizer": {"lr": 0.05, "gradient_clipping": 0.05}},
            "clipped zero0": {"optimizer": {"lr": 0.05, "gradient_clipping": 0.05}, **ZERO[0]},
            "clipped zero3": {"optimizer": {"lr": 0.05, "gradient_clipping": 0.05}, **ZERO[3]},
            "smoothed": {"regularization": {"label_smoothing": 0.1}},
            "mixed": {"regularization": {"mixup": 0.4, "cutmix": 1.0}},
        }
        found = {}
        for name, case in cases.items():
            out = f"option {name}"
            self.run(out, **base, **case)
            found[name] = self.losses(out)
        self.write("options", found)

    # What is not finite.

    def not_finite(self) -> None:
        """A gradient, then a loss, that is not finite on rank 1 alone at step 3, under ZeRO 0 to 3."""
        found: dict[str, Any] = {}
        for number in range(4):
            for kind in ("gradient", "loss"):
                out = f"not finite {kind} {number}"
                with Broken(kind, self.rank == 1) as broken:
                    try:
                        self.run(out, checkpoint_every=2, **ZERO[number])
                    except WslError as error:
                        found[out] = {"error": str(error), "unchanged": broken.unchanged()}
        self.write("not_finite", found)

    # Another number of ranks.

    def world(self) -> None:
        """Two ranks train 6 of 12 steps, in every way of `CHANGED`; one rank will go on (see the tests)."""
        use_net(plain=True)
        for name, options in CHANGED.items():
            self.run(f"world whole {name}", **options)
            self.stop_at(f"world cut {name}", 6, options)

    def grown(self) -> None:
        """Two ranks go on where one stopped (`shrink`), under each ZeRO stage."""
        use_net(plain=True)
        for number in range(4):
            self.run(f"grown {number}", **{**WORLD, **ZERO[number]})

    def shrink(self) -> None:
        """One rank trains 6 of 12 steps, for `grown`."""
        use_net(plain=True)
        for number in range(4):
            self.stop_at(f"grown {number}", 6, {**WORLD, **ZERO[number]})

    def stop_at(self, out: str, step: int, options: dict[str, Any]) -> None:
        """Stops as a signal to this rank 0 would have it."""

        def ask() -> None:
            if self.rank == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            with Trace(self.folder / f"{out}-{self.rank}.jsonl", {step - 2: ask}):
                self.run(out, **options)
        except Stopped as stopped:
            self.write(out, str(stopped))

    # Resuming.

    def chain(self) -> None:
        """Two ranks stop after 6 of 12 steps and go on with two workers, under ZeRO 0, 2 and 3."""
        use_net(plain=False)
        for number in (0, 2, 3):
            options = {**RESUMED, "num_steps": 12, **ZERO[number]}
            if number == 3:
                del options["ema_decay"]
            with Trace(self.folder / f"chain whole {number}-{self.rank}.jsonl"):
                self.run(f"chain whole {number}", **options)
            self.stop_at(f"chain cut {number}", 6, options)
            with Trace(self.folder / f"chain cut {number}-{self.rank}.jsonl"):
                self.run(f"chain cut {number}", **options, data={"num_workers": 2})

    def whole(self) -> None:
        use_net(plain=False)
        with Trace(self.folder / f"whole-{self.rank}.jsonl"):
            self.run("whole", **RESUMED)

    def killed(self) -> None:
        """Rank 1 is killed before its step 5."""
        self.resumed(at={5: kill_self} if self.rank == 1 else {})

    def killed_in_save(self) -> None:
        """Rank 1 is killed while the checkpoint after step 6 is being saved."""
        self.resumed(at={5: kill_in_save} if self.rank == 1 else {})

    def stopped(self) -> None:
        """The launcher gets SIGTERM in step 6, and has passed it on by the end of step 7."""
        at: dict[int, Callable[[], object]] = {7: lambda: time.sleep(0.5)}
        if self.rank == 1:
            at[6] = lambda: os.kill(int(os.environ[LAUNCHER]), signal.SIGTERM)
        self.resumed(at=at)

    def orphaned(self) -> None:
        """The launcher is killed in step 11, with two workers loading."""
        at: dict[int, Callable[[], object]] = {12: lambda: time.sleep(0.5)}
        if self.rank == 1:
            at[11] = lambda: os.kill(int(os.environ[LAUNCHER]), signal.SIGKILL)
        self.resumed(at=at, data={"num_workers": 2})

    def finished(self) -> None:
        self.resumed(data={"num_workers": 2})

    def resumed(self, at: dict[int, Callable[[], object]] | None = None, **options: Any) -> None:
        use_net(plain=False)
        with Trace(self.folder / f"cut-{self.rank}.jsonl", at):
            self.run("cut", **RESUMED, **options)

    # Hanging, and a full disk.

    def hanging(self) -> None:
        """Rank 1 stands still before its step 3; the other waits for ten seconds."""
        at = {3: lambda: time.sleep(600)} if self.rank == 1 else {}
        with Trace(self.folder / f"hanging-{self.rank}.jsonl", at):
            self.run("hanging", timeout_s=10.0 if self.rank == 0 else 600.0)

    def full(self) -> None:
        """The disk is full where rank 1 writes its part of the second checkpoint."""
        self.write("full", [self.fill(through_python=way) for way in (True, False)])

    def fill(self, *, through_python: bool) -> str:
        plain, out = torch.save, f"full {through_python}"

        def save(content: Any, file: Any, *arguments: Any, **options: Any) -> None:
            if "step-000004" not in str(file) or "rank-00001" not in str(file):
                plain(content, file, *arguments, **options)
            elif through_python:
                with open("/dev/full", "wb", buffering=0) as disk:
                    plain(content, disk)
            else:
                plain(content, "/dev/full")

        vars(torch)["save"] = save
        try:
            self.run(out)
        except (OSError, WslError) as error:
            return explain(error)
        finally:
            vars(torch)["save"] = plain
        return "it was written"


class Broken:
    """Makes a gradient or loss not finite at step 3, and looks whether the weights stayed."""

    def __init__(self, kind: str, mine: bool) -> None:
        self.kind, self.mine = kind, mine
        self._plain = Stepper.step
        self._stepper: Stepper | None = None
        self._before: dict[str, torch.Tensor] = {}

    def __enter__(self) -> Broken:
        broken = self

        def step(self: Stepper, batch: Batch, lr: float, number: int, *, stop: bool = False) -> StepResult:
            if number == 3:
                broken._stepper = self
                broken._before = deepspeed.full_state(self.engine.module)
                if broken.mine and broken.kind == "loss":
                    batch.images[1] = float("nan")
                elif broken.mine:
                    # The loss is finite, its gradient is not.
                    plain = self._forward
                    self._forward = lambda *parts: plain(*parts) + _Root.apply(plain(*parts))  # type: ignore
            return broken._plain(self, batch, lr, number, stop=stop)

        Stepper.step = step  # type: ignore[method-assign]
        return self

    def unchanged(self) -> bool:
        assert self._stepper is not None
        after = deepspeed.full_state(self._stepper.engine.module)
        names = [name for name, _ in self._stepper.engine.module.named_parameters()]
        return all(torch.equal(after[name], self._before[name]) for name in names)

    def __exit__(self, *_: object) -> None:
        Stepper.step = self._plain  # type: ignore[method-assign]


class _Root(torch.autograd.Function):
    """0 with a gradient that is not finite."""

    @staticmethod
    def forward(context: Any, losses: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(losses)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.full_like(gradient, float("inf"))


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    part = Part(Path(arguments[0]))
    (part.folder / f"pid-{part.rank}").write_text(str(os.getpid()))
    for name in arguments[1:]:
        since = time.monotonic()
        try:
            getattr(part, name)()
        except KeyboardInterrupt as stopped:
            print(stopped, file=sys.stderr)
            return 130
        print(f"{name} {part.rank}: {time.monotonic() - since:.1f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
