"""Shards of small images, local and in a store."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

import wsl
from wsl.files import stores
from wsl.index.shards import write_shard


def make_shards(folder: Path, num_shards: int = 3, num_samples: int = 20) -> list[Path]:
    """Tar shards of PNG images of a few sizes, with classes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(num_shards):
        samples = []
        for number in range(num_samples):
            rng = np.random.default_rng((shard, number))
            pixels = rng.integers(0, 256, (16 + number % 4, 20, 3), dtype=np.uint8)
            out = io.BytesIO()
            Image.fromarray(pixels).save(out, "PNG")
            members = {"png": out.getvalue(), "cls": str(number % 5).encode()}
            samples.append((f"s{shard}-{number:03}", members))
        paths.append(folder / f"part-{shard}.tar")
        write_shard(paths[-1], samples)
    return paths


def put(paths: list[Path], base: str) -> list[str]:
    """The URIs of shards that are copied below `base`."""
    uris = []
    for path in paths:
        uris.append(stores.join(base, path.name))
        stores.write_bytes(uris[-1], path.read_bytes())
    return uris


def both(folder: Path, base: str, num_shards: int = 3, num_samples: int = 20) -> tuple[wsl.Index, wsl.Index]:
    """The index of local shards, and of the same shards in a store."""
    paths = make_shards(folder / "data", num_shards, num_samples)
    local = wsl.build_index(folder / "local", paths, label_kind="class")
    return local, wsl.build_index(folder / "stored", put(paths, base), label_kind="class")


def padded(frame: pl.DataFrame) -> pl.DataFrame:
    """Polars asks for the last 256 KiB, and s3s-fs fails where there are fewer; S3 sends what there is."""
    filler = np.random.default_rng(0).bytes(300_000).hex()
    return frame.with_columns(pl.Series("filler", [filler, *[""] * (len(frame) - 1)]))
