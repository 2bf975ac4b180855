"""What a verb may take of the machine: how much memory, how many threads, where the rest is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Resources:
    """How much memory the engine's tables may take, where the rest goes, and how many threads work.

    The engine reads the three by their names. They change how a result is made and never what it is.
    """

    memory_bytes: int | None = None
    """A limit for the tables; none where None."""
    spill_dir: Path | None = None
    """Folder for what does not fit; the system's for temporary files where None."""
    num_threads: int | None = None
    """One for each core where None."""

    def memory(self) -> dict[str, Any]:
        """Memory and folder as keyword arguments of verbs that have no threads."""
        return {"memory_bytes": self.memory_bytes, "spill_dir": self.spill_dir}

    def options(self) -> dict[str, Any]:
        """All three as keyword arguments of the engine's verbs."""
        return self.memory() | {"num_threads": self.num_threads}

    def with_threads(self, num_threads: int | None) -> Self:
        """The same with another number of threads."""
        return replace(self, num_threads=num_threads)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        return self.options() | {"spill_dir": None if self.spill_dir is None else os.fspath(self.spill_dir)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` made; names that are absent are None."""
        folder = tree.get("spill_dir")
        return cls(
            tree.get("memory_bytes"), None if folder is None else Path(folder), tree.get("num_threads")
        )


UNLIMITED = Resources()
