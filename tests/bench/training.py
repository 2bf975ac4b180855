"""Training under DeepSpeed beside a plain PyTorch loop: steps, waiting, memory, checkpoints, scaling.

    python tests/bench/training.py [speed] [stages] [memory] [checkpoints] [scaling] [--steps N]

Prints tables; asserts nothing. Model, batch and data are the same in both loops, which take turns
block by block in one process, since other work may load the machine; the fastest blocks are compared.
`memory` and `scaling` start processes of their own. It runs on a GPU where one is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import wsl
from wsl import carried
from wsl.data.dataset import Images, LabelledExamples
from wsl.data.loader import Loader
from wsl.data.sampler import Sampler
from wsl.index import jobs
from wsl.training import checkpoint, deepspeed, universal
from wsl.training.launch import launch_ranks
from wsl.training.loop import Batches, peak_memory_bytes
from wsl.training.models import build_model, num_parameters
from wsl.training.step import Stepper
from wsl.workspace.layout import Workspace
from wsl.workspace.settings import check
from wsl.workspace.stage import StageConfig

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("speed", "stages", "memory", "checkpoints", "scaling")
SIZES = {
    "41 k, batch 128": {"stem": "patch", "stem_width": 12, "widths": [24, 48], "downsample_first": True},
    "308 k, batch 128": {"stem": "conv", "stem_width": 32, "widths": [32, 64, 128]},
    "2.7 M, batch 128": {"stem": "conv", "stem_width": 96, "widths": [96, 192, 384]},
    "6.1 M, batch 128": {"stem": "conv", "stem_width": 144, "widths": [144, 288, 576]},
}
LARGE = {"stem": "patch", "stem_width": 256, "widths": [512, 1024, 1536], "downsample_first": True}
"""At least 50 M parameters that take little time on small images."""


def config(model: dict[str, Any], *, stage: str = "teacher", zero: int = 0, **options: Any) -> StageConfig:
    tree: dict[str, Any] = {
        "stage": stage,
        "model": {"name": "narrow", "num_channels": 1, "image_size": 28, **model},
        "data": {"crop": False, "shift": 1, "mean": [0.286], "std": [0.353], "num_workers": 1},
        "batch_size": 128,
        "deepspeed": str(ROOT / "configs" / "deepspeed" / f"zero{zero}.json"),
    }
    return check(StageConfig, tree | options, "bench")


class Plain:
    """A loop of PyTorch alone."""

    def __init__(self, options: StageConfig, model: nn.Module, device: torch.device) -> None:
        self.model, self.device = model, device
        o = options.optimizer
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=o.lr, momentum=o.momentum, nesterov=o.nesterov, weight_decay=o.weight_decay
        )

    def step(self, batch: Any) -> float:
        loss = nn.functional.cross_entropy(
            self.model(batch.images.to(self.device)), batch.labels[:, 0].to(self.device)
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


class Ours:
    """A step of a stage under DeepSpeed."""

    def __init__(self, options: StageConfig, model: nn.Module, device: torch.device) -> None:
        settings = deepspeed.read_settings(options.deepspeed)
        world_size = torch.distributed.get_world_size()
        self.engine = deepspeed.initialize(options, settings, model, world_size)
        self.engine.train()
        self.stepper = Stepper(self.engine, options, device)
        self.lr, self.number = options.optimizer.lr, 0

    def step(self, batch: Any) -> float:
        self.number += 1
        return self.stepper.step(batch, self.lr, self.number).loss


def batches(folder: Path, options: StageConfig, index_name: str = "labelled") -> Batches:
    """The stream of this rank over an index of the carried data."""
    workspace = Workspace.find(folder)
    index = wsl.Index.open(workspace.built_index(index_name))
    order = wsl.EpochOrder(len(index), seed=options.seed)
    images = Images.of(index, options.model, options.data)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    sampler = Sampler(options.batch_size, rank, world_size)
    return Batches(options, Loader(images, LabelledExamples(index), order, 0), sampler)


def make_workspace(folder: Path, dataset: str = "fashion-mnist") -> Path:
    carried.make_workspace(folder, dataset)
    for _, path, settings, root in jobs.index_jobs(Workspace.find(folder), None):
        jobs.build_one_index(path, settings, root)
    return folder


def take_turns(runners: dict[str, Any], stream: Any, num_blocks: int, num_steps: int) -> dict[str, float]:
    """Seconds a step of each runner: of the least disturbed of the blocks in which they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    for runner in runners.values():
        for _ in range(3):
            runner.step(next(stream))
    for block in range(num_blocks):
        names = list(runners)
        for name in names[block % len(names) :] + names[: block % len(names)]:
            prepared = [next(stream) for _ in range(num_steps)]
            since = time.perf_counter()
            for batch in prepared:
                runners[name].step(batch)
            times[name].append((time.perf_counter() - since) / num_steps)
    return {name: min(found) for name, found in times.items()}


