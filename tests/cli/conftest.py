"""A workspace with a teacher, which several files of tests score with."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from wsl.cli import run
from wsl.index.shards import write_shard


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny workspace with a teacher, made once."""
    root = tmp_path_factory.mktemp("workspace")
    assert run(["init", str(root), "--num-labelled", "20"]) == 0
    first, *others = sorted((root / "data").glob("unlabelled-*.tar"))
    for path in others:
        path.unlink()
    with tarfile.open(first) as archive:
        members = [(m.name, archive.extractfile(m)) for m in archive.getmembers()[:900]]
        samples = [(name.removesuffix(".png"), {"png": file.read()}) for name, file in members if file]
    write_shard(first, samples)
    assert run(["index", "build", "-w", str(root)]) == 0
    assert run(["train", "-w", str(root), "--stage", "teacher", "--set", "num_steps=2"]) == 0
    return root
