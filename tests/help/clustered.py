"""A small world in files: records, shards of images, and a network that was never trained."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from PIL import Image

from wsl.index.shards import write_shard


def _tag(draw: random.Random) -> str:
    return f"#tag{min(int(draw.paretovariate(0.8)), 50_000)}"


def write_records(folder: Path, num_files: int, num_rows: int) -> str:
    """Files of records whose keys are those of `write_shards`; returns their glob."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    for number in range(num_files):
        keys = [f"{number:04}-{row:05}" for row in range(num_rows)]
        tags = [[_tag(draw) for _ in range(draw.randint(0, 5))] for _ in keys]
        schema = {"key": pl.String, "hashtags": pl.List(pl.String)}
        frame = pl.DataFrame({"key": keys, "hashtags": tags}, schema=schema)
        frame.write_parquet(folder / f"records-{number:04}.parquet")
    return str(folder / "*.parquet")


def write_shards(folder: Path, num_shards: int, num_samples: int) -> str:
    """Shards of small grey images; returns their glob."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(num_shards):
        members = []
        for row in range(num_samples):
            content = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (12, 12)).astype(np.uint8)).save(content, "PNG")
            members.append(
                (f"{number:04}-{row:05}", {"png": content.getvalue(), "cls": str(row % 7).encode()})
            )
        write_shard(folder / f"shard-{number:04}.tar", members)
    return str(folder / "*.tar")


def write_teacher(folder: Path, num_classes: int = 10) -> Path:
    """A complete run of a network with random weights."""
    import torch
    from safetensors.torch import save_file

    from wsl.training.models import build_model
    from wsl.workspace.settings import check
    from wsl.workspace.stage import StageConfig

    tree = {
        "stage": "teacher",
        "model": {"widths": [8, 8], "stem_width": 8, "num_channels": 1, "image_size": 12},
        "data": {"crop": False, "flip": False, "mean": [0.3], "std": [0.3]},
    }
    config = check(StageConfig, tree, "test")
    torch.manual_seed(0)
    model = build_model(config.model, num_classes)
    folder.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    about = {"stage": "teacher", "state": "complete", "num_labels": num_classes}
    (folder / "run.json").write_text(json.dumps(about))
    return folder
