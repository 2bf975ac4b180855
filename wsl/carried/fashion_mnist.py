"""Fashion-MNIST as a workspace: D, U and a test set in tar shards (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from PIL import Image

from wsl._core import DataError, UsageError
from wsl.carried.arrays import read_arrays
from wsl.index.shards import Sample, write_shards

FILE = "fashion-mnist.xz"
CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
SHARD_SAMPLES = 5000
TRUTH = "truth.parquet"

Bytes = npt.NDArray[np.uint8]

WORKSPACE = """\
# Fashion-MNIST: a few labelled images, many unlabelled ones, and a test set.
indexes:
  labelled: {shards: data/labelled-*.tar, label_kind: class, class_names: data/classes.txt}
  unlabelled: {shards: data/unlabelled-*.tar}
  test: {shards: data/test-*.tar, label_kind: class, class_names: data/classes.txt}
stages:
  teacher: {config: configs/stages/fashion-mnist-teacher.yaml, index: labelled, evaluate: test}
  student: {config: configs/stages/fashion-mnist-student.yaml, index: unlabelled, evaluate: test}
  finetune:
    {config: configs/stages/fashion-mnist-finetune.yaml, index: labelled, evaluate: test, init: student}
"""


@dataclass(frozen=True)
class Sizes:
    """How many images a workspace has; None is all there are."""

    labelled: int = 500
    unlabelled: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Part:
    """Images uint8 N x 28 x 28, labels uint8 N, and their numbers in the original set."""

    images: Bytes
    labels: Bytes
    numbers: npt.NDArray[np.int64]

    def first(self, number: int | None, option: str) -> Part:
        """The first `number` images; UsageError, which names the option, where there are fewer."""
        if number is None:
            return self
        if not 1 <= number <= len(self.labels):
            raise UsageError(f"{option} {number}: expected a number from 1 to {len(self.labels):,}")
        return Part(self.images[:number], self.labels[:number], self.numbers[:number])


def read_original(folder: Path, part: str) -> tuple[Bytes, Bytes]:
    """Images and labels of the original files, `part` being "train" or "t10k"; DataError where damaged."""
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    if len(images) != len(labels) or images.shape[1:] != (28, 28) or (len(labels) and labels.max() > 9):
        raise DataError(f"{folder}: expected as many labels from 0 to 9 as images of 28 x 28 pixels")
    return images, labels


def _read_idx(path: Path, num_dimensions: int) -> Bytes:
    if not path.is_file():
        raise UsageError(
            f"{path} is not there; --source wants the folder of the four original files of Fashion-MNIST "
            "(Debian: dataset-fashion-mnist has them in /usr/share/datasets/fashion-mnist)"
        )
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: expected a gzip file: {error}") from None
    shape = [int.from_bytes(content[4 + 4 * n : 8 + 4 * n], "big") for n in range(num_dimensions)]
    start = 4 + 4 * num_dimensions
    size = int(np.prod(shape, dtype=np.int64))
    if content[:4] != bytes([0, 0, 8, num_dimensions]) or len(content) != start + size:
        raise DataError(f"{path}: expected an idx file of {num_dimensions} dimensions of bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def balanced(labels: Bytes, number: int) -> npt.NDArray[np.int64]:
    """The first `number` places with as many of each class, in ascending order."""
    share = number // len(CLASSES)
    places = [np.flatnonzero(labels == label)[:share] for label in range(len(CLASSES))]
    if share < 1 or number % len(CLASSES) or min(map(len, places)) < share:
        raise UsageError(
            f"--num-labelled {number}: expected a multiple of {len(CLASSES)} that each class has images for "
            f"(at most {min(int((labels == label).sum()) for label in range(10)) * 10:,} here)"
        )
    return np.sort(np.concatenate(places))


def read_parts(file: Path, source: Path | None, sizes: Sizes) -> dict[str, Part]:
    """labelled, unlabelled and test: of the bundled images, or of the original files in `source`."""
    if source is not None:
        images, labels = read_original(source, "train")
        test_images, test_labels = read_original(source, "t10k")

        # What is not chosen as labelled is unlabelled: no image is in both sets.
        chosen = balanced(labels, sizes.labelled)
        rest = np.setdiff1d(np.arange(len(labels)), chosen)
        labelled = Part(images[chosen], labels[chosen], chosen)
        unlabelled = Part(images[rest], labels[rest], rest)
        test = Part(test_images, test_labels, np.arange(len(test_labels)))
    else:
        about, arrays = read_arrays(file)
        numbers = np.array(about["labelled"])
        chosen = balanced(arrays["labelled_labels"], sizes.labelled)
        labelled = Part(arrays["labelled_images"][chosen], arrays["labelled_labels"][chosen], numbers[chosen])
        unlabelled = Part(
            arrays["unlabelled_images"], arrays["unlabelled_labels"], np.array(about["unlabelled"])
        )
        test = Part(arrays["test_images"], arrays["test_labels"], np.arange(len(arrays["test_labels"])))
    return {
        "labelled": labelled,
        "unlabelled": unlabelled.first(sizes.unlabelled, "--num-unlabelled"),
        "test": test.first(sizes.test, "--num-test"),
    }


def write_data(folder: Path, file: Path, source: Path | None, sizes: Sizes) -> list[Path]:
    """Writes the shards, the class names and the truth about U to `folder`.

    The truth is for measuring, and for studies of hashtags that are right: it has a column of them too.
    """
    parts = read_parts(file, source, sizes)
    written = []
    for name, part in parts.items():
        samples = _samples(part, "test" if name == "test" else "train", with_class=name != "unlabelled")
        written += write_shards(folder, name, samples, max_shard_samples=SHARD_SAMPLES)
    classes = folder / "classes.txt"
    classes.write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
    hidden = parts["unlabelled"]
    keys = [f"train-{number:06}" for number in hidden.numbers]
    tags = [[CLASSES[label].lower().replace(" ", "")] for label in hidden.labels.tolist()]
    truth = {"key": keys, "class": hidden.labels.astype(np.uint32), "hashtags": tags}
    pl.DataFrame(truth).write_parquet(folder / TRUTH)
    return [*written, classes, folder / TRUTH]


def _samples(part: Part, prefix: str, *, with_class: bool) -> Iterator[Sample]:
    for image, label, number in zip(part.images, part.labels, part.numbers, strict=True):
        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        members = {"png": out.getvalue()}
        if with_class:
            members["cls"] = str(int(label)).encode()
        yield f"{prefix}-{number:06}", members
