"""What is to be made: stages, groups of files, trees of merges, and the parts that are missing.

Groups follow from the files, their sizes and `group_bytes` alone, and a tree from the number of its leaves,
so that every run over the same inputs has the same parts, on however many nodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsl._core import DataError
from wsl.cluster.parts import Part, Parts
from wsl.files import stores
from wsl.files.globs import are_beside_shards
from wsl.files.resources import Resources

FAN_IN = 16
"""Parts that one merge takes."""


@dataclass(frozen=True)
class Stage:
    """What can be planned at once: levels of parts, each of which asks for those before it.

    What is missing of the last level is made, and all that it asks for.
    """

    title: str
    levels: list[list[Part]]
    actors: frozenset[str] = frozenset()
    """Kinds of parts that actors make."""
    folder: str | None = None
    """A folder that is to be seen where parts are made, beside that of the parts."""
    is_last: bool = True
    """Whether it is the last one of its run."""
    is_one: bool = False
    """Whether it is one part, whose error is the command's."""

    @property
    def name(self) -> str:
        """What a run of this stage alone is called."""
        return self.levels[-1][0].key[:20] if self.levels[-1] else "nothing"


def cut(sizes: Sequence[int], step: int) -> list[list[tuple[int, int, int]]]:
    """Groups of these sizes, one after another, cut into pieces of `step`.

    Each piece names its groups: number, first and last.
    """
    pieces: list[list[tuple[int, int, int]]] = []
    room = 0
    for group, size in enumerate(sizes):
        first = 0
        while first < size:
            if room == 0:
                pieces.append([])
                room = step
            last = min(size, first + room)
            pieces[-1].append((group, first, last))
            room -= last - first
            first = last
    return pieces


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

    Whether tables are beside their shards is a question about all files; where only some do, they are
    one group.
    """
    beside = {are_beside_shards([file]) for file in files}
    return [list(files)] if len(beside) > 1 else file_groups(files, group_bytes, size_of)


def size_of(file: str) -> int:
    """Bytes of a file or object; what cannot be asked counts as one group."""
    seen = stores.head(file) if stores.is_remote(file) or "://" not in file else None
    return 1 << 62 if seen is None else seen.size


def absolute(file: str | os.PathLike[str]) -> str:
    """A path that is valid on every node; URIs pass as they are."""
    text = os.fspath(file)
    return text if "://" in text else os.path.abspath(text)


def resources_of(part: Part) -> Resources:
    """What a part may take of the machine where it is made."""
    return Resources.from_json(part.limits)


def check_stamps(files: Mapping[str, list[Any]]) -> None:
    """Refuses files that are not as they were when the run was planned."""
    for file, stamp in files.items():
        if stores.stamp(file) != stamp:
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
