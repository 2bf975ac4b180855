"""The order in which a stage goes through real indexes."""

from __future__ import annotations

from pathlib import Path

import pytest

import wsl
from wsl.index.shards import write_shard
from wsl.training.task import make_order, prepare_task
from wsl.workspace.layout import StageInputs
from wsl.workspace.settings import check
from wsl.workspace.stage import StageConfig


def make_index(folder: Path, num_shards: int) -> Path:
    """Shards of eight samples of two classes."""
    folder.mkdir()
    for shard in range(num_shards):
        samples = [(f"{shard}-{n}", {"png": b"x", "cls": str(n % 2).encode()}) for n in range(8)]
        write_shard(folder / f"{shard}.tar", samples)
    wsl.build_index(folder / "index", sorted(folder.glob("*.tar")), label_kind="class")
    return folder / "index"


@pytest.mark.parametrize("sampling", ["natural", "uniform"])
def test_a_stage_draws_from_a_window_of_shards(tmp_path: Path, sampling: str) -> None:
    path = make_index(tmp_path / "a", 4)
    tree = {"stage": "teacher", "seed": 3, "data": {"window": 1, "sampling": sampling}}
    config = check(StageConfig, tree, "test")
    inputs = StageInputs(config=tmp_path, index=path, out=tmp_path / "run")
    order = make_order(config, prepare_task(config, inputs, {}))
    size = 8 if sampling == "natural" else 16
    shards = order[0 : 4 * size] // 8
    assert sorted(shards.tolist()) == [shard for shard in range(4) for _ in range(size)]
    assert all(len(set(shards[start : start + size])) == 1 for start in range(0, 4 * size, size))


def test_indexes_are_mixed_each_in_its_own_windows(tmp_path: Path) -> None:
    first, second = make_index(tmp_path / "a", 4), make_index(tmp_path / "b", 4)
    config = check(StageConfig, {"stage": "teacher", "data": {"window": 1}}, "test")
    mixed = ((first, 3.0), (second, 1.0))
    inputs = StageInputs(config=tmp_path, index=first, out=tmp_path / "run", mixed=mixed)
    stream = make_order(config, prepare_task(config, inputs, {}))[0:4096]
    for number, (path, weight) in enumerate(mixed):
        own = stream[stream // 32 == number] - 32 * number
        assert len(own) == 1024 * weight
        expected = wsl.EpochOrder(wsl.Index.open(path), seed=number, window=1)[0 : len(own)]
        assert own.tolist() == expected.tolist()
