"""Tiny stages: an index of small images, another held out, and configs that train in seconds."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import wsl
from wsl.index.shards import write_shard
from wsl.training.stages import run_stage
from wsl.training.step import Stepper
from wsl.training.stop import Stopped
from wsl.workspace.layout import StageInputs
from wsl.workspace.settings import check
from wsl.workspace.stage import StageConfig

CLASSES = ["ant", "bee", "cat", "dog"]


def png(pixels: Any) -> bytes:
    """An array as an encoded image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def key_of(sample: int) -> str:
    """The key of the sample at an ordinal."""
    return f"s{sample:04}"


def write_index(
    path: Path, num: int = 96, seed: int = 0, corrupt: tuple[int, ...] = (), classes: list[str] = CLASSES
) -> Path:
    """`num` grey 12 x 12 images of 4 classes: which quarter is bright. Those in `corrupt` are no images."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num)
    images = rng.integers(0, 80, (num, 12, 12)).astype(np.uint8)
    samples = []
    for sample, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        image[(label // 2) * 6 :][:6, (label % 2) * 6 :][:, :6] += 120
        content = b"no image" if sample in corrupt else png(image)
        samples.append((key_of(sample), {"png": content, "cls": str(label).encode()}))
    path.parent.mkdir(parents=True, exist_ok=True)
    shard = path.with_name(f"{path.name}.tar")
    write_shard(shard, samples)
    wsl.build_index(path, [shard], label_kind="class", class_names=classes)
    return path


class StageMaker:
    """Configs and inputs of tiny stages in one folder."""

    def __init__(self, root: Path, *, corrupt: tuple[int, ...] = (), write: bool = True) -> None:
        self.root = root
        self.index, self.held_out = root / "index", root / "test"
        if write:
            write_index(self.index, corrupt=corrupt)
            write_index(self.held_out, 50, seed=1)

    def config(self, stage: str = "teacher", **options: Any) -> StageConfig:
        tree: dict[str, Any] = {
            "stage": stage,
            "model": {"widths": [8, 8], "stem_width": 8, "num_channels": 1, "image_size": 12},
            "data": {"crop": False, "shift": 1, "flip": False, "mean": [0.3], "std": [0.3]},
            "optimizer": {"lr": 0.05},
            "batch_size": 16,
            "num_steps": 6,
            "checkpoint_every": 2,
        }
        for key, value in options.items():
            tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
        return check(StageConfig, tree, "test")

    def order(self, num: int) -> list[int]:
        """The samples at the first `num` positions of the stream."""
        order = wsl.EpochOrder(len(wsl.Index.open(self.index)), seed=0)
        samples: list[int] = order[0:num].tolist()
        return samples

    def inputs(self, out: str = "run", **paths: Any) -> StageInputs:
        defaults = {"index": self.index, "evaluate": self.held_out, "config": self.root / "stage.yaml"}
        return StageInputs(**{**defaults, **paths}, out=self.root / out)


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """The rank is asked to stop in `step`."""
    plain = Stepper.step

    def stepped(self: Stepper, batch: Any, lr: float, number: int, *, stop: bool = False) -> Any:
        return plain(self, batch, lr, number, stop=stop or number == step)

    patch.setattr(Stepper, "step", stepped)


def stopped(stages: StageMaker, step: int, out: str = "run", **options: Any) -> Path:
    """A run that was stopped after `step` steps; its folder of checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step - 1)
        with pytest.raises(Stopped, match=f"stopped after step {step} "):
            run_stage(stages.config(**options), stages.inputs(out))
    return stages.root / out / "checkpoints"


@pytest.fixture
def stages(tmp_path: Path) -> StageMaker:
    """Makes tiny stages under a temporary folder."""
    return StageMaker(tmp_path)
