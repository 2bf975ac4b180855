"""Selections in progress: which ranges of samples are scored, and in which states or files; no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from wsl._core import UsageError
from wsl.files.publish import remove_unfinished
from wsl.files.resources import UNLIMITED, Resources
from wsl.index.mapped import Index
from wsl.selection.predictions import (
    SCORED_BY,
    Span,
    gaps,
    is_valid_for,
    overlap,
    read_metadata,
    scored_parts,
    span_of,
)
from wsl.selection.topk import Cut, Order, TopK

RANGE = 65_536
"""Samples of a file of predictions."""


@dataclass(frozen=True)
class Rank:
    """Which of the ranges of samples a process scores: every `world_size`-th from `number` on."""

    number: int = 0
    world_size: int = 1

    def has(self, sample: int) -> bool:
        """Whether a sample is in its ranges."""
        return sample // RANGE % self.world_size == self.number

    def ranges(self, num_samples: int, covered: Iterable[Span] = ()) -> Iterator[range]:
        """Its ranges of samples, or what is left of them, ascending."""
        return (samples for samples in gaps(covered, num_samples, RANGE) if self.has(samples.start))


def file_of(start: int) -> str:
    """The name of the file with the scores of the range that begins with sample `start`."""
    return f"scores-{start:012}.parquet"


@dataclass(frozen=True)
class StateJob:
    """Selections that scores go into: their options, and the folder of their states.

        <folder>/done-<worker>.json     which ranges are in which states; replaced as a whole
        <folder>/<worker>-<n>-<order>.state

    After each range a worker saves its states and puts its mark after them, so a mark never names what
    is not there. Ranges without a mark are scored by whoever resumes. A mark names the parts of the index
    that contain its ranges, so that it stays valid when the index is added to. Of two marks that name the
    same samples, which only workers without a lock could leave, one counts.
    """

    folder: Path
    cut: Cut
    """What each of them keeps, in each of the orders."""
    orders: tuple[Order, ...]
    resources: Resources = UNLIMITED

    def new(self, order: Order) -> TopK:
        """An empty selection."""
        return replace(self.cut, order=order).new(self.resources)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the processes that score."""
        about = {"cut": self.cut.to_json(), "orders": self.orders, "resources": self.resources.to_json()}
        return about | {"folder": str(self.folder)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` made."""
        return cls(
            Path(tree["folder"]),
            Cut.from_json(tree["cut"]),
            tuple(tree["orders"]),
            Resources.from_json(tree["resources"]),
        )

    def marks(self) -> list[dict[str, Any]]:
        """What is done by the workers' marks, and of which parts of an index."""
        found: list[dict[str, Any]] = []
        taken: list[Span] = []
        for file in sorted(self.folder.glob("done-*.json")):
            mark = json.loads(file.read_text())
            spans = [(start, stop) for start, stop in mark["ranges"]]
            if "parts" in mark and not overlap([*taken, *spans]):
                found.append(mark)
                taken += spans
        return found

    def done(self) -> list[Span]:
        """The ranges that are done."""
        return [(start, stop) for mark in self.marks() for start, stop in mark["ranges"]]

    def is_valid_for(self, index: Index) -> bool:
        """Whether all that is done was done of samples that the index has, unchanged."""
        return all(mark["parts"] == scored_parts(index, mark["ranges"]) for mark in self.marks())

    def forget(self) -> None:
        """Removes all that is done."""
        for file in [*self.folder.glob("done-*.json"), *self.folder.glob("*.state")]:
            file.unlink()

    def tidy(self) -> None:
        """Removes what killed workers left; for who has locked the folder."""
        remove_unfinished(self.folder)
        named = {name for mark in self.marks() for name in mark["states"].values()}
        for file in self.folder.glob("*.state"):
            if file.name not in named:
                file.unlink()

    def is_complete(self, num_samples: int) -> bool:
        """Whether all ranges are done."""
        return next(gaps(self.done(), num_samples, num_samples), None) is None

    def merged(self, order: Order) -> TopK:
        """All that was scored, in one selection."""
        top = self.new(order)
        for mark in self.marks():
            file = self.folder / mark["states"][order]
            top.merge(TopK.load(file, **self.resources.memory()))
        return top


def covered_by(out: Path, made_by: dict[str, Any], index: Index, rank: Rank | None = None) -> list[Span]:
    """What the files there cover of the rank's samples; UsageError for a file of another origin."""
    rank = rank or Rank()
    covered = []
    for file in sorted(out.glob("scores-*.parquet")):
        number = file.stem.removeprefix("scores-")
        if number.isdigit() and rank.has(int(number)):
            known = read_metadata(file)
            _same_origin(file, known, made_by, index)
            covered.append(span_of(known))
    return covered


def _same_origin(file: Path, known: dict[str, Any], made_by: dict[str, Any], index: Index) -> None:
    differing = [key for key in (*SCORED_BY, "keep", "num_classes") if known.get(key) != made_by[key]]
    if not is_valid_for(known, index):
        differing.append("index_fingerprint")
    for key in differing:
        raise UsageError(
            f"{file} was made with {key} {known.get(key)}, now it is {made_by[key]}; write the new "
            "predictions to another folder with --out, or remove this one"
        )
