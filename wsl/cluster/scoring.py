"""Scoring and selecting on a cluster: actors that have loaded the network, and selections joined by a tree.

Scores go to the files that one machine would write, a range of samples each; or straight into states of
selections, which are merged. Selecting from files takes groups of them. What comes out is the same to the
byte, for a selection is a function of the scored pairs alone; the scores themselves are the network's, and
are the same where nodes and threads of a task (`cluster.num_cpus`) are alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsl._core import UsageError
from wsl.cluster.parts import Part, Parts
from wsl.cluster.plan import Stage, absolute, file_groups, merge_tree, size_of
from wsl.cluster.ray import Result, connect
from wsl.files import stores
from wsl.files.resources import UNLIMITED, Resources
from wsl.index.mapped import Index
from wsl.selection.predictions import SCORED_BY, gaps, scored_parts
from wsl.selection.topk import Cut, TopK
from wsl.workspace.config import ClusterConfig

ACTORS = frozenset({"score", "scorestate"})


def score(job: Mapping[str, Any], made_by: Mapping[str, Any], settings: ClusterConfig) -> dict[str, Any]:
    """Scores what no file under ``job["out"]`` covers; the report of `wsl score`.

    `job` is what ranks get, `made_by` the provenance of the scores.
    """
    from wsl.selection.states import RANGE, covered_by, file_of

    out, index = Path(job["out"]).absolute(), Index.open(Path(job["index"]))
    keep, num_classes = job["keep"], int(made_by["num_classes"])
    if keep is not None and not 1 <= keep <= num_classes:
        raise UsageError(f"--keep: expected 1 to {num_classes} classes or all, got {keep}")

    # What files cover is not scored again. The parts are the gaps between them.
    covered = covered_by(out, {**made_by, "keep": keep}, index)
    begun = time.monotonic()
    limits = _limits(settings)
    level = [
        Part("score", number, _range(job, made_by, index, found), (), limits, file_of(found.start))
        for number, found in enumerate(gaps(covered, len(index), RANGE))
    ]
    num_scored = sum(part.arguments["stop"] - part.arguments["start"] for part in level)
    result = Result(0)

    # Where nothing is missing, no cluster is needed.
    if level:
        parts = Parts(out)
        with connect(settings) as cluster:
            cluster.check(parts.folder, [job["run"], job["index"], *index.shard_paths()])
            result = cluster.make(parts, Stage("score", [level], actors=ACTORS))
    about = {**made_by, "num_samples": len(index), "keep": keep}
    return {
        "state": "scored" if level else "up to date",
        "num_scored": num_scored,
        "images_per_second": round(num_scored / max(time.monotonic() - begun, 1e-9), 1),
        "out": str(job["out"]),
        "cluster": result.to_dict(),
        **{key: value for key, value in about.items() if key != "class_names"},
    }


def score_into_state(
    job: Mapping[str, Any],
    made_by: Mapping[str, Any],
    cut: Cut,
    resources: Resources,
    settings: ClusterConfig,
    folder: stores.Place,
) -> TopK:
    """Lets the network score all samples into one selection."""
    index = Index.open(Path(job["index"]))
    size = settings.group_samples
    limits = _limits(settings, resources)
    leaves = [
        Part("scorestate", number, _range(job, made_by, index, found) | cut.to_json(), (), limits)
        for number, found in enumerate(gaps([], len(index), size))
    ]
    inputs = [job["run"], job["index"], *index.shard_paths()]
    return _merged(leaves, inputs, limits, resources, settings, folder)


def select(
    files: Sequence[str],
    columns: Sequence[str],
    cut: Cut,
    resources: Resources,
    settings: ClusterConfig,
    folder: stores.Place,
) -> TopK:
    """A selection that has taken all pairs of the files.

    Under image-first the pairs of an image must be together, in one file."""
    limits = _limits(settings, resources)
    paths = [absolute(file) for file in files]
    leaves = [
        Part(
            "select",
            number,
            {"files": {path: stores.stamp(path) for path in group}, "columns": list(columns)} | cut.to_json(),
            (),
            limits,
        )
        for number, group in enumerate(file_groups(paths, settings.group_bytes, size_of))
    ]
    return _merged(leaves, paths, limits, resources, settings, folder)


def _merged(
    leaves: list[Part],
    inputs: Sequence[str | os.PathLike[str]],
    limits: Mapping[str, Any],
    resources: Resources,
    settings: ClusterConfig,
    folder: stores.Place,
) -> TopK:
    parts = Parts(folder)
    levels = merge_tree(leaves, "mergestates", {}, limits)
    with connect(settings) as cluster:
        cluster.check(parts.folder, inputs)
        cluster.make(parts, Stage("select", levels, actors=ACTORS))
    with parts.held(levels[-1][0].name) as (file,):
        return TopK.load(file, **resources.memory())


def _range(
    job: Mapping[str, Any], made_by: Mapping[str, Any], index: Index, samples: range
) -> dict[str, Any]:
    span = (samples.start, samples.stop)
    known = {key: made_by[key] for key in SCORED_BY}
    return {
        **{name: job[name] for name in ("run", "index", "flip", "temperature", "batch_size")},
        "keep": job.get("keep"),
        "start": span[0],
        "stop": span[1],
        "made_by": known,
        "parts": scored_parts(index, [span]),
    }


def _limits(settings: ClusterConfig, resources: Resources = UNLIMITED) -> dict[str, Any]:
    return resources.with_threads(settings.num_cpus).to_json()
