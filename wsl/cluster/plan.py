"""What is to be made: groups of files, trees of merges, and the parts that are missing.

Groups follow from the files, their sizes and `group_bytes` alone, and a tree from the number of its leaves,
so that every run over the same inputs has the same parts, on however many nodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from wsl import storage
from wsl._core import DataError
from wsl.cluster.parts import Part, Parts
from wsl.files import are_beside_shards

FAN_IN = 16
"""Parts that one merge takes."""


def file_groups(files: Sequence[str], group_bytes: int, size_of: Callable[[str], int]) -> list[list[str]]:
    """Consecutive files, each group closed by the file that brings it to `group_bytes` or more."""
    groups: list[list[str]] = []
    size = group_bytes
    for file in files:
        if size >= group_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += size_of(file)
    return groups


def record_groups(files: Sequence[str], group_bytes: int) -> list[list[str]]:
    """Groups of files of records, each of which is read as all of them would be.

    Whether tables stand beside their shards is a question about all files; where only some do, they are
    one group.
    """
    beside = {are_beside_shards([file]) for file in files}
    return [list(files)] if len(beside) > 1 else file_groups(files, group_bytes, size_of)


def size_of(file: str) -> int:
    """Bytes of a file or object; what cannot be asked counts as one group."""
    seen = storage.head(file) if storage.is_remote(file) or "://" not in file else None
    return 1 << 62 if seen is None else seen.size


def absolute(file: str | os.PathLike[str]) -> str:
    """A path that holds on every node; URIs pass as they are."""
    text = os.fspath(file)
    return text if "://" in text else os.path.abspath(text)


def check_stamps(files: Mapping[str, list[Any]]) -> None:
    """Refuses files that are not as they were when the run was planned."""
    for file, stamp in files.items():
        if storage.stamp(file) != stamp:
            raise DataError(
                f"{file}: the file was changed while the run went on; run the command again when it stays "
                f"as it is"
            )


def merge_tree(
    leaves: Sequence[Part], kind: str, arguments: Mapping[str, Any], limits: Mapping[str, Any]
) -> list[list[Part]]:
    """The leaves and the levels of merges over them, the last of one part; in fixed order and fan-in."""
    levels = [list(leaves)]
    while len(levels[-1]) > 1:
        below = levels[-1]
        depth = len(levels)
        level = []
        for start in range(0, len(below), FAN_IN):
            names = tuple(part.name for part in below[start : start + FAN_IN])
            about = {**arguments, "depth": depth}
            level.append(Part(kind, start // FAN_IN, about, names, limits))
        levels.append(level)
    return levels


def missing(levels: Sequence[Sequence[Part]], parts: Parts) -> list[list[Part]]:
    """The parts that the last level still asks for, level by level."""
    marked = parts.marked()
    needed = {part.name for part in levels[-1]}
    left: list[list[Part]] = []
    for level in reversed(levels):
        asked = [p for p in level if p.name in needed]
        open_ = [p for p in asked if p.name not in marked or parts.finished(p) is None]
        for part in open_:
            needed.update(part.inputs)
        left.append(open_)
    return left[::-1]
