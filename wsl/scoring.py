"""Scoring: a trained network's view of every sample of an index.

What is kept is the softmax's log-odds of each class, z_c less the log-sum-exp of the others, in
float32: it orders as the probability does and does not saturate. With `flip` the logits of the image
and of its mirror image are averaged first. An image that cannot be decoded has no scores; it is
counted, and too many of them fail the run.

    predictions/<index>/<teacher>/scores-000000000000.parquet    samples 0 to 65,535

Each file holds a range of samples with the columns ``sample`` (u64) and ``scores`` (an array of
float32, one for each class), or ``sample``, ``class``, ``score`` with a row for each of the best
classes of a sample. Its metadata says by which weights, for which index and which range it was made; a
file appears whole, and a killed run goes on with the ranges that are missing.
"""

from __future__ import annotations

import json
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
from wsl.data.dataset import Images
from wsl.index import Index
from wsl.publish import publishing
from wsl.selection import log_odds
from wsl.training.export import WEIGHTS, LoadedModel, load_run
from wsl.training.loop import CorruptCount
from wsl.workspace import fingerprint

RANGE = 65_536
"""Samples of a file of predictions."""


@dataclass(frozen=True)
class Scores:
    """Scores of consecutive samples, those left out that could not be decoded."""

    samples: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    """Log-odds, len(samples) x number of classes."""
    num_seen: int


class Scorer:
    """A trained network over the samples of an index."""

    def __init__(self, run: Path, index: Path, *, flip: bool = True, batch_size: int = 256) -> None:
        self.loaded: LoadedModel = load_run(run)
        self.index = Index.open(index)
        self.flip, self.batch_size = flip, batch_size
        self.num_classes = int(self.loaded.info["num_labels"])
        self.provenance: dict[str, Any] = {
            "teacher": str(run),
            "teacher_fingerprint": fingerprint(run / WEIGHTS),
            "vocabulary_fingerprint": self.loaded.info.get("vocabulary_fingerprint"),
            "index_fingerprint": self.index.fingerprint,
            "num_classes": self.num_classes,
            "class_names": self.loaded.info.get("class_names"),
            "flip": flip,
        }
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self.loaded.model.to(self._device)
        self._images = Images(self.index, self.loaded.config.model, self.loaded.config.data)
        self._images.data = self.loaded.config.data.model_copy(update={"cache_bytes": 0})
        self.corrupt = CorruptCount(self.loaded.config.data.max_corrupt_share, str(index))

    def score(self, start: int = 0, stop: int | None = None) -> Iterator[Scores]:
        """The scores of samples `start` to `stop`, batch by batch; DataError for too many corrupt ones."""
        last = len(self.index) if stop is None else min(stop, len(self.index))
        for first in range(start, last, self.batch_size):
            ordinals = np.arange(first, min(first + self.batch_size, last), dtype=np.int64)
            pixels = self._images.load(ordinals)
            valid = pixels.valid.numpy()
            self.corrupt.add(len(ordinals), int((~valid).sum()))
            logits = self._logits(pixels.images)[valid]
            yield Scores(ordinals[valid], log_odds(logits), len(ordinals))

    def _logits(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        data = self.loaded.config.data
        shown = transforms.normalise(images, data.mean, data.std).to(self._device)
        with torch.inference_mode():
            logits = self._model(shown).float()
            if self.flip:
                logits = (logits + self._model(shown.flip(3)).float()) / 2
        return np.ascontiguousarray(logits.cpu().numpy())


def write_predictions(
    scorer: Scorer,
    out: Path,
    *,
    keep: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[str, Any]:
    """Scores every sample into files under `out`; those that are there already are left as they are.

    `keep` best classes of each sample are kept, all where None. UsageError where `out` holds
    predictions of another teacher, index or option.
    """
    if keep is not None and not 1 <= keep <= scorer.num_classes:
        raise UsageError(f"--keep: expected 1 to {scorer.num_classes} classes or all, got {keep}")
    out.mkdir(parents=True, exist_ok=True)
    made_by = scorer.provenance | {"keep": keep}
    total = len(scorer.index)
    done = num_new = 0
    for start in range(0, total, RANGE):
        stop = min(start + RANGE, total)
        file = out / f"scores-{start:012}.parquet"
        if file.exists():
            _same_origin(file, made_by)
        else:
            frames = []
            for scores in scorer.score(start, stop):
                frames.append(_table(scores, keep, scorer.num_classes))
                done += scores.num_seen
                progress(done)
            _write(pl.concat(frames), file, made_by | {"first_sample": start, "end_sample": stop})
            num_new += 1
            continue
        done += stop - start
        progress(done)
    if num_new:
        scorer.corrupt.check()
    return {
        "state": "scored" if num_new else "up to date",
        "num_samples": total,
        "num_corrupt": scorer.corrupt.num_corrupt,
        "out": str(out),
        **{key: value for key, value in made_by.items() if key != "class_names"},
    }


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
    for key in ("teacher_fingerprint", "index_fingerprint", "flip", "keep", "num_classes"):
        if known.get(key) != made_by[key]:
            raise UsageError(
                f"{file} was made with {key} {known.get(key)}, now it is {made_by[key]}; write the new "
                "predictions to another folder with --out, or remove this one"
            )
