"""Which record files a workspace, a glob or an index names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wsl._core import UsageError
from wsl.files.globs import find_files
from wsl.index.mapped import MANIFEST, Index
from wsl.workspace.layout import Workspace


def record_files(root: Path, patterns: str | list[str]) -> list[str]:
    """The files that the globs of a workspace name; URLs pass as they are."""
    named = [patterns] if isinstance(patterns, str) else patterns
    return find_files([p if "://" in p else str(root / p) for p in named])


def sources_of(target: Path | None, records: Sequence[str]) -> list[str]:
    """The record files of globs, of a workspace, or of what an index was built from.

    Raises UsageError where nothing is named.
    """
    sources: list[str] = find_files(list(records)) if records else []
    if target is not None and (target / MANIFEST).is_file():
        sources += list(Index.open(target).manifest["provenance"].get("records", {}))
    elif target is not None:
        workspace = Workspace.find(target)
        for settings in workspace.config.indexes.values():
            if settings.label_kind == "hashtag" and settings.records is not None:
                sources += record_files(workspace.root, settings.records)
    if not sources:
        where = f"{target} names no hashtag records" if target else "no records are named"
        raise UsageError(f"{where}; name them with --records GLOB")
    # Several indexes may be over the same records, which count once.
    return list(dict.fromkeys(sources))