def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=110).print(table)


def speed(folder: Path, num_steps: int) -> None:
    """ZeRO 0 to 3 against the plain loop for four sizes of a step."""
    device = deepspeed.init_distributed()[2]
    rows = []
    for name, model in SIZES.items():
        options = config(model)
        runners: dict[str, Any] = {"plain": Plain(options, fresh(options, device), device)}
        for zero in range(4):
            runners[f"ZeRO {zero}"] = Ours(config(model, zero=zero), fresh(options, device), device)
        stream = batches(folder, options).stream(0, 10**9)
        found = take_turns(runners, stream, 8, num_steps)
        plain = found.pop("plain")
        rows.append(
            [name, f"{1000 * plain:,.0f} ms", *(f"{plain / seconds:.2f}" for seconds in found.values())]
        )
    columns = ["network", "plain step", *(f"ZeRO {zero}" for zero in range(4))]
    show("Steps a second over those of the plain loop, one rank", columns, rows)


def fresh(options: StageConfig, device: torch.device, num_labels: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return build_model(options.model, num_labels).to(device)


def stages(folder: Path, num_steps: int) -> None:
    """Each stage's step against a plain one, and the share of time it waits for data."""
    device = deepspeed.init_distributed()[2]
    clipart = make_workspace(folder.with_name("clipart"), "openclipart")
    cases = {
        "pretrain": (clipart, "hashtags", {"num_channels": 3, "image_size": 48}),
        "teacher": (folder, "labelled", SIZES["308 k, batch 128"]),
        "student": (folder, "labelled", SIZES["41 k, batch 128"]),
        "finetune": (folder, "labelled", SIZES["308 k, batch 128"]),
    }
    rows = []
    for stage, (where, name, model) in cases.items():
        wide = {"mean": [0.5] * 3, "std": [0.3] * 3} if stage == "pretrain" else {"mean": [0.3], "std": [0.3]}
        data = {"crop": False, "shift": 1, "num_workers": 1, **wide}
        options = config(model, stage=stage, data=data)
        source = batches(where, options, name)
        labels = wsl.Index.open(Workspace.find(where).built_index(name)).num_labels
        both: dict[str, Any] = {
            "plain": Plain(options, fresh(options, device, labels), device),
            "ours": Ours(options, fresh(options, device, labels), device),
        }
        found = take_turns(both, source.stream(0, 10**9), 5, num_steps)
        waited, took = waiting(both["ours"], source, 6 * num_steps)
        rows.append(
            [
                stage,
                f"{1000 * found['plain']:,.0f} ms",
                f"{found['plain'] / found['ours']:.2f}",
                f"{waited / took:.1%}",
            ]
        )
    show("Each stage, ZeRO 0, one rank", ["stage", "plain step", "of plain", "waiting for data"], rows)


def waiting(runner: Ours, source: Batches, num_steps: int) -> tuple[float, float]:
    """Seconds that a stretch of training waited for its batches, and the seconds it took."""
    stream = source.stream(10**6, 10**6 + num_steps + 3)
    for _ in range(3):
        runner.step(next(stream))
    waited, since = 0.0, time.perf_counter()
    for _ in range(num_steps):
        asked = time.perf_counter()
        batch = next(stream)
        waited += time.perf_counter() - asked
        runner.step(batch)
    return waited, time.perf_counter() - since


def estimate_bytes(num: int, zero: int, world_size: int) -> int:
    """DeepSpeed's sum (its memory tutorial, for Adam in mixed precision) for float32 SGD with momentum.

    Weights, gradients and momentum 4 bytes a parameter each; from ZeRO 1 on a float32 copy of the rank's part
    of the weights beside its momentum (8 bytes over the ranks); ZeRO 2 divides the gradients too, ZeRO 3
    the weights.
    """
    if zero == 0:
        return 12 * num
    states = 8 * num // world_size
    gradients = 4 * num // (world_size if zero >= 2 else 1)
    weights = 4 * num // (world_size if zero >= 3 else 1)
    return weights + gradients + states


def deepspeed_estimate(num: int, largest: int, zero: int, world_size: int) -> int | None:
    """DeepSpeed's own estimate for a rank, of Adam in mixed precision; it has none for ZeRO 0 and 1."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    if zero == 2:
        found = stage_1_and_2.estimate_zero2_model_states_mem_needs(num, world_size, cpu_offload=False)
    elif zero == 3:
        found = stage3.estimate_zero3_model_states_mem_needs(
            num, largest, world_size, cpu_offload=False, cpu_offload_params=False
        )
    else:
        return None
    return int(found[1])


def largest_layer(model: nn.Module) -> int:
    """The most parameters that one layer has itself."""
    return max(
        sum(getattr(weight, "ds_numel", weight.numel()) for weight in layer.parameters(recurse=False))
        for layer in model.modules()
    )


def rank_memory(folder: Path, zero: int) -> None:
    """In a process of its own: resident memory that three steps of the large network add."""
    rank, world_size, device = deepspeed.init_distributed()
    options = config(LARGE, zero=zero, batch_size=8)
    before = resident()
    ours = Ours(options, fresh(options, device), device)
    generator = torch.Generator().manual_seed(rank)
    fake = type("Fake", (), {})()
    fake.images = torch.randn(8 // world_size, 1, 28, 28, generator=generator)
    fake.labels, fake.weights = (
        torch.zeros(8 // world_size, 1, dtype=torch.int64),
        torch.ones(8 // world_size, 1),
    )
    fake.num_corrupt, fake.teacher, fake.ordinals = 0, None, np.zeros(8 // world_size, dtype=np.int64)
    for _ in range(3):
        ours.step(fake)
    after = resident()
    content = {"steady": after - before, "peak": peak_memory_bytes() - before}
    content["parameters"] = num_parameters(ours.engine.module)
    content["largest_layer"] = largest_layer(ours.engine.module)
    (folder / f"memory-{zero}-{rank}.json").write_text(json.dumps(content))


def resident() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    import ctypes
    import gc

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory(folder: Path, num_steps: int) -> None:
    """Memory of a rank of two under ZeRO 0 to 3 beside the estimate."""
    rows = []
    for zero in range(4):
        command = [sys.executable, __file__, "rank-memory", "--folder", str(folder), "--zero", str(zero)]
        if launch_ranks(command, 2):
            raise SystemExit(f"ZeRO {zero}: a rank failed")
        found = json.loads((folder / f"memory-{zero}-0.json").read_text())
        num = found["parameters"]
        expected = estimate_bytes(num, zero, 2)
        theirs = deepspeed_estimate(num, found["largest_layer"], zero, 2)
        sizes = (expected, theirs, found["steady"], found["peak"])
        mib = [f"{size / 2**20:,.0f}" if size is not None else "-" for size in sizes]
        rows.append([f"ZeRO {zero}", *mib, f"{found['steady'] / expected:.2f}"])
    title = f"Memory of a rank of two, {num / 1e6:.0f} M parameters, float32 SGD with momentum, MiB"
    show(
        title,
        ["", "states by the sum", "DeepSpeed's, Adam in 16 bit", "after three steps", "peak", "over the sum"],
        rows,
    )


def checkpoints(folder: Path, num_steps: int) -> None:
    """Seconds to save a checkpoint of the large network, to disk and synced, and to go on from it."""
    device = deepspeed.init_distributed()[2]
    rows = []
    for zero in range(4):
        options = config(LARGE, zero=zero)
        ours = Ours(options, fresh(options, device), device)
        ours.step(batches(folder, options).get(0))
        target = folder / f"checkpoints-{zero}"
        since = time.perf_counter()
        saved = checkpoint.save(ours.engine, target, 1, {}, keep=checkpoint.Keep(1, 0))
        took = time.perf_counter() - since
        size = sum(file.stat().st_size for file in saved.iterdir())
        again = Ours(options, fresh(options, device), device)
        since = time.perf_counter()
        checkpoint.load(again.engine, saved, converted=None, ema=None, seed=0)
        loaded = time.perf_counter() - since
        rows.append(
            [
                f"ZeRO {zero}",
                f"{size / 2**20:,.0f} MiB",
                f"{took:.1f} s",
                f"{loaded:.1f} s",
                conversion(saved) if zero else "not needed",
            ]
        )
        checkpoint.remove(saved)
    title = "A checkpoint of the large network, one rank"
    show(title, ["", "size", "save", "load", "convert for other ranks"], rows)


def conversion(saved: Path) -> str:
    """What DeepSpeed's universal checkpoint of one takes."""
    since = time.perf_counter()
    out = universal.convert(saved)
    took = time.perf_counter() - since
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    shutil.rmtree(out)
    return f"{took:.1f} s, {size / 2**20:,.0f} MiB"


def rank_speed(folder: Path, num_steps: int) -> None:
    """In a process of its own: seconds a step of the middle network at its rank's share."""
    rank, world_size, device = deepspeed.init_distributed()
    torch.set_num_threads(1)
    options = config(SIZES["2.7 M, batch 128"], zero=1)
    ours = Ours(options, fresh(options, device), device)
    stream = batches(folder, options).stream(0, num_steps + 3)
    for _ in range(3):
        ours.step(next(stream))
    since = time.perf_counter()
    for batch in stream:
        ours.step(batch)
    if rank == 0:
        seconds = (time.perf_counter() - since) / num_steps
        (folder / f"scaling-{world_size}.json").write_text(json.dumps(seconds))


def scaling(folder: Path, num_steps: int) -> None:
    """One rank against two with the same global batch, one thread each, taking turns."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for ranks in (1, 2):
            command = [
                sys.executable,
                __file__,
                "rank-speed",
                "--folder",
                str(folder),
                "--steps",
                str(num_steps),
            ]
            if launch_ranks(command, ranks):
                raise SystemExit("a rank failed")
            times[ranks].append(json.loads((folder / f"scaling-{ranks}.json").read_text()))
    one, two = min(times[1]), min(times[2])
    row = [[f"{1000 * one:,.0f} ms", f"{1000 * two:,.0f} ms", f"{one / two:.2f}"]]
    show(
        "ZeRO 1, a step of 128 images, one thread a rank, the best of three",
        ["one rank", "two ranks", "faster"],
        row,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=list(PARTS))
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--zero", type=int, default=0)
    options = parser.parse_args()
    if options.parts[0] == "rank-memory":
        return rank_memory(options.folder, options.zero)
    if options.parts[0] == "rank-speed":
        return rank_speed(options.folder, options.steps)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{name}, {versions}, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_workspace(Path(scratch) / "fashion-mnist")
        for part in options.parts:
            since = time.perf_counter()
            globals()[part](folder, options.steps)
            print(f"({part}: {time.perf_counter() - since:.0f} s)")
    return None


if __name__ == "__main__":
    main()
