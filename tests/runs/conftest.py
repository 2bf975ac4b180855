"""Tiny stages."""

from __future__ import annotations

from tests.help.stages import stages

__all__ = ["stages"]
