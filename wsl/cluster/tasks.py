"""What a worker does to make a part: the verbs of one machine, from files to one file.

Everything here is a function of a part's arguments and inputs alone; limits of memory and threads never
change a byte of what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsl._core import DataError, UsageError
from wsl.cluster import index_tasks
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import check_stamps, resources_of
from wsl.files.tables import open_stream
from wsl.selection.predictions import scored_parts
from wsl.selection.topk import Cut, TopK


def make(parts: Parts, part: Part) -> None:
    """Makes a part and its mark."""
    with parts.making(part) as out:
        KINDS[part.kind](parts, part, out)


def _note(parts: Parts, part: Part, out: Path) -> None:
    """A part of no work, by which the cost of one is measured."""
    out.write_text(part.arguments["text"], encoding="utf-8")


def _count(parts: Parts, part: Part, out: Path) -> None:
    from wsl.hashtags.counts import count_hashtags

    given = part.arguments
    check_stamps(given["records"])
    counts = count_hashtags(
        list(given["records"]),
        hashtags_column=given["hashtags_column"],
        separator=given["separator"],
        **resources_of(part).options(),
    )
    check_stamps(given["records"])
    counts.save(out)


def _merge_counts(parts: Parts, part: Part, out: Path) -> None:
    from wsl.hashtags.counting import load_counts

    with parts.held(*part.inputs) as files:
        load_counts(files, resources=resources_of(part)).save(out)


_scorers: dict[str, Any] = {}
"""The network that this worker has loaded: one, for an actor scores for one run alone."""


def _scorer(given: Mapping[str, Any], limits: Mapping[str, Any]) -> Any:
    import torch

    from wsl.scoring.network import Scorer

    options = {name: given[name] for name in ("flip", "temperature", "batch_size")}
    key = json.dumps([given["run"], given["index"], options, given["made_by"]], sort_keys=True)

    # One network at a time: two may not fit on a GPU.
    if key not in _scorers:
        torch.set_num_threads(limits.get("num_threads") or 1)
        _scorers.clear()
        scorer = Scorer(Path(given["run"]), Path(given["index"]), **options)
        _scorers[key] = scorer
    scorer = _scorers[key]

    # The driver named what it saw; a worker that sees other files would mix scores of two networks.
    found = {name: scorer.provenance[name] for name in given["made_by"]}
    spans = [(given["start"], given["stop"])]
    if found != given["made_by"] or scored_parts(scorer.index, spans) != given["parts"]:
        raise DataError(
            f"{given['run']} or {given['index']} was changed while the run went on; run the command again "
            f"when they stay as they are"
        )
    return scorer


def _score(parts: Parts, part: Part, out: Path) -> None:
    from wsl.scoring.network import write_range

    given = part.arguments
    scorer = _scorer(given, part.limits)
    write_range(scorer, range(given["start"], given["stop"]), out, keep=given["keep"])
    scorer.corrupt.check()


def _top(part: Part) -> TopK:
    return Cut.from_json(part.arguments).new(resources_of(part))


def _score_state(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    scorer = _scorer(given, part.limits)
    top = _top(part)
    for scores in scorer.score(given["start"], given["stop"]):
        top.update(scores.samples, scores.values)
    scorer.corrupt.check()
    top.save(out)


def _select(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    check_stamps(given["files"])
    top = _top(part)
    files = [] if top.update_files(given["files"]) else given["files"]
    for file in files:
        try:
            top.update_pairs(open_stream([file], given["columns"]))
        except (UsageError, DataError) as error:
            where = "" if str(error).startswith(file) else f"{file}: "
            raise type(error)(f"{where}{error}") from None
    check_stamps(given["files"])
    top.save(out)


def _merge_states(parts: Parts, part: Part, out: Path) -> None:
    limits = resources_of(part).options()
    first, *others = part.inputs
    with parts.held(first) as (file,):
        top = TopK.load(file, **limits)
    for other in others:
        with parts.held(other) as (file,):
            top.merge(TopK.load(file, **limits))
    top.save(out)


KINDS: dict[str, Callable[[Parts, Part, Path], Any]] = {
    "note": _note,
    "count": _count,
    "mergecounts": _merge_counts,
    "score": _score,
    "scorestate": _score_state,
    "select": _select,
    "mergestates": _merge_states,
    **index_tasks.KINDS,
}
