"""The verbs of selection over a workspace or plain paths; nothing here parses or prints.

Run again with the same inputs and options, each returns "up to date". No torch is loaded before a
network has to run.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

from wsl._core import DataError, UsageError
from wsl.files.globs import File, fingerprint
from wsl.files.locking import locked
from wsl.files.publish import publish_text
from wsl.files.resources import UNLIMITED, Resources
from wsl.files.tables import expected_rows, open_stream, scan
from wsl.index.mapped import Index
from wsl.progress import silent
from wsl.scoring.request import (
    ScoreSource,
    SelectionRequest,
    check_numbers,
    check_reported,
    check_request,
    find_source,
    known_selection,
    warnings_of_k,
)
from wsl.scoring.verbs import SCORING, Executor, job_of, score, score_on_ranks
from wsl.selection import output
from wsl.selection.dropped import Dropped
from wsl.selection.keyed import KeyedPredictions, samples_of
from wsl.selection.predictions import SCORED_BY, are_ranges
from wsl.selection.states import StateJob
from wsl.selection.topk import LAYOUT, Cut, Order, Selection, TopK
from wsl.workspace.layout import Workspace

Progress = Callable[[int], object]
Warn = Callable[[str], object]

SMALL = 50_000_000
"""Scores that both orders are selected from unasked, to show how far they agree."""


def select(
    request: SelectionRequest,
    folder: Path | None = None,
    *,
    progress: Progress = silent,
    warn: Warn = silent,
) -> dict[str, Any]:
    """Selects pseudo-labels and writes them with their provenance; returns a report.

    Predictions come from files, or the teacher scores first. UsageError for k or p below 1, and
    where another selection is at `out` already.
    """
    check_request(request)
    out = request.out or Workspace.find(folder).pseudolabels
    source = find_source(request, out, folder)
    index = None if source.index is None else Index.open(source.index)
    dropped = None if index is None else Dropped(index)

    # All that can change the result is in its provenance, by which a result that is there is known again.
    provenance = source.made_by | {"k": request.k, "p": request.p, "order": request.order}
    provenance["dropped"] = None if dropped is None else dropped.fingerprint
    known = known_selection(out, provenance, request.overwrite)
    if known is not None:
        check_reported(known, request, out)

    # The state is an output too: where it is missing, the selection is made once more.
    if known is not None and (request.state is None or request.state.is_file()):
        return known | {"state": "up to date", "out": str(out), "warnings": []}

    # What can be wrong with K or the truth is found before the scoring, which may take hours.
    num_classes = int(source.made_by["num_classes"])
    num_samples = source.num_images if index is None else len(index)
    warnings = warnings_of_k(request, num_classes, num_samples)
    for text in warnings:
        warn(text)
    truth = _truth(request, source.made_by, index)

    # The writing asks for the keys, so what numbers them is kept until the end.
    with _keyed(source.files, index, request, warn) as keyed:
        tops = _take(request, source, keyed, dropped, num_classes, progress, warn)
        top = tops[request.order]
        selection = top.finish(request.k, request.p)
        _check_truncated(selection, source.made_by.get("keep"), request)
        if request.state is not None:
            _save_state(top, request.state, request.overwrite)
        keys = keyed.keys if keyed else None if index is None else index.keys
        agreement = _agreement(request, selection, tops, num_classes)
        left_out = dropped.num_left_out if dropped else 0
        found = output.write(
            selection, out, provenance, keys=keys, truth=truth, agreement=agreement, num_dropped=left_out
        )
    warnings += _late_warnings(found, selection, warn)
    options = {key: provenance[key] for key in ("k", "p", "order")}
    return found | options | {"state": "selected", "out": str(out), "warnings": warnings}


def _save_state(top: TopK, file: Path, overwrite: bool) -> None:
    """Saves a selection's state; UsageError where the file has another one and may not be replaced."""
    if overwrite or not file.exists():
        top.save(file)
        return
    # A command that was killed after it saved its state finds it here, the same to the byte.
    new = file.with_name(f".{file.name}.new")
    try:
        top.save(new)
        if fingerprint(new) != fingerprint(file):
            raise UsageError(
                f"--state {file} is another file already; pass --overwrite to replace it, or name another"
            )
    finally:
        new.unlink(missing_ok=True)


