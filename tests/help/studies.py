"""A tiny workspace of coloured squares, and a study over it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from PIL import Image

from wsl.index.jobs import build_one_index, index_jobs
from wsl.index.shards import Sample, write_shards
from wsl.workspace.layout import Workspace

MODEL = "model: {name: narrow, stem: patch, stem_width: 4, widths: [4], image_size: 8}\n"
REST = "data: {crop: false, flip: false}\nbatch_size: 8\nnum_steps: 3\n"
CHOSEN = {"teacher": "teacher", "index": "unlabelled", "k": "$k", "truth": "truth.parquet"}
FIGURE = {"title": "By K", "x": "k", "steps": {"tuned": "finetuned"}, "across": {"teacher": "teacher"}}
STUDY = {
    "title": "Tiny",
    "seeds": [0, 1],
    "axes": {"k": [2, 5]},
    "selections": {
        "chosen": {"teacher": "teacher", "index": "unlabelled", "k": "$k", "truth": "truth.parquet"}
    },
    "runs": {
        "teacher": {"stage": "teacher"},
        "student": {"stage": "student", "pseudolabels": "chosen"},
        "tuned": {"stage": "finetune", "init": "student", "groups": {"reds": {"classes": [0]}}},
    },
    "figures": [
        {"title": "By K", "x": "k", "steps": {"tuned": "finetuned"}, "across": {"teacher": "teacher"}}
    ],
    "findings": [
        {"claim": "it helps", "of": {"step": "tuned", "where": {"k": "best"}}, "less": {"step": "teacher"}}
    ],
}


def _samples(prefix: str, number: int, *, with_class: bool) -> Iterator[Sample]:
    random = np.random.default_rng(len(prefix))
    for n in range(number):
        pixels = random.integers(0, 80, (8, 8, 3), dtype=np.uint8)
        pixels[:, :, n % 3] += 120
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        members = {"png": out.getvalue()}
        if with_class:
            members["cls"] = str(n % 3).encode()
        yield f"{prefix}-{n:03}", members


def make_world(folder: Path) -> Path:
    """A workspace with D, U and a test set of three classes, indexed."""
    (folder / "data").mkdir(parents=True)
    for name, number in (("labelled", 12), ("unlabelled", 30), ("test", 15)):
        samples = _samples(name, number, with_class=name != "unlabelled")
        write_shards(folder / "data", name, samples, max_shard_samples=20)
    keys = [f"unlabelled-{n:03}" for n in range(24)]
    pl.DataFrame({"key": keys, "class": [n % 3 for n in range(24)]}).write_parquet(folder / "truth.parquet")
    for stage in ("teacher", "student", "finetune"):
        (folder / f"{stage}.yaml").write_text(f"stage: {stage}\n{MODEL}{REST}")
    settings = {
        "indexes": {
            "labelled": {"shards": "data/labelled-*.tar", "label_kind": "class"},
            "unlabelled": {"shards": "data/unlabelled-*.tar"},
            "test": {"shards": "data/test-*.tar", "label_kind": "class"},
        },
        "stages": {
            "teacher": {"config": "teacher.yaml", "index": "labelled", "evaluate": "test"},
            "student": {"config": "student.yaml", "index": "unlabelled", "evaluate": "test"},
            "finetune": {"config": "finetune.yaml", "index": "labelled", "evaluate": "test"},
        },
    }
    (folder / "wsl.yaml").write_text(yaml.safe_dump(settings))
    for _, path, index, root in index_jobs(Workspace.find(folder), None):
        build_one_index(path, index, root)
    return folder


def write_yaml(file: Path, **more: object) -> Path:
    """The study with changes, as a file."""
    file.write_text(yaml.safe_dump(STUDY | more))
    return file
