"""A stage that trains on several indexes: shares, resuming, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FileIndex, Order, StageMaker, write_index
from safetensors.torch import load_file

import wsl
from wsl.training.stages import RunSummary, run_stage
from wsl.training.step import Stepper
from wsl.training.stop import Stopped
from wsl.workspace.config import WorkspaceConfig
from wsl.workspace.settings import check


@pytest.fixture(autouse=True)
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The indexes in memory count their labels, as the engine's do."""

    def label_counts(self: FileIndex) -> Any:
        return np.bincount(self._labels, minlength=4).astype(np.uint64)

    monkeypatch.setattr(FileIndex, "label_counts", label_counts, raising=False)


def run(stages: StageMaker, out: str, weights: list[float], *, stop_at: int | None = None) -> Any:
    """A stage over two indexes; its summary and the samples of each step."""
    seen: dict[int, list[int]] = {}
    plain = Stepper.step

    def step(self: Stepper, batch: Any, lr: float, number: int, *, stop: bool = False) -> Any:
        seen[number] = batch.ordinals.tolist()
        return plain(self, batch, lr, number, stop=stop or number == stop_at)

    other = stages.root / "other"
    inputs = stages.inputs(out, mixed=tuple(zip((stages.index, other), weights, strict=True)))
    summary: RunSummary | None = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        if stop_at is None:
            summary = run_stage(stages.config(num_steps=12), inputs)
        else:
            with pytest.raises(Stopped):
                run_stage(stages.config(num_steps=12), inputs)
    return summary, seen


def test_a_stage_mixes_indexes_by_weight_and_goes_on_to_the_same_bits(stages: StageMaker) -> None:
    write_index(stages.root / "other", 30, seed=7)
    whole, seen = run(stages, "whole", [3, 1])
    shown = np.array([sample for number in range(12) for sample in seen[number]])
    orders: Any = [Order(96, seed=0), Order(30, seed=1)]
    assert shown.tolist() == wsl.MixedOrder(orders, [3, 1], seed=0)[0:192].tolist()
    # A quarter of 192, less or more by chance.
    assert 34 <= (shown >= 96).sum() <= 62
    _, before = run(stages, "cut", [3, 1], stop_at=6)
    cut, after = run(stages, "cut", [3, 1])
    assert sorted(after) == list(range(7, 12))
    assert before | after == seen
    one, two = (load_file(summary.run / "model.safetensors") for summary in (whole, cut))
    assert all(one[key].equal(two[key]) for key in one)
    with pytest.raises(wsl.UsageError, match="index_weights differ"):
        run(stages, "cut", [1, 1])


def test_indexes_of_different_vocabularies_are_not_mixed(
    stages: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(stages.root / "other", 30, seed=7)
    plain = FileIndex.__init__

    def renamed(self: FileIndex, path: Path) -> None:
        plain(self, path)
        if path.name == "other":
            self.vocabulary_fingerprint = "another"

    monkeypatch.setattr(FileIndex, "__init__", renamed)
    with pytest.raises(wsl.UsageError, match=r"other and .*index have different vocabularies"):
        run(stages, "refused", [1, 1])
    assert not (stages.root / "refused").exists()


@pytest.mark.parametrize(
    ("stage", "index", "said"),
    [
        ("teacher", {"a": 1, "c": 1}, "there is no index named 'c'"),
        ("teacher", {"a": 0}, "greater than 0"),
        ("teacher", [], "at least one index"),
        ("student", ["a", "b"], "the student trains on pseudo-labels"),
    ],
)
def test_a_workspace_that_mixes_wrongly_is_refused(stage: str, index: Any, said: str) -> None:
    indexes = {"a": {"shards": "a.tar"}, "b": {"shards": "b.tar"}}
    tree = {"indexes": indexes, "stages": {stage: {"config": "x.yaml", "index": index}}}
    with pytest.raises(wsl.UsageError, match=said):
        check(WorkspaceConfig, tree, "wsl.yaml")
    good = {"indexes": indexes, "stages": {"teacher": {"config": "x.yaml", "index": ["a", "b"]}}}
    assert check(WorkspaceConfig, good, "wsl.yaml").stages["teacher"].weights == {"a": 1, "b": 1}
