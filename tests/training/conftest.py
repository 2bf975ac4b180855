"""Tiny stages for the tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.help.stages import StageMaker


@pytest.fixture
def stages(tmp_path: Path) -> StageMaker:
    """Makes tiny stages under a temporary folder."""
    return StageMaker(tmp_path)
