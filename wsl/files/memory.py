"""How much memory a verb may take, and where the rest is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Memory:
    """How much memory the tables may take, and where the rest goes."""

    limit_bytes: int | None = None
    spill_dir: Path | None = None

    def options(self) -> dict[str, Any]:
        """As keyword arguments of the engine's verbs."""
        return {"memory_bytes": self.limit_bytes, "spill_dir": self.spill_dir}


UNLIMITED = Memory()
