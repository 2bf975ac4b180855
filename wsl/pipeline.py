"""The verbs of the command line over a workspace or over plain paths; nothing here parses or prints.

Run again with the same inputs and options, each says "up to date". No torch is loaded before a
network has to run.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wsl._core import DataError, UsageError
from wsl.index import Index
from wsl.publish import publishing
from wsl.selection import Selection, TopK
from wsl.workspace import Workspace, fingerprint

Progress = Callable[[int], object]
Warn = Callable[[str], object]

MAX_KEPT_BYTES = 4 << 30
"""Larger predictions are not kept when a selection scores by itself."""


def _silent(_: object) -> None:
    return None


@dataclass(frozen=True)
class ScoringPaths:
    """Whose scores of what go where."""

    run: Path
    index: Path
    out: Path


def scoring_paths(
    run: Path | None, index: Path | None, out: Path | None, folder: Path | None
) -> ScoringPaths:
    """Fills in what the workspace knows: the newest teacher, the unlabelled index, its predictions."""
    if run is not None and index is not None and out is not None:
        return ScoringPaths(run, index, out)
    if run is not None and index is not None:
        raise UsageError("--checkpoint and --index need --out DIR, the folder of the predictions")
    workspace = Workspace.find(folder)
    name = workspace.unlabelled()
    run = run or workspace.complete_run("teacher")
    index = index or workspace.built_index(name)
    if out is None:
        weights = run / "model.safetensors"
        if not weights.is_file():
            raise UsageError(f"{run} is not a complete run: it has no model.safetensors; train it first")
        out = workspace.predictions_path(index.name) / fingerprint(weights)[:12]
    return ScoringPaths(run, index, out)


def score(
    paths: ScoringPaths,
    *,
    keep: int | None = None,
    flip: bool = True,
    batch_size: int = 256,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Scores every sample of an index; what is there already is left as it is."""
    from wsl.scoring import Scorer, write_predictions

    scorer = Scorer(paths.run, paths.index, flip=flip, batch_size=batch_size)
    return write_predictions(scorer, paths.out, keep=keep, progress=progress)


def parse_keep(text: str) -> int | None:
    """The value of --keep: a number of classes, or None for all."""
    if text == "all":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--keep {text}: expected a number of classes from 1, or all")
    return int(text)


@dataclass(frozen=True)
class SelectionRequest:
    """What a selection is asked for; paths that are None come from the workspace."""

    k: int
    p: int
    order: str = "class-first"
    predictions: str | None = None
    checkpoint: Path | None = None
    index: Path | None = None
    out: Path | None = None
    state: Path | None = None
    flip: bool = True
    allow_truncated: bool = False
    overwrite: bool = False


def select(
    request: SelectionRequest,
    folder: Path | None = None,
    *,
    progress: Progress = _silent,
    warn: Warn = _silent,
) -> dict[str, Any]:
    """Selects pseudo-labels and writes them with their provenance; returns a report.

    Predictions come from files, or the teacher scores first. UsageError for k or p below 1, and
    where another selection is at `out` already.
    """
    for name, number in (("--k", request.k), ("--p", request.p)):
        if number < 1:
            raise UsageError(f"{name} {number}: expected at least 1")
    if request.order not in ("class-first", "image-first"):
        raise UsageError(f"--order {request.order}: expected class-first or image-first")
    out = request.out
    if out is None:
        out = Workspace.find(folder).pseudolabels
    if request.predictions is not None:
        index = request.index
        files = _prediction_files(request.predictions)
        made_by = _metadata_of(files)
    else:
        wanted = None
        if request.checkpoint is not None and request.index is not None:
            wanted = out.parent / "unused"
        paths = scoring_paths(request.checkpoint, request.index, wanted, folder)
        index = paths.index
        made_by = _teacher_of(paths, request.flip)
        files = []
    provenance = made_by | {"k": request.k, "p": request.p, "order": request.order}
    known = _up_to_date(out, provenance, request.overwrite)
    if known is not None and (request.state is None or request.state.is_file()):
        return known | {"state": "up to date", "out": str(out), "warnings": []}
    num_samples = len(Index.open(index)) if index is not None else None
    _warn_early(request, int(made_by["num_classes"]), num_samples, warn)
    if request.predictions is None:
        top, files = _score_for(request, paths, made_by, progress)
    else:
        top = TopK(int(made_by["num_classes"]), request.k, request.p, request.order)  # type: ignore[arg-type]
    for file in files:
        _feed(top, file, progress)
    _check_truncated(top, made_by.get("keep"), request)
    if request.state is not None:
        top.save(request.state)
    return _publish(top.finish(), out, provenance, index, warn)


