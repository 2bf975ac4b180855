"""What a run measures: accuracy on held-out data, and the curve of its losses."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wsl.runs.intervals import Interval, macro_interval, wilson

COLUMNS = (
    *("step", "loss", "lr", "images_per_second", "waiting_share", "memory_bytes", "num_corrupt"),
    *("top1", "top5", "macro"),
)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy over all labelled samples of an index that could be decoded."""

    top1: float
    """Share of samples whose best class is among their labels."""
    top5: float
    macro: float
    """Mean of the recalls of the classes that occur."""
    per_class_recall: list[float | None]
    """Recall at 1 of each class, None where it does not occur."""
    confusion: list[list[int]] | None
    """Row: label, column: prediction; None for more than 1,000 classes."""
    num_samples: int
    num_corrupt: int
    top1_interval: Interval | None = None
    """95 % (Wilson 1927), as the next."""
    top5_interval: Interval | None = None
    macro_interval: Interval | None = None
    """95 %, by the normal approximation over the classes' recalls."""
    per_class_interval: list[Interval | None] | None = None
    per_class_recall_at_10: list[float | None] | None = None
    """Share of the images with a class that have it among their ten best, None where it does not occur;
    None as a whole where there are at most ten classes. Runs of older versions lack it."""

    def summary(self) -> dict[str, float]:
        """The three accuracies."""
        return {"top1": self.top1, "top5": self.top5, "macro": self.macro}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


class Accuracy:
    """Adds up hits batch by batch; its `sums` may be added over ranks."""

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.sums = torch.zeros(4, dtype=torch.int64)  # samples, hits at 1, hits at 5, corrupt
        self.of_class = torch.zeros(3, num_labels, dtype=torch.int64)  # occurrences, hits at 1, hits at 10
        size = num_labels if num_labels <= 1000 else 0
        self.confusion = torch.zeros(size, size, dtype=torch.int64)

    def update(self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> None:
        """`logits` float N x C, `labels` int64 N x L; a label counts where its weight is above 0."""
        real = weights > 0
        keep = real.any(1)
        logits, labels, real = logits[keep], labels[keep], real[keep]
        best = logits.topk(min(10, self.num_labels), dim=1).indices
        hits = (best[:, :, None] == labels[:, None, :]) & real[:, None, :]  # N x rank x label
        self.sums[0] += len(labels)
        self.sums[1] += hits[:, 0].any(1).sum()
        self.sums[2] += hits[:, :5].any(2).any(1).sum()
        for row, counted in enumerate((real, hits[:, 0], hits.any(1))):
            self.of_class[row] += torch.bincount(labels[counted], minlength=self.num_labels)
        if len(self.confusion):
            cells = labels * self.num_labels + best[:, :1]
            self.confusion += torch.bincount(cells[real], minlength=self.num_labels**2).view_as(
                self.confusion
            )

    def finish(self) -> Evaluation:
        """The accuracies of everything added."""
        num, top1, top5, corrupt = self.sums.tolist()
        occurrences, hits, hits_at_10 = self.of_class.tolist()
        recalls, recalls_at_10 = (
            [h / n if n else None for n, h in zip(occurrences, found, strict=True)]
            for found in (hits, hits_at_10)
        )

        # A class without images has no recall, and does not count in the mean.
        known = [recall for recall in recalls if recall is not None]
        return Evaluation(
            top1=top1 / max(num, 1),
            top5=top5 / max(num, 1),
            macro=sum(known) / max(len(known), 1),
            per_class_recall=recalls,
            confusion=self.confusion.tolist() if len(self.confusion) else None,
            num_samples=num,
            num_corrupt=corrupt,
            top1_interval=wilson(top1, num),
            top5_interval=wilson(top5, num),
            macro_interval=macro_interval(hits, occurrences),
            per_class_interval=[wilson(h, n) for h, n in zip(hits, occurrences, strict=True)],
            per_class_recall_at_10=recalls_at_10 if self.num_labels > 10 else None,
        )


def _whole(row: dict[str, str]) -> bool:
    """Whether a row was written to its end; a machine that crashed may leave half of one."""
    return row["step"].isdigit() and tuple(row) == COLUMNS and None not in row.values()


class MetricsLog:
    """`metrics.csv` and TensorBoard events of a run; rows from `start` on are written anew."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        file = run / "metrics.csv"
        old: list[dict[str, str]] = []
        if start and file.is_file():
            with file.open(encoding="utf-8", newline="") as lines:
                old = [row for row in csv.DictReader(lines) if _whole(row) and int(row["step"]) <= start]
        # Before the file is opened, which nobody would close if this failed.
        self._events = SummaryWriter(str(run / "events"), purge_step=start or None)
        self._file = file.open("w", encoding="utf-8", newline="")
        self._table = csv.DictWriter(self._file, COLUMNS)
        self._table.writeheader()
        self._table.writerows(old)

    def write(self, step: int, **values: float) -> None:
        """One row."""
        self._table.writerow({"step": step} | values)
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Ends both files."""
        self._file.close()
        self._events.close()
