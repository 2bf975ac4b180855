"""Scoring: a trained network's view of every sample of an index.

What is made is the softmax's log-odds of each class, z_c less the log-sum-exp of the others, in
float32 whatever the network computes in: it orders as the probability does and does not saturate.
With `flip` the logits of the image and of its mirror image are averaged first; `temperature` divides
them. An image that cannot be decoded has no scores; it is counted, and too many of them fail the run.

    predictions/<index>/<teacher>/scores-000000000000.parquet    samples 0 to 65,535

Each file holds a range of samples with the columns ``sample`` (u64) and ``scores`` (an array of
float32, one for each class), or ``sample``, ``class``, ``score`` with a row for each of the best
classes of a sample. Its metadata says by which weights, for which index and which range it was made; a
file appears whole, and a killed run goes on with the ranges that are missing. Several ranks take the
ranges in turns and need nothing of each other.

Scores can also go straight into selections, of which only the states are kept: see `score_into_states`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from wsl._core import UsageError
from wsl.data import transforms
from wsl.data.augment import ImageOptions
from wsl.data.dataset import Images
from wsl.data.loader import CorruptCount
from wsl.index import Index
from wsl.publish import publish_text, publishing
from wsl.selection import Order, TopK, log_odds
from wsl.training.export import WEIGHTS, LoadedModel, load_run
from wsl.workspace import fingerprint

RANGE = 65_536
"""Samples of a file of predictions."""

SAVE_EVERY_S = 60.0
"""Seconds between two states that are saved."""


@dataclass(frozen=True)
class Rank:
    """Which of the ranges of samples a process scores: every `world_size`-th from `number` on."""

    number: int = 0
    world_size: int = 1

    def ranges(self, num_samples: int) -> Iterator[range]:
        """The ranges of samples, ascending."""
        for start in range(self.number * RANGE, num_samples, self.world_size * RANGE):
            yield range(start, min(start + RANGE, num_samples))


@dataclass(frozen=True)
class Scores:
    """Scores of consecutive samples, those left out that could not be decoded."""

    samples: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    """Log-odds, len(samples) x number of classes."""
    num_seen: int


class Scorer:
    """A trained network over the samples of an index."""

    def __init__(
        self,
        run: Path,
        index: Path,
        *,
        flip: bool = True,
        temperature: float = 1.0,
        batch_size: int = 256,
    ) -> None:
        if not temperature > 0:
            raise UsageError(f"--temperature {temperature}: expected a number above 0")
        self.loaded: LoadedModel = load_run(run)
        self.index = Index.open(index)
        self.flip, self.temperature, self.batch_size = flip, temperature, batch_size
        self.num_classes = int(self.loaded.info["num_labels"])
        self.provenance: dict[str, Any] = {
            "teacher": str(run),
            "teacher_fingerprint": fingerprint(run / WEIGHTS),
            "vocabulary_fingerprint": self.loaded.info.get("vocabulary_fingerprint"),
            "index_fingerprint": self.index.fingerprint,
            "num_classes": self.num_classes,
            "class_names": self.loaded.info.get("class_names"),
            "flip": flip,
            "temperature": temperature,
        }
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self.loaded.model.to(self._device)
        options = ImageOptions.of(self.loaded.config.model, self.loaded.config.data)
        self._images = Images(self.index, options, num_threads=self.loaded.config.data.num_workers)
        self.corrupt = CorruptCount(self.loaded.config.data.max_corrupt_share, str(index))

    def score(self, start: int = 0, stop: int | None = None) -> Iterator[Scores]:
        """The scores of samples `start` to `stop`, batch by batch; DataError for too many corrupt ones."""
        last = len(self.index) if stop is None else min(stop, len(self.index))
        for first in range(start, last, self.batch_size):
            ordinals = np.arange(first, min(first + self.batch_size, last), dtype=np.int64)
            pixels = self._images.load(ordinals)
            valid = pixels.valid.numpy()
            self.corrupt.add(len(ordinals), int(pixels.corrupt.sum()))
            logits = self._logits(pixels.images)[valid]
            yield Scores(ordinals[valid], log_odds(logits), len(ordinals))

    def _logits(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        data = self.loaded.config.data
        shown = transforms.normalise(images, data.mean, data.std).to(self._device)
        with torch.inference_mode():
            logits = self._model(shown).float()
            if self.flip:
                logits = (logits + self._model(shown.flip(3)).float()) / 2
        return np.ascontiguousarray((logits / self.temperature).cpu().numpy())


def write_predictions(
    scorer: Scorer,
    out: Path,
    *,
    keep: int | None = None,
    rank: Rank | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Scores every sample into files under `out`; those that are there already are left as they are.

    `keep` best classes of each sample are kept, all where None. Where this is one `rank` of several, it
    scores its ranges alone. UsageError where `out` holds predictions of another teacher, index or option.
    """
    if keep is not None and not 1 <= keep <= scorer.num_classes:
        raise UsageError(f"--keep: expected 1 to {scorer.num_classes} classes or all, got {keep}")
    out.mkdir(parents=True, exist_ok=True)
    made_by = scorer.provenance | {"keep": keep}
    done = num_new = num_scored = 0
    begun = time.monotonic()
    for samples in (rank or Rank()).ranges(len(scorer.index)):
        start, stop = samples.start, samples.stop
        file = out / f"scores-{start:012}.parquet"
        if file.exists():
            _same_origin(file, made_by)
            done += len(samples)
        else:
            frames = []
            for scores in scorer.score(start, stop):
                frames.append(_table(scores, keep, scorer.num_classes))
                done += scores.num_seen
                progress(done)
            _write(pl.concat(frames), file, made_by | {"first_sample": start, "end_sample": stop})
            num_new += 1
            num_scored += len(samples)
        progress(done)
    if num_new:
        scorer.corrupt.check()
    return {
        "state": "scored" if num_new else "up to date",
        "num_samples": len(scorer.index),
        "num_scored": num_scored,
        "images_per_second": round(num_scored / max(time.monotonic() - begun, 1e-9), 1),
        "num_corrupt": scorer.corrupt.num_corrupt,
        "out": str(out),
        **{key: value for key, value in made_by.items() if key != "class_names"},
    }


