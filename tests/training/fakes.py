"""What the tests of training stand on: an index of small images kept in one .npz file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsl.training import evaluation, task, trainer
from wsl.workspace.layout import StageInputs
from wsl.workspace.settings import check
from wsl.workspace.stage import StageConfig


class FileIndex:
    """An index with the interface of `wsl.Index` over images in memory."""

    vocabulary_fingerprint = "ten classes"
    label_kind = "class"
    class_names = None
    dropped = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path / "index.npz") as file:
            self._images, self._labels = file["images"], file["labels"]
            self._corrupt = set(file["corrupt"].tolist())
        self.num_labels = 4
        self.fingerprint = f"{self._images.sum()}"

    @classmethod
    def open(cls, path: Path) -> FileIndex:
        return cls(path)

    def __len__(self) -> int:
        return len(self._images)

    def labels(self, ordinals: Any) -> list[list[int]]:
        return [[int(self._labels[o])] for o in ordinals]

    def read(self, ordinals: Any, *, num_threads: int = 1) -> list[bytes]:
        return [b"no image" if int(o) in self._corrupt else png(self._images[o]) for o in ordinals]


class Order:
    """A stream of permutations, in memory."""

    def __init__(self, num: int, factors: Any = None, *, seed: int) -> None:
        self._num = num
        self._epochs = [np.random.default_rng([seed, e]).permutation(num) for e in range(50)]

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, span: slice) -> Any:
        return np.concatenate(self._epochs)[span].astype(np.int64)


def png(pixels: Any) -> bytes:
    """An array as an encoded image."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def install(set_item: Callable[..., Any]) -> None:
    """Puts the fakes in place of the engine's index and order."""
    for module in (evaluation, task, trainer):
        set_item(vars(module), "Index", FileIndex)
    set_item(vars(task), "EpochOrder", Order)


def write_index(path: Path, num: int = 96, seed: int = 0, corrupt: tuple[int, ...] = ()) -> Path:
    """`num` grey 12 x 12 images of 4 classes: which quarter is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num)
    images = rng.integers(0, 80, (num, 12, 12)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[(label // 2) * 6 :][:6, (label % 2) * 6 :][:, :6] += 120
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / "index.npz", images=images, labels=labels, corrupt=np.array(corrupt, dtype=np.int64))
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
        samples: list[int] = Order(len(FileIndex(self.index)), seed=0)[slice(0, num)].tolist()
        return samples

    def inputs(self, out: str = "run", **paths: Any) -> StageInputs:
        defaults = {"index": self.index, "evaluate": self.held_out, "config": self.root / "stage.yaml"}
        return StageInputs(**{**defaults, **paths}, out=self.root / out)
