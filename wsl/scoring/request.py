"""What a selection is asked for, and where its scores come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import polars as pl

from wsl._core import UsageError
from wsl.files import stores
from wsl.files.globs import File, find_predictions
from wsl.files.resources import UNLIMITED, Resources
from wsl.files.tables import expected_rows, scan
from wsl.index.mapped import Index
from wsl.scoring.verbs import ScoringOptions, ScoringPaths, parse_keep, scoring_paths, teacher_of
from wsl.selection.output import truth_of
from wsl.selection.predictions import common_keep, is_whole, metadata_of, read_metadata
from wsl.selection.topk import Cut, Order


@dataclass(frozen=True)
class SelectionRequest:
    """What a selection is asked for; paths that are None come from the workspace."""

    k: int
    p: int
    order: str = "class-first"
    predictions: str | None = None
    checkpoint: Path | None = None
    index: Path | None = None
    out: File | None = None
    """A path, or the URI of an object; then scores and states are in the current folder."""
    scores: Path | None = None
    """Where `checkpoint` scores `index`, and finds what it scored before; default: beside `out`."""
    state: Path | None = None
    keep: str | None = None
    """Classes kept of each image as predictions, or "all"; None where only the state is kept."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    allow_truncated: bool = False
    compare_orders: bool = False
    truth: Path | None = None
    truth_column: str = "label"
    resources: Resources = UNLIMITED
    overwrite: bool = False

    def cut(self, num_classes: int, order: str | None = None) -> Cut:
        """What the selection keeps, in the order that is wanted or another one."""
        return Cut(num_classes, self.k, self.p, cast("Order", order or self.order))


@dataclass(frozen=True)
class ScoreSource:
    """Where the scores come from: files, a network that is to score, or both: what the files lack."""

    made_by: dict[str, Any]
    index: Path | None
    files: Sequence[File]
    paths: ScoringPaths | None = None
    num_images: int | None = None
    """Images in the files, where there is no index to count them and K may be too large for them."""


def check_numbers(k: int | None, p: int | None) -> None:
    """UsageError for a K or P below 1; None is for what a state has."""
    for name, number in (("--k", k), ("--p", p)):
        if number is not None and number < 1:
            raise UsageError(f"{name} {number}: expected at least 1")


def check_request(request: SelectionRequest) -> None:
    check_numbers(request.k, request.p)
    if request.order not in ("class-first", "image-first"):
        raise UsageError(f"--order {request.order}: expected class-first or image-first")
    if request.keep is not None:
        parse_keep(request.keep)


def find_source(request: SelectionRequest, out: File, folder: Path | None) -> ScoreSource:
    if request.predictions is not None:
        files = find_predictions(request.predictions)
        made_by = metadata_of(files, None if request.index is None else Index.open(request.index))
        return ScoreSource(made_by, request.index, files, num_images=_num_images(request, files, made_by))

    # With a network and an index of one's own the workspace has no place for the scores: they go beside the
    # output.
    wanted = None
    if request.checkpoint is not None and request.index is not None:
        beside = Path(Path(out).name) if isinstance(out, str) else out
        wanted = request.scores or beside.parent / f"{beside.stem}-scores"
    paths = scoring_paths(request.checkpoint, request.index, wanted, folder)
    made_by = teacher_of(paths, request.scoring)
    files = sorted(paths.out.glob("scores-*.parquet"))
    index = Index.open(paths.index)
    if request.keep is not None:
        return ScoreSource(made_by | {"keep": parse_keep(request.keep)}, paths.index, files, paths)

    # Without --keep, scores that are there are used where they fit, so that nothing is scored twice.
    usable, keep = common_keep(files, made_by, index)
    if not usable:
        return ScoreSource(made_by, paths.index, [], paths)
    left = None if is_whole(files, index) else paths
    return ScoreSource(made_by | {"keep": keep}, paths.index, files, left)


def _num_images(request: SelectionRequest, files: Sequence[File], made_by: dict[str, Any]) -> int | None:
    """Images in the files, exactly or by a sketch of their names; None where K is small for them anyhow."""
    names = [str(file) for file in files]
    frame = scan(names)
    schema = frame.collect_schema()
    rows = expected_rows(names)
    if rows is None or "score" not in schema:
        return rows
    if made_by.get("keep"):
        return rows // int(made_by["keep"])
    num_classes = int(made_by["num_classes"])
    # An image has one row for each class at most.
    if request.k * num_classes * num_classes <= rows:
        return None
    name = "sample" if "sample" in schema else "key"
    return int(frame.select(pl.col(name).approx_n_unique()).collect(engine="streaming").item())


def warnings_of_k(request: SelectionRequest, num_classes: int, num_samples: int | None) -> list[str]:
    if num_samples is None or request.k * num_classes <= num_samples:
        return []
    enough = num_samples // num_classes
    advice = f"with K = {enough:,} they need not" if enough else "there are more classes than images"
    if request.k > num_samples:
        advice += f"; K is beyond the {num_samples:,} images, so every class takes all of them"
    return [
        f"K = {request.k:,} times {num_classes:,} classes is beyond the {num_samples:,} images: most images "
        f"must serve several classes, and classes take images that are not theirs; {advice}"
    ]


def check_reported(known: dict[str, Any], request: SelectionRequest, out: File) -> None:
    """UsageError where the selection at `out` is the one wanted, and its report lacks what is asked for."""
    lacking = []
    if request.truth is not None and known.get("truth") != truth_of(request.truth, request.truth_column):
        lacking.append(f"the precision by --truth {request.truth}")
    if request.compare_orders and known["agreement_of_orders"] is None:
        lacking.append("how far the orders agree (--compare-orders)")
    if lacking:
        raise UsageError(
            f"{out} holds this selection already, and its report lacks {' and '.join(lacking)}; pass "
            "--overwrite to select again, or --out FILE for another place"
        )


def known_selection(out: File, provenance: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    if overwrite or not stores.exists(out):
        return None
    known = read_metadata(out)
    changed = [key for key, value in provenance.items() if known.get(key) != value and key != "teacher"]
    if changed:
        raise UsageError(
            f"{out} holds another selection ({', '.join(changed)} differ); pass --overwrite to replace it, "
            "or --out FILE for another place"
        )
    return dict(known["report"]) | {key: known[key] for key in ("k", "p", "order")}
