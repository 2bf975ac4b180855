"""Scoring: a trained network's view of every sample of an index.

What is made is the softmax's log-odds of each class, z_c less the log-sum-exp of the others, in
float32 whatever the network computes in: it orders as the probability does and does not saturate.
With `flip` the logits of the image and of its mirror image are averaged first; `temperature` divides
them. An image that cannot be decoded has no scores; it is counted, and too many of them fail the run.

    predictions/<index>/<teacher>/scores-000000000000.parquet    samples 0 to 65,535

Each file has a range of samples with the columns ``sample`` (u64) and ``scores`` (an array of
float32, one for each class), or ``sample``, ``class``, ``score`` with a row for each of the best
classes of a sample. Its metadata names by which weights, for which range of which parts of an index it was
made; a file appears whole, and a run continues with the samples that are missing, whether it was killed or
the index was added to. Several ranks take the ranges in turns and need nothing of each other.

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
from wsl.files.globs import fingerprint
from wsl.files.publish import publish_text, publishing
from wsl.index.mapped import Index
from wsl.selection.predictions import Span, scored_parts
from wsl.selection.states import Rank, StateJob, covered_by, file_of
from wsl.selection.topk import Order, TopK, log_odds
from wsl.training.export import WEIGHTS, LoadedModel, load_run

SAVING_SHARE = 0.1
"""The most of its time that a rank spends on saving states: where one takes longer, it is put off."""


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

        # All that changes a score: files with other values are of another scoring.
        self.provenance: dict[str, Any] = {
            "teacher": str(run),
            "teacher_fingerprint": fingerprint(run / WEIGHTS),
            "vocabulary_fingerprint": self.loaded.info.get("vocabulary_fingerprint"),
            "index_fingerprint": self.index.fingerprint,
            "num_samples": len(self.index),
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
    """Scores the samples that no file under `out` covers into files there.

    `keep` best classes of each sample are kept, all where None. Where this is one `rank` of several, it
    scores its ranges alone. UsageError where `out` has predictions of another teacher, index or option.
    """
    if keep is not None and not 1 <= keep <= scorer.num_classes:
        raise UsageError(f"--keep: expected 1 to {scorer.num_classes} classes or all, got {keep}")
    out.mkdir(parents=True, exist_ok=True)

    # What files cover is not scored again, whether this scoring was killed or the index has grown since.
    made_by = scorer.provenance | {"keep": keep}
    rank = rank or Rank()
    covered = covered_by(out, made_by, scorer.index, rank)
    done = sum(stop - start for start, stop in covered)
    num_new = num_scored = 0
    begun = time.monotonic()
    progress(done)
    for samples in rank.ranges(len(scorer.index), covered):
        # `before` is fixed when the range begins, since `done` grows while it is scored.
        def advance(scored: int, before: int = done) -> None:
            nonlocal done
            done = before + scored
            progress(done)

        write_range(scorer, samples, out / file_of(samples.start), keep=keep, progress=advance)
        num_new += 1
        num_scored += len(samples)
    return {
        "state": "scored" if num_new else "up to date",
        "num_scored": num_scored,
        "images_per_second": round(num_scored / max(time.monotonic() - begun, 1e-9), 1),
        "num_corrupt": scorer.corrupt.num_corrupt,
        "out": str(out),
        **{key: value for key, value in made_by.items() if key != "class_names"},
    }


def write_range(
    scorer: Scorer,
    samples: range,
    file: Path,
    *,
    keep: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Scores one range of samples into a file, which appears whole."""
    frames, done = [], 0
    for scores in scorer.score(samples.start, samples.stop):
        frames.append(_table(scores, keep, scorer.num_classes))
        done += scores.num_seen
        progress(done)
    scorer.corrupt.check()
    parts = scored_parts(scorer.index, [(samples.start, samples.stop)])
    about = {"first_sample": samples.start, "end_sample": samples.stop, "parts": parts}
    _write(pl.concat(frames), file, scorer.provenance | {"keep": keep} | about)


def score_into_states(
    scorer: Scorer,
    job: StateJob,
    *,
    rank: Rank | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> None:
    """Scores the ranges that are not done into selections, and saves their states in `job.folder`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    rank = rank or Rank()

    # Ranges that a mark names are done, whichever worker scored them.
    known = job.done()
    worker = uuid.uuid4().hex[:12]
    tops = {order: job.new(order) for order in job.orders}
    ranges: list[Span] = []
    done = sum(stop - start for start, stop in known if rank.has(start))
    num_saved, num_marked = 0, 0
    begun, saving_s = time.monotonic(), 0.0
    progress(done)
    for samples in rank.ranges(len(scorer.index), known):
        for scores in scorer.score(samples.start, samples.stop):
            for top in tops.values():
                top.update(scores.samples, scores.values)
            done += scores.num_seen
            progress(done)
        scorer.corrupt.check()
        ranges.append((samples.start, samples.stop))

        # Saving takes time, so it waits until its share is small; what is not saved is scored again after a
        # kill.
        now = time.monotonic()
        if saving_s <= SAVING_SHARE * (now - begun):
            _save_states(job, tops, worker, scorer.index, ranges, num_saved)
            num_saved, num_marked = num_saved + 1, len(ranges)
            saving_s += time.monotonic() - now
    if num_marked < len(ranges):
        _save_states(job, tops, worker, scorer.index, ranges, num_saved)


def _save_states(
    job: StateJob, tops: dict[Order, TopK], worker: str, index: Index, ranges: list[Span], number: int
) -> None:
    names = {order: f"{worker}-{number}-{order}.state" for order in tops}
    for order, top in tops.items():
        top.save(job.folder / names[order])
    mark = {"states": names, "ranges": ranges, "parts": scored_parts(index, ranges)}
    publish_text(job.folder / f"done-{worker}.json", json.dumps(mark))
    for old in job.folder.glob(f"{worker}-*.state"):
        if old.name not in names.values():
            old.unlink()


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