def merge_states(
    parts: list[Path],
    out: Path,
    index: Path | None,
    *,
    k: int | None,
    p: int | None,
    overwrite: bool,
    warn: Warn = _silent,
) -> dict[str, Any]:
    """Joins states saved apart and publishes their selection; `k` and `p` may cut it further."""
    top = TopK.load(parts[0])
    for part in parts[1:]:
        top.merge(TopK.load(part))
    provenance = {
        "k": k or top.k,
        "p": p or top.p,
        "order": top.order,
        "num_classes": top.num_classes,
        "parts": {part.name: fingerprint(part) for part in parts},
        "index_fingerprint": Index.open(index).fingerprint if index else None,
    }
    known = _up_to_date(out, provenance, overwrite)
    if known is not None:
        return known | {"state": "up to date", "out": str(out), "warnings": []}
    return _publish(top.finish(k, p), out, provenance, index, warn)


def _prediction_files(pattern: str) -> list[Path]:
    if os.path.isdir(pattern):
        pattern = os.path.join(pattern, "*.parquet")
    files = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
    if not files:
        raise UsageError(f"--predictions: no file matches {pattern!r}; make them with 'wsl score'")
    return files


def _metadata_of(files: list[Path]) -> dict[str, Any]:
    """What the files agree on; the number of classes is looked for in them where nobody says it."""
    first: dict[str, Any] | None = None
    same = ("teacher_fingerprint", "index_fingerprint", "vocabulary_fingerprint", "flip", "keep")
    for file in files:
        known = _read_metadata(file)
        if first is None:
            first = known
        for key in same:
            if known.get(key) != first.get(key):
                raise UsageError(
                    f"{file}: {key} is {known.get(key)}, and {first.get(key)} in {files[0]}; "
                    "a selection takes predictions of one teacher over one index"
                )
    found = {key: value for key, value in (first or {}).items() if not key.endswith("_sample")}
    if "num_classes" not in found:
        found["num_classes"] = _count_classes(files)
        found["predictions"] = {file.name: fingerprint(file) for file in files}
    return found


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        content = pl.read_parquet_metadata(file).get("wsl")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: expected predictions as a Parquet file, found: {error}") from None
    return {} if content is None else dict(json.loads(content))


def _count_classes(files: list[Path]) -> int:
    frame = pl.scan_parquet(files)
    schema = frame.collect_schema()
    missing = [name for name in ("sample", "class", "score") if name not in schema]
    if missing:
        raise UsageError(
            f"{files[0]}: expected columns sample, class and score; there is no {missing[0]!r} among "
            f"{', '.join(schema)}"
        )
    highest = frame.select(pl.col("class").max()).collect().item()
    if highest is None:
        raise DataError(f"{files[0]}: the predictions hold no rows")
    return int(highest) + 1


def _teacher_of(paths: ScoringPaths, flip: bool) -> dict[str, Any]:
    """The provenance that scoring would give, without loading the network."""
    from wsl.workspace import is_complete, read_run

    if not is_complete(paths.run):
        raise UsageError(
            f"{paths.run} is not a complete run; train the teacher first: 'wsl train --stage teacher'"
        )
    info = read_run(paths.run)
    return {
        "teacher": str(paths.run),
        "teacher_fingerprint": fingerprint(paths.run / "model.safetensors"),
        "vocabulary_fingerprint": info.get("vocabulary_fingerprint"),
        "index_fingerprint": Index.open(paths.index).fingerprint,
        "num_classes": info["num_labels"],
        "class_names": info.get("class_names"),
        "flip": flip,
    }


def _warn_early(request: SelectionRequest, num_classes: int, num_samples: int | None, warn: Warn) -> None:
    if num_samples is not None and request.k * num_classes > num_samples:
        warn(
            f"K = {request.k:,} times {num_classes:,} classes is beyond the {num_samples:,} images: classes "
            "will take images that are not theirs; a K up to the size of a class is meant "
            f"(here about {max(num_samples // num_classes, 1):,})"
        )


