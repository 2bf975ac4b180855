"""What a worker does to make a part: the verbs of one machine, from files to one file.

Everything here is a function of a part's arguments and inputs alone; limits of memory and threads never
change a byte of what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wsl import _core, storage
from wsl._core import DataError, UsageError
from wsl.cluster.parts import Part, Parts
from wsl.prediction_files import scored_parts
from wsl.selection import TopK
from wsl.source import open_stream


def make(parts: Parts, part: Part) -> None:
    """Makes a part and its mark."""
    with parts.making(part) as out:
        KINDS[part.kind](parts, part, out)


def _check_stamps(files: Mapping[str, list[Any]]) -> None:
    """Refuses files that are not as they were when the run was planned."""
    for file, stamp in files.items():
        if storage.stamp(file) != stamp:
            raise DataError(
                f"{file}: the file was changed while the run went on; run the command again when it stays "
                f"as it is"
            )


def _note(parts: Parts, part: Part, out: Path) -> None:
    """A part of no work, by which the cost of one is measured."""
    out.write_text(part.arguments["text"], encoding="utf-8")


def _count(parts: Parts, part: Part, out: Path) -> None:
    from wsl.hashtags import count_hashtags

    given = part.arguments
    _check_stamps(given["records"])
    counts = count_hashtags(
        list(given["records"]),
        hashtags_column=given["hashtags_column"],
        separator=given["separator"],
        num_threads=part.limits.get("num_threads"),
        memory_bytes=part.limits.get("memory_bytes"),
        spill_dir=part.limits.get("spill_dir"),
    )
    _check_stamps(given["records"])
    counts.save(out)


def _merge_counts(parts: Parts, part: Part, out: Path) -> None:
    from wsl.counting import Memory, load_counts

    limit = part.limits.get("memory_bytes")
    memory = Memory(limit, part.limits.get("spill_dir"))
    load_counts([parts.checked(name) for name in part.inputs], memory=memory).save(out)


def _scan(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    _check_stamps(given["shards"])
    _core.save_scans(
        list(given["shards"]),
        out,
        with_classes=given["with_classes"],
        key_scope=given["key_scope"],
        num_threads=part.limits["num_threads"],
        storage=storage.core(),
    )
    _check_stamps(given["shards"])


_scorers: dict[str, Any] = {}
"""The network that this worker has loaded: one, for an actor scores for one run alone."""


def _scorer(given: Mapping[str, Any], limits: Mapping[str, Any]) -> Any:
    import torch

    from wsl.scoring import Scorer

    options = {name: given[name] for name in ("flip", "temperature", "batch_size")}
    key = json.dumps([given["run"], given["index"], options, given["made_by"]], sort_keys=True)
    if key not in _scorers:
        torch.set_num_threads(limits.get("num_threads") or 1)
        _scorers.clear()
        scorer = Scorer(Path(given["run"]), Path(given["index"]), **options)
        _scorers[key] = scorer
    scorer = _scorers[key]
    found = {name: scorer.provenance[name] for name in given["made_by"]}
    spans = [(given["start"], given["stop"])]
    if found != given["made_by"] or scored_parts(scorer.index, spans) != given["parts"]:
        raise DataError(
            f"{given['run']} or {given['index']} was changed while the run went on; run the command again "
            f"when they stay as they are"
        )
    return scorer


def _score(parts: Parts, part: Part, out: Path) -> None:
    from wsl.scoring import write_range

    given = part.arguments
    scorer = _scorer(given, part.limits)
    write_range(scorer, range(given["start"], given["stop"]), out, keep=given["keep"])
    scorer.corrupt.check()


def _top(given: Mapping[str, Any], limits: Mapping[str, Any]) -> TopK:
    return TopK(
        given["num_classes"],
        given["k"],
        given["p"],
        given["order"],
        memory_bytes=limits.get("memory_bytes"),
        spill_dir=limits.get("spill_dir"),
        num_threads=limits.get("num_threads"),
    )


def _score_state(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    scorer = _scorer(given, part.limits)
    top = _top(given, part.limits)
    for scores in scorer.score(given["start"], given["stop"]):
        top.update(scores.samples, scores.values)
    scorer.corrupt.check()
    top.save(out)


def _select(parts: Parts, part: Part, out: Path) -> None:
    given = part.arguments
    _check_stamps(given["files"])
    top = _top(given, part.limits)
    files = [] if top.update_files(given["files"]) else given["files"]
    for file in files:
        try:
            top.update_pairs(open_stream([file], given["columns"]))
        except (UsageError, DataError) as error:
            where = "" if str(error).startswith(file) else f"{file}: "
            raise type(error)(f"{where}{error}") from None
    _check_stamps(given["files"])
    top.save(out)


def _merge_states(parts: Parts, part: Part, out: Path) -> None:
    limits = {name: part.limits.get(name) for name in ("memory_bytes", "spill_dir", "num_threads")}
    first, *others = (parts.checked(name) for name in part.inputs)
    top = TopK.load(first, **limits)
    for other in others:
        top.merge(TopK.load(other, **limits))
    top.save(out)


KINDS: dict[str, Callable[[Parts, Part, Path], Any]] = {
    "note": _note,
    "count": _count,
    "mergecounts": _merge_counts,
    "scan": _scan,
    "score": _score,
    "scorestate": _score_state,
    "select": _select,
    "mergestates": _merge_states,
}
