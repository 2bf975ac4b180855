"""The teacher's scores of the samples that a student trains on, mapped from disk.

`wsl score` keeps for each sample the log-odds of every class. The rows of the samples in the selection are
copied once to `teacher-scores.npy` in the run folder, in the order of their ordinals, as float32
logarithms of probabilities, and mapped from there: no rank has them in memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from wsl._core import DataError, UsageError
from wsl.files.publish import publishing

FILE = "teacher-scores.npy"


class TeacherScores:
    """Logarithms of the teacher's probabilities of the samples of the selection."""

    def __init__(self, run: Path, samples: npt.NDArray[np.int64]) -> None:
        self._samples = np.unique(samples)
        self._rows = np.load(run / FILE, mmap_mode="r")

    def of(self, ordinals: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 N x number of classes for samples of the selection."""
        rows = np.searchsorted(self._samples, ordinals)
        return torch.from_numpy(np.array(self._rows[rows], dtype=np.float32))


def prediction_files(folder: Path) -> list[Path]:
    """The files of predictions in a folder; UsageError where there are none."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".parquet", ".arrow"))
    if not files:
        raise UsageError(
            f"distillation needs the teacher's predictions, and {folder} holds none; run 'wsl score' first, "
            "or set distillation.weight=0"
        )
    return files


def collect_scores(
    folder: Path, run: Path, samples: npt.NDArray[np.int64], num_labels: int, teacher: str | None
) -> None:
    """Writes `teacher-scores.npy` of the predictions in `folder`; one rank calls.

    UsageError where the predictions are cut to the best classes, are of another teacher than the selection,
    or have another number of classes; DataError where a sample of the selection has none.
    """
    wanted = np.unique(samples)
    found = np.zeros(len(wanted), dtype=bool)
    run.mkdir(parents=True, exist_ok=True)
    with publishing(run / FILE) as temporary:
        # numpy adds .npy to a name that lacks it; this one ends in it.
        rows = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float32, shape=(len(wanted), num_labels)
        )
        for file in prediction_files(folder):
            _copy(file, wanted, rows, found, teacher)
        rows.flush()
    if not found.all():
        raise DataError(
            f"{folder} holds no scores of sample {wanted[~found][0]}, which the pseudo-labels name; run 'wsl "
            "score' again"
        )


def _copy(
    file: Path,
    wanted: npt.NDArray[np.int64],
    rows: npt.NDArray[np.float32],
    found: npt.NDArray[np.bool_],
    teacher: str | None,
) -> None:
    try:
        table = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_ipc(file)
        made_by = _teacher_of(file)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(f"{file}: expected predictions as 'wsl score' writes them: {error}") from None
    if teacher is not None and made_by is not None and made_by != teacher:
        raise UsageError(
            f"{file} was made by another teacher ({made_by[:12]}) than the pseudo-labels ({teacher[:12]}); "
            "name the right predictions, or select again"
        )
    if "scores" not in table.columns:
        raise UsageError(f"{file}: distillation needs the scores of all classes; run 'wsl score --keep all'")
    values: Any = table["scores"].to_numpy()
    if values.ndim != 2 or values.shape[1] != rows.shape[1]:
        raise UsageError(
            f"{file}: scores of shape {values.shape}, and the student has {rows.shape[1]} labels"
        )
    samples = table["sample"].to_numpy().astype(np.int64)
    places = np.searchsorted(wanted, samples)
    ours = (places < len(wanted)) & (wanted[np.minimum(places, len(wanted) - 1)] == samples)
    # log p = log sigmoid of the log-odds.
    rows[places[ours]] = -np.logaddexp(0, -values[ours].astype(np.float32))
    found[places[ours]] = True


def _teacher_of(file: Path) -> str | None:
    if file.suffix != ".parquet":
        return None
    content = pl.read_parquet_metadata(file).get("wsl")
    known = json.loads(content).get("teacher_fingerprint") if content else None
    return None if known is None else str(known)
