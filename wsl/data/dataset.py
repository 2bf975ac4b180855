"""From ordinals of an index to batches of pixels and targets.

`Images` reads, checks, decodes and caches; `Examples` is what is trained on: the samples of an
index with their labels, or the rows of a pseudo-label file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from wsl._core import DataError, UsageError
from wsl.data.augment import ImageOptions, cut, decode_image
from wsl.index.order import label_noise
from wsl.workspace.stage import DataConfig, ModelConfig

T = TypeVar("T")
Ordinals = npt.NDArray[np.int64]


class ImageIndex(Protocol):
    """What training asks of an index (`wsl.Index`)."""

    @property
    def num_labels(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def vocabulary_fingerprint(self) -> str | None: ...
    def __len__(self) -> int: ...
    def labels(self, ordinals: Ordinals) -> Any: ...
    def read(self, ordinals: Ordinals) -> list[bytes]: ...


@dataclass(frozen=True)
class Targets:
    """Labels int64 N x L and their weights float32 N x L, padded with weight 0."""

    labels: torch.Tensor
    weights: torch.Tensor


@dataclass(frozen=True)
class Pixels:
    """Images uint8 N x C x S x S, and which of them can be shown (bool N)."""

    images: torch.Tensor
    valid: torch.Tensor
    corrupt: torch.Tensor
    """bool N: which should have been; samples that were removed are neither."""


@dataclass
class Decoded:
    """Whole images by ordinal, uint8 C x S x S, and their size in all."""

    images: dict[int, torch.Tensor] = field(default_factory=dict)
    num_bytes: int = 0

    def keep(self, ordinal: int, image: torch.Tensor, limit_bytes: int) -> None:
        """Keeps an image while they do not exceed the limit."""
        if ordinal not in self.images and self.num_bytes + image.nbytes <= limit_bytes:
            self.images[ordinal] = image
            self.num_bytes += image.nbytes


SHARED_BYTES = 256 << 20
_shared: dict[tuple[Any, ...], Decoded] | None = None


@contextmanager
def sharing_decoded() -> Iterator[None]:
    """Within it, all `Images` of the same samples and size decode an image once, for stages of one process.

    At most `SHARED_BYTES` of each are kept, whatever the stages are set to.
    """
    global _shared  # noqa: PLW0603
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


class Images:
    """Samples of an index as squares of the network's size.

    Args:
        index: where they are read.
        options: what becomes of them.
        num_threads: how many decode; 0 leaves it to the caller's.
        cache_bytes: of decoded images kept in memory; only whole ones are.
        layout: of batches in memory, which is also what networks compute in.
    """

    def __init__(
        self,
        index: ImageIndex,
        options: ImageOptions,
        *,
        num_threads: int = 0,
        cache_bytes: int = 0,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.index, self.options, self.layout = index, options, layout
        self.cache_bytes = cache_bytes if _shared is None else SHARED_BYTES
        self._cache = self._decoded()
        self._pool = ThreadPoolExecutor(num_threads) if num_threads else None

    @classmethod
    def of(cls, index: ImageIndex, model: ModelConfig, data: DataConfig) -> Images:
        """Those of a stage."""
        options = ImageOptions.of(model, data)
        return cls(index, options, num_threads=data.num_workers, cache_bytes=data.cache_bytes)

    def _decoded(self) -> Decoded:
        """What is decoded already, by others too where they share."""
        if _shared is None:
            return Decoded()
        options, path = self.options, getattr(self.index, "path", None)
        shown = (options.image_size, options.num_channels, options.crop, options.max_pixels)
        return _shared.setdefault((path, self.index.fingerprint, *shown), Decoded())

    def load(self, ordinals: Ordinals, crops: npt.NDArray[np.float64] | None = None) -> Pixels:
        """The images of `ordinals`; with `crops` (N x 4, `transforms.crop_boxes`) random crops of them."""
        # A random crop differs each time, so only whole images are taken from the cache and kept in it.
        known = self._cache.images
        missing = [i for i, o in enumerate(ordinals.tolist()) if crops is not None or o not in known]
        contents = self.index.read(ordinals[missing]) if missing else []
        numbers = [None if crops is None else crops[i] for i in missing]
        decoded = dict(zip(missing, self.each(self._decode, contents, numbers), strict=True))
        side, channels = self.options.image_size, self.options.num_channels
        shape = (len(ordinals), channels, side, side)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=self.layout)
        valid = np.ones(len(ordinals), dtype=bool)
        for i, ordinal in enumerate(ordinals.tolist()):
            image = decoded[i] if i in decoded else known[ordinal]
            if image is None:
                valid[i] = False

                # Its memory has arbitrary bytes, and the batch goes to the network as it is.
                images[i].zero_()
                continue
            images[i] = image
            if crops is None:
                self._cache.keep(ordinal, image, self.cache_bytes)

        # Removed samples have no image either, and must not count as damage.
        corrupt = ~valid
        corrupt[corrupt] = ~self._taken_down(ordinals[corrupt])
        return Pixels(images, torch.from_numpy(valid), torch.from_numpy(corrupt))

    def each(self, function: Callable[..., T], *arguments: Iterable[Any]) -> Iterable[T]:
        """`map`, on the threads that decode."""
        return self._pool.map(function, *arguments) if self._pool else map(function, *arguments)

    def _taken_down(self, ordinals: Ordinals) -> npt.NDArray[np.bool_]:
        """Which samples were removed (`wsl index drop`)."""
        dropped = np.asarray(getattr(self.index, "dropped", ()), dtype=np.int64)
        if not len(dropped):
            return np.zeros(len(ordinals), dtype=bool)
        places = np.searchsorted(dropped, ordinals)
        found: npt.NDArray[np.bool_] = dropped[np.minimum(places, len(dropped) - 1)] == ordinals
        return found

    def _decode(self, content: bytes, numbers: npt.NDArray[np.float64] | None) -> torch.Tensor | None:
        """uint8 C x S x S."""
        image = decode_image(bytes(content), self.options.max_pixels, self.options.num_channels)
        return None if image is None else cut(image, self.options, numbers)


class Examples:
    """What a stage trains on: for each example the ordinal of an image and its targets."""

    num_examples: int

    def ordinals(self, examples: Ordinals) -> Ordinals:
        """The samples whose images the examples show."""
        raise NotImplementedError

    def targets(self, examples: Ordinals) -> Targets:
        """Their labels and weights."""
        raise NotImplementedError


class LabelledExamples(Examples):
    """The samples of an index with 1/k on each of their k labels."""

    def __init__(self, index: ImageIndex, *, label_noise: float = 0.0, seed: int = 0) -> None:
        self.index: Any = index
        self.noise, self.seed = label_noise, seed
        self.num_examples = len(index)

    def ordinals(self, examples: Ordinals) -> Ordinals:
        return examples

    def targets(self, examples: Ordinals) -> Targets:
        if self.noise == 0.0:
            rows = [np.asarray(row, dtype=np.int64) for row in self.index.labels(examples)]
        else:
            noisy = label_noise(self.index, examples, share=self.noise, seed=self.seed)
            rows = [np.asarray(row, dtype=np.int64) for row in noisy]
        return pad(rows, [np.full(len(row), 1 / max(len(row), 1)) for row in rows])


class PseudolabelledExamples(Examples):
    """The rows of the selection (`pairs`), or its images with several classes each (`multilabel`, `soft`)."""

    def __init__(self, table: pl.DataFrame, target: str) -> None:
        samples = table["sample"].to_numpy().astype(np.int64)
        self._classes = table["class"].to_numpy().astype(np.int64)
        weights = table["probability"].to_numpy().astype(np.float64) if target == "soft" else None
        if target == "pairs":
            self._samples = samples
            self._starts = np.arange(len(samples) + 1)
        else:
            sort = np.lexsort((self._classes, samples))
            self._classes = self._classes[sort]
            self._samples, starts = np.unique(samples[sort], return_index=True)
            self._starts = np.append(starts, len(samples))
            weights = None if weights is None else weights[sort]
        self._weights = np.ones(len(samples)) if weights is None else weights
        self.num_examples = len(self._samples)

    def ordinals(self, examples: Ordinals) -> Ordinals:
        return self._samples[examples]

    def targets(self, examples: Ordinals) -> Targets:
        spans = [slice(self._starts[e], self._starts[e + 1]) for e in examples]
        sums = [float(self._weights[span].sum()) for span in spans]
        rows = [
            self._weights[span] / total
            if total > 0
            else np.full(span.stop - span.start, 1 / (span.stop - span.start))
            for span, total in zip(spans, sums, strict=True)
        ]
        return pad([self._classes[span] for span in spans], rows)


def pad(labels: list[npt.NDArray[np.int64]], weights: list[npt.NDArray[np.float64]]) -> Targets:
    """Ragged rows of labels and weights as two rectangles."""
    width = max((len(row) for row in labels), default=1) or 1
    out = np.zeros((len(labels), width), dtype=np.int64)
    scale = np.zeros((len(labels), width), dtype=np.float32)
    for i, (row, weight) in enumerate(zip(labels, weights, strict=True)):
        out[i, : len(row)], scale[i, : len(row)] = row, weight
    return Targets(torch.from_numpy(out), torch.from_numpy(scale))


def read_pseudolabels(path: Path, index: ImageIndex) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The selection and its metadata; DataError for another layout, UsageError for another index's file."""
    import json

    try:
        table = pl.read_parquet(path)
        raw = pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: expected pseudo-labels as 'wsl pseudolabel' writes them: {error}") from None
    lacking = [c for c in ("sample", "class", "probability") if c not in table.columns]
    if lacking or not len(table):
        found = f"no column {', '.join(lacking)}" if lacking else "no rows"
        raise DataError(f"{path}: expected pseudo-labels as 'wsl pseudolabel' writes them, found {found}")

    # Files from elsewhere may have metadata of any kind: what is no JSON is kept as text.
    metadata: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "ARROW:schema":
            continue
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        metadata.update(parsed if isinstance(parsed, dict) else {key: parsed})

    # The samples are ordinals, which another index gives to other images.
    made_for = metadata.get("index_fingerprint")
    if made_for is not None and made_for != index.fingerprint:
        raise UsageError(
            f"{path} was selected from another index (fingerprint {made_for}, this one has "
            f"{index.fingerprint}); run 'wsl pseudolabel' again on this index"
        )

    # A file from elsewhere has no fingerprint, so its numbers are checked by themselves.
    lowest, highest = int(table["sample"].min() or 0), int(table["sample"].max() or 0)  # type: ignore[arg-type]
    if lowest < 0 or highest >= len(index) or int(table["class"].min() or 0) < 0:  # type: ignore[arg-type]
        raise DataError(f"{path}: samples {lowest} to {highest}, but the index holds {len(index)} samples")
    return table, metadata