def _take(
    request: SelectionRequest,
    source: ScoreSource,
    keyed: KeyedPredictions | None,
    dropped: Dropped | None,
    num_classes: int,
    progress: Progress,
    warn: Warn,
) -> dict[str, TopK]:
    """Selections that have taken all scores, by order: the one asked for, and the other to compare."""
    files = source.files
    executor = request.scoring.executor

    # Without --keep nobody wants the scores: they go straight into a state, and not into files.
    if source.paths is not None:
        if request.keep is None and not files:
            if executor is not None:
                return _score_elsewhere(request, source, dropped, num_classes, executor)
            return _score_into_states(request, source, dropped, num_classes)
        score(source.paths, keep=source.made_by["keep"], options=request.scoring)
        files = sorted(source.paths.out.glob("scores-*.parquet"))
    orders = _orders(request, files, num_classes)
    tops: dict[str, TopK] = {}
    for order in orders:
        if executor is not None:
            reason = _why_together(files, order, keyed, dropped)
            if reason is None:
                cut = request.cut(num_classes, order)
                names = [str(file) for file in files]
                tops[order] = executor.select(names, _columns(files), cut, request.resources)
                continue
            warn(f"{files[0]}: {reason}, so this process selects {order} by itself")
        tops[order] = request.cut(num_classes, order).new(request.resources)
        if keyed is None:
            _feed(tops[order], files, dropped, progress, warn)
        else:
            _feed_keyed(tops[order], files, keyed, dropped, progress)
    return tops


def _orders(request: SelectionRequest, files: Sequence[File], num_classes: int) -> list[str]:
    if request.p >= num_classes:
        return [request.order]
    if not request.compare_orders:
        rows = expected_rows([str(file) for file in files])
        dense = "scores" in scan([str(file) for file in files]).collect_schema()
        if not dense or rows is None or rows * num_classes > SMALL:
            return [request.order]
    return [request.order, _other(request.order)]


def _orders_scored(request: SelectionRequest, num_classes: int) -> list[Order]:
    """The order that is wanted, and the other one where the two are to be compared."""
    order = cast("Order", request.order)
    return [order, _other(order)] if request.compare_orders and request.p < num_classes else [order]


def _other(order: str) -> Order:
    return "image-first" if order == "class-first" else "class-first"


def _agreement(
    request: SelectionRequest, selection: Selection, tops: dict[str, TopK], num_classes: int
) -> float | None:
    if request.p >= num_classes:
        return 1.0
    others = [top for order, top in tops.items() if order != request.order]
    return selection.agreement(others[0].finish(request.k, request.p)) if others else None


def _score_into_states(
    request: SelectionRequest, source: ScoreSource, dropped: Dropped | None, num_classes: int
) -> dict[str, TopK]:
    """Lets the teacher score into selections what no state of a K as large has yet."""
    assert source.paths is not None
    index = Index.open(source.paths.index)
    orders = _orders_scored(request, num_classes)
    job = _state_job(request, source, orders, index)
    if job.is_complete(len(index)) and job.is_valid_for(index):
        return _without(dropped, _merged(job, orders), request, job.folder)
    with locked(job.folder, SCORING):
        if not job.is_valid_for(index):
            job.forget()
        job.tidy()
        about = job.cut.to_json() | {"orders": job.orders}
        publish_text(job.folder / "job.json", json.dumps(about | {"made_by": source.made_by}))
        states = job_of(source.paths, request.scoring) | {"states": job.to_json()}
        score_on_ranks(states, request.scoring, job.folder)
        return _without(dropped, _merged(job, orders), request, job.folder)


def _merged(job: StateJob, orders: list[Order]) -> dict[str, TopK]:
    return {order: job.merged(order) for order in orders}


def _without(
    dropped: Dropped | None, tops: dict[str, TopK], request: SelectionRequest, folder: Path | str
) -> dict[str, TopK]:
    """Selections by order, whose states are in `folder`, without the samples removed."""
    if dropped is None:
        return tops
    where = f"{folder} (remove it, and the teacher scores again)"
    return {
        order: dropped.out_of_state(top, request.k, where, request.resources) for order, top in tops.items()
    }


def _why_together(
    files: Sequence[File], order: str, keyed: KeyedPredictions | None, dropped: Dropped | None
) -> str | None:
    """Why one process must take all files, if it must."""
    if keyed is not None:
        return "samples are named by key and must be numbered together"
    if dropped is not None and len(dropped.samples):
        return f"{len(dropped.samples):,} samples of the index were taken down"
    if order == "image-first" and "score" in _columns(files) and not are_ranges(files):
        return "the pairs of an image may lie in several of the files"
    return None


