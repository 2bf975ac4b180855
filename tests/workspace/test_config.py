"""`wsl.yaml`: what a workspace says of its stages."""

from __future__ import annotations

from typing import Any

import pytest

import wsl
from wsl.workspace.config import WorkspaceConfig
from wsl.workspace.settings import check


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