def _score_for(
    request: SelectionRequest, paths: ScoringPaths, made_by: dict[str, Any], progress: Progress
) -> tuple[TopK, list[Path]]:
    """An empty state and files to feed it; or a full state, where predictions are not to be kept."""
    num_classes = int(made_by["num_classes"])
    top = TopK(num_classes, request.k, request.p, request.order)  # type: ignore[arg-type]
    size = len(Index.open(paths.index)) * num_classes * 4
    keep = paths.out.name != "unused" and size <= MAX_KEPT_BYTES
    if keep:
        score(paths, flip=request.flip, progress=progress)
        return top, sorted(paths.out.glob("scores-*.parquet"))
    from wsl.scoring import Scorer

    scorer = Scorer(paths.run, paths.index, flip=request.flip)
    done = 0
    for scores in scorer.score():
        top.update_dense(scores.values, scores.samples)
        done += scores.num_seen
        progress(done)
    scorer.corrupt.check()
    return top, []


def _feed(top: TopK, file: Path, progress: Progress) -> None:
    try:
        table = pl.read_parquet(file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: expected predictions as a Parquet file, found: {error}") from None
    if "scores" in table.columns:
        values = np.ascontiguousarray(table["scores"].to_numpy())
        top.update_dense(values, table["sample"].to_numpy())
    else:
        try:
            top.update_pairs(table.select("sample", "class", "score"))
        except (UsageError, DataError) as error:
            raise type(error)(f"{file}: {error}") from None
        except pl.exceptions.ColumnNotFoundError as error:
            raise UsageError(f"{file}: expected columns sample, class and score: {error}") from None
    progress(int(table["sample"].max() or 0) + 1)  # type: ignore[arg-type]


def _check_truncated(top: TopK, keep: int | None, request: SelectionRequest) -> None:
    """Predictions cut to M classes are enough only where no class outside them could be selected."""
    if keep is None or keep >= top.num_classes or request.allow_truncated:
        return
    if request.order == "image-first":
        if request.p > keep:
            raise UsageError(
                f"--p {request.p}: the predictions hold the {keep} best classes of an image only; score "
                "again with a larger --keep, or pass --allow-truncated"
            )
        return
    table = top.finish(p=top.num_classes).table
    lowest = table.filter(pl.col("rank") == request.k).select("class", "probability")
    certain = set(lowest.filter(pl.col("probability") > 1 / (keep + 1))["class"].to_list())
    doubtful = [number for number in range(top.num_classes) if number not in certain]
    if doubtful:
        raise UsageError(
            f"the predictions hold the {keep} best classes of an image, and for {len(doubtful):,} classes "
            f"(first: {', '.join(map(str, doubtful[:5]))}) an image outside them could be among the best "
            f"{request.k:,}; score again with a larger --keep, lower --k, or pass --allow-truncated"
        )


def _up_to_date(out: Path, provenance: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    if overwrite or not out.exists():
        return None
    known = _read_metadata(out)
    changed = [key for key, value in provenance.items() if known.get(key) != value and key != "teacher"]
    if changed:
        raise UsageError(
            f"{out} holds another selection ({', '.join(changed)} differ); pass --overwrite to replace it, "
            "or --out FILE for another place"
        )
    return dict(known["report"]) | {key: known[key] for key in ("k", "p", "order")}


def _publish(
    selection: Selection, out: Path, provenance: dict[str, Any], index: Path | None, warn: Warn
) -> dict[str, Any]:
    table = selection.table
    names = provenance.get("class_names") or [str(number) for number in range(len(selection.before))]
    classes = [
        {"class": name, "before": int(before), "after": int(after)}
        for name, before, after in zip(names, selection.before, selection.after, strict=True)
    ]
    short = selection.short_classes
    warnings = []
    if len(short):
        warnings.append(
            f"{len(short):,} of {len(classes):,} classes have fewer than K = {selection.k:,} images "
            f"(first: {', '.join(str(names[number]) for number in short[:5])})"
        )
    for text in warnings:
        warn(text)
    report = {
        "num_pairs": len(table),
        "num_images": table["sample"].n_unique(),
        "num_short_classes": len(short),
        "classes": classes,
    }
    if index is not None:
        keys = Index.open(index).keys(table["sample"].to_numpy().astype(np.int64))
        table = table.insert_column(1, pl.Series("key", keys, dtype=pl.String))
    out.parent.mkdir(parents=True, exist_ok=True)
    with publishing(out) as temporary:
        table.write_parquet(temporary, metadata={"wsl": json.dumps(provenance | {"report": report})})
    options = {key: provenance[key] for key in ("k", "p", "order")}
    return report | options | {"state": "selected", "out": str(out), "warnings": warnings}