def _score_elsewhere(
    request: SelectionRequest,
    source: ScoreSource,
    dropped: Dropped | None,
    num_classes: int,
    executor: Executor,
) -> dict[str, TopK]:
    """Lets the executor score into a selection of each order that is wanted."""
    assert source.paths is not None
    job = job_of(source.paths, request.scoring)
    tops: dict[str, TopK] = {}
    for order in _orders_scored(request, num_classes):
        cut = request.cut(num_classes, order)
        top, folder = executor.score_into_state(job, source.made_by, cut, request.resources)
        tops |= _without(dropped, {order: top}, request, folder)
    return tops


def _state_job(request: SelectionRequest, source: ScoreSource, orders: list[Order], index: Index) -> StateJob:
    """The job whose states are enough for the request and have the most samples, or a new one."""
    assert source.paths is not None
    parent = source.paths.out / "states"
    best, most = None, 0
    for found in sorted(parent.glob("*/job.json")):
        known = json.loads(found.read_text())
        if not _serves(known, request, source, orders):
            continue
        orders_there: tuple[Order, ...] = tuple(known["orders"])
        # A job that was begun before it noted an order has those of its states.
        cut = Cut.from_json({"order": orders_there[0]} | known)
        job = StateJob(found.parent, cut, orders_there, request.resources)
        num_done = sum(stop - start for start, stop in job.done())
        if num_done > most and job.is_valid_for(index):
            best, most = job, num_done
    if best is not None:
        return best
    num_classes = int(source.made_by["num_classes"])
    name = f"{'-and-'.join(orders)}-k{request.k}-p{request.p}-{_short(source.made_by)}"
    return StateJob(parent / name, request.cut(num_classes), tuple(orders), request.resources)


def _serves(
    known: dict[str, Any], request: SelectionRequest, source: ScoreSource, orders: list[Order]
) -> bool:
    """Whether states of these options can be finished as the request wants."""
    if any(known["made_by"].get(key) != source.made_by[key] for key in SCORED_BY):
        return False
    fits = known["p"] == request.p or "image-first" not in orders
    return bool(fits and known["k"] >= request.k and set(orders) <= set(known["orders"]))


def _short(made_by: dict[str, Any]) -> str:
    """A name for what the scores depend on, beside the teacher."""
    flip = "flip" if made_by["flip"] else "plain"
    return f"{flip}-t{made_by['temperature']:g}-{made_by['index_fingerprint'][:12]}"


def merge_states(
    parts: list[Path],
    out: File,
    index: Path | None,
    *,
    k: int | None,
    p: int | None,
    overwrite: bool,
    resources: Resources = UNLIMITED,
    warn: Warn = silent,
) -> dict[str, Any]:
    """Joins states saved apart and publishes their selection; `k` and `p` may cut it further."""
    limits = resources.memory()
    check_numbers(k, p)
    top = TopK.load(parts[0], **limits)
    # A state does not know how its part was called, so the name of a file must not matter.
    made_of = sorted(fingerprint(part) for part in parts)
    twice = next((found for found in made_of if made_of.count(found) > 1), None)
    if twice is not None:
        raise DataError(f"two of the parts are the same file, {twice[:12]}: every part counts once")
    opened = Index.open(index) if index else None
    dropped = Dropped(opened) if opened else None
    provenance: dict[str, Any] = {
        "k": k or top.k,
        "p": p or top.p,
        "order": top.order,
        "num_classes": top.num_classes,
        "parts": made_of,
        "index_fingerprint": opened.fingerprint if opened else None,
        "dropped": dropped.fingerprint if dropped else None,
    }

    # Looked up before the other states are read, which may be large.
    known = known_selection(out, provenance, overwrite)
    if known is not None:
        return known | {"state": "up to date", "out": str(out), "warnings": []}
    for part in parts[1:]:
        top.merge(TopK.load(part, **limits))

    # These samples were removed after the states were saved.
    if dropped is not None:
        top = dropped.out_of_state(top, provenance["k"], "the merged state", resources)
    selection = top.finish(k, p)

    # Where P is no less than the number of classes nothing is cut, and the orders are the same.
    agreement = 1.0 if provenance["p"] >= top.num_classes else None
    keys, left_out = (opened.keys, dropped.num_left_out) if opened and dropped else (None, 0)
    found = output.write(selection, out, provenance, keys=keys, agreement=agreement, num_dropped=left_out)
    warnings = _late_warnings(found, selection, warn)
    options = {key: provenance[key] for key in ("k", "p", "order")}
    return found | options | {"state": "selected", "out": str(out), "warnings": warnings}


