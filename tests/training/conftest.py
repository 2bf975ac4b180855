"""A small index in memory and an order, in place of the engine's, for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import StageMaker, install


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageMaker:
    """Makes tiny stages under a temporary folder."""
    install(monkeypatch.setitem)
    return StageMaker(tmp_path)