@dataclass(frozen=True)
class StateJob:
    """Selections that scores go into: their options, and the folder of their states.

        <folder>/done-<worker>.json     which ranges are in which states; replaced as a whole
        <folder>/<worker>-<n>-<order>.state

    A worker saves its states now and then and puts its mark after them, so a mark never names what is
    not there. Ranges without a mark are scored again by whoever goes on.
    """

    folder: Path
    num_classes: int
    k: int
    p: int
    orders: tuple[Order, ...]
    memory_bytes: int | None = None
    spill_dir: Path | None = None
    num_threads: int | None = None

    def new(self, order: Order) -> TopK:
        """An empty selection."""
        return TopK(
            self.num_classes,
            self.k,
            self.p,
            order,
            memory_bytes=self.memory_bytes,
            spill_dir=self.spill_dir,
            num_threads=self.num_threads,
        )

    def marks(self) -> list[dict[str, Any]]:
        """What the workers say is done."""
        return [json.loads(file.read_text()) for file in sorted(self.folder.glob("done-*.json"))]

    def done(self) -> set[int]:
        """The first samples of the ranges that are done."""
        return {start for mark in self.marks() for start in mark["ranges"]}

    def is_complete(self, num_samples: int) -> bool:
        """Whether all ranges are done."""
        return set(range(0, num_samples, RANGE)) <= self.done()

    def merged(self, order: Order) -> TopK:
        """All that was scored, in one selection."""
        top = self.new(order)
        for mark in self.marks():
            file = self.folder / mark["states"][order]
            top.merge(TopK.load(file, memory_bytes=self.memory_bytes, spill_dir=self.spill_dir))
        return top


def score_into_states(
    scorer: Scorer,
    job: StateJob,
    *,
    rank: Rank | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Scores the ranges that are not done into selections, and saves their states in `job.folder`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    known = job.done()
    worker = uuid.uuid4().hex[:12]
    tops = {order: job.new(order) for order in job.orders}
    ranges: list[int] = []
    done = num_saved = 0
    saved_at = time.monotonic()
    for samples in (rank or Rank()).ranges(len(scorer.index)):
        if samples.start in known:
            done += len(samples)
            progress(done)
            continue
        for scores in scorer.score(samples.start, samples.stop):
            for top in tops.values():
                top.update_dense(scores.values, scores.samples)
            done += scores.num_seen
            progress(done)
        ranges.append(samples.start)
        if time.monotonic() - saved_at > SAVE_EVERY_S:
            _save_states(job, tops, worker, ranges, num_saved)
            num_saved += 1
            saved_at = time.monotonic()
    scorer.corrupt.check()
    if ranges:
        _save_states(job, tops, worker, ranges, num_saved)


def _save_states(job: StateJob, tops: dict[Order, TopK], worker: str, ranges: list[int], number: int) -> None:
    names = {order: f"{worker}-{number}-{order}.state" for order in tops}
    for order, top in tops.items():
        top.save(job.folder / names[order])
    publish_text(job.folder / f"done-{worker}.json", json.dumps({"states": names, "ranges": ranges}))
    for old in job.folder.glob(f"{worker}-*.state"):
        if old.name not in names.values():
            old.unlink()


def read_metadata(file: Path) -> dict[str, Any]:
    """What a file of predictions or pseudo-labels says of itself; empty where it says nothing."""
    content = pl.read_parquet_metadata(file).get("wsl")
    return {} if content is None else dict(json.loads(content))


def _table(scores: Scores, keep: int | None, num_classes: int) -> pl.DataFrame:
    samples = pl.Series("sample", scores.samples).cast(pl.UInt64)
    if keep is None:
        values = pl.Series("scores", scores.values, dtype=pl.Array(pl.Float32, num_classes))
        return pl.DataFrame([samples, values])
    best = np.argsort(-scores.values, axis=1, kind="stable")[:, :keep]
    return pl.DataFrame(
        {
            "sample": samples.gather(np.repeat(np.arange(len(samples)), best.shape[1])),
            "class": best.astype(np.uint32).ravel(),
            "score": np.take_along_axis(scores.values, best, axis=1).ravel(),
        }
    )


def _write(table: pl.DataFrame, file: Path, metadata: dict[str, Any]) -> None:
    with publishing(file) as temporary:
        table.write_parquet(temporary, metadata={"wsl": json.dumps(metadata)})


def _same_origin(file: Path, made_by: dict[str, Any]) -> None:
    known = read_metadata(file)
    for key in ("teacher_fingerprint", "index_fingerprint", "flip", "temperature", "keep", "num_classes"):
        if known.get(key) != made_by[key]:
            raise UsageError(
                f"{file} was made with {key} {known.get(key)}, now it is {made_by[key]}; write the new "
                "predictions to another folder with --out, or remove this one"
            )