def _keyed(
    files: Sequence[File], index: Index | None, request: SelectionRequest, warn: Warn
) -> AbstractContextManager[KeyedPredictions | None]:
    """The files, where they name samples by key."""
    schema = scan([str(file) for file in files]).collect_schema() if files else {}
    if "sample" in schema or "key" not in schema:
        return nullcontext()
    return KeyedPredictions(files, index, **request.resources.memory(), warn=warn)


def _truth(request: SelectionRequest, made_by: dict[str, Any], index: Index | None) -> output.Truth | None:
    if request.truth is None:
        return None
    find = None if index is None else functools.partial(samples_of, index)
    return output.Truth.read(request.truth, request.truth_column, made_by.get("class_names"), find)


def _late_warnings(report: dict[str, Any], selection: Selection, warn: Warn) -> list[str]:
    short = [row for row in report["classes"] if row["missing"]]
    if not short:
        return []
    most = sorted(short, key=lambda row: -row["missing"])[:5]
    lacking = ", ".join(f"{row['class']} lacks {row['missing']:,}" for row in most)
    text = (
        f"{len(short):,} of {len(report['classes']):,} classes have fewer than K = {selection.k:,} images "
        f"(most: {lacking})"
    )
    warn(text)
    return [text]


def _columns(files: Sequence[File]) -> list[str]:
    schema = scan([str(file) for file in files]).collect_schema()
    return [name for name in LAYOUT if name in schema]


def _feed(top: TopK, files: Sequence[File], dropped: Dropped | None, progress: Progress, warn: Warn) -> None:
    """Gives the files to a selection, one after another; scattered pairs together, where it matters."""
    if dropped is None and top.update_files([str(file) for file in files], progress=progress):
        return

    # Image-first needs all scores of an image at once; single pairs may be in any file, so all are sorted
    # together.
    columns = _columns(files)
    scattered = top.order == "image-first" and "score" in columns
    groups = [files] if scattered else [[file] for file in files]
    if scattered and (num := expected_rows([str(file) for file in files])):
        warn(f"image-first sorts {num:,} pairs by image first, {16 * num / (1 << 30):,.2f} GiB at most")
    done = 0
    for group in groups:
        rows = [str(file) for file in group] if dropped is None else dropped.out_of(group)
        before = done
        seen = 0

        def advance(rows: int, before: int = before) -> None:
            nonlocal seen
            seen = rows
            progress(before + rows)

        with _naming(group[0]):
            top.update_pairs(open_stream(rows, columns), grouped=not scattered, progress=advance)
        done += seen


def _feed_keyed(
    top: TopK, files: Sequence[File], keyed: KeyedPredictions, dropped: Dropped | None, progress: Progress
) -> None:
    """Gives the files to a selection piece by piece; in each the pairs of a sample are together."""
    done = 0
    with _naming(files[0]):
        for piece in keyed.pieces():
            top.update_pairs(piece if dropped is None else dropped.out_of_rows(piece))
            done += len(piece)
            progress(done)


@contextmanager
def _naming(file: File) -> Iterator[None]:
    """Errors within name the file."""
    try:
        yield
    except (UsageError, DataError) as error:
        where = "" if str(error).startswith(str(file)) else f"{file}: "
        raise type(error)(f"{where}{error}") from None


def _check_truncated(selection: Selection, keep: int | None, request: SelectionRequest) -> None:
    """Predictions cut to M classes are enough only where no class outside them could be selected."""
    if keep is None or keep >= len(selection.before) or request.allow_truncated:
        return
    if request.order == "image-first":
        if request.p > keep:
            raise UsageError(
                f"--p {request.p}: the predictions hold the {keep} best classes of an image only; score "
                "again with a larger --keep, or pass --allow-truncated"
            )
        return
    # A softmax's class outside the M best has at most a probability of 1/(M+1), which is a log-odds
    # of -log(M).
    certain = (selection.before == request.k) & (selection.lowest > -math.log(keep))
    doubtful = (~certain).nonzero()[0].tolist()
    if doubtful:
        raise UsageError(
            f"the predictions hold the {keep} best classes of an image, and for {len(doubtful):,} classes "
            f"(first: {', '.join(map(str, doubtful[:5]))}) an image outside them could be among the best "
            f"{request.k:,}; score again with a larger --keep, lower --k, or pass --allow-truncated"
        )
