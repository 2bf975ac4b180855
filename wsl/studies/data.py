"""What a study reads: bundled sets laid out, parts of indexes drawn, its own indexes built.

    <root>/data/<set>-.../           workspaces of bundled sets
    <root>/index/<name>-<hash>/      indexes of studies, by what they are made of
    <root>/index/<name>-<hash>.keys  the keys that a draw took

All of it is left as it is where it is there already, and shared by the studies under one root.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wsl import carried
from wsl._core import UsageError
from wsl.files.publish import publish_text
from wsl.files.tables import scan
from wsl.index.jobs import build_one_index, index_jobs
from wsl.index.mapped import VOCABULARY, Index
from wsl.studies.plan import IndexPlan, Place
from wsl.studies.spec import CarriedData, Draw, StudyConfig
from wsl.workspace.config import IndexConfig
from wsl.workspace.layout import Workspace
from wsl.workspace.settings import change, check

Note = Callable[[str], object]
KEYS_AT_ONCE = 65_536


@dataclass
class StudyData:
    """The workspace of a study and its indexes."""

    root: Path
    workspace: Workspace
    folders: dict[str, Path]
    """Of the bundled sets."""
    indexes: dict[Place, Path] = field(default_factory=dict)

    def path(self, text: str) -> str:
        """`text` with {NAME} of a bundled set replaced by its folder, seen from the workspace."""
        try:
            found = text.format_map({name: str(folder) for name, folder in self.folders.items()})
        except (KeyError, ValueError, IndexError, AttributeError):
            known = ", ".join(f"{{{name}}}" for name in self.folders) or "none"
            raise UsageError(f"{text!r}: expected a path with names of data in braces, of: {known}") from None
        return str(self.workspace.root / found)

    def index(self, name: str, places: Mapping[str, Place]) -> Path:
        """Where an index is: one of the study at its place, else one of the workspace."""
        if name in places:
            return self.indexes[places[name]]
        return self.workspace.built_index(name)

    def make(self, plan: IndexPlan, places: Mapping[str, Place], note: Note) -> Path:
        """Builds an index of the study, whose inputs `places` are built; its folder."""
        settings = self._settings(plan, places)

        # The folder is named by all that the index is made of, so a changed study makes another one.
        told: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "draw": None}
        keys: list[str] | None = None
        if plan.settings.draw is not None:
            keys = self._draw(plan.settings.draw, places, str(plan.place))
            told["draw"] = hashlib.sha256("\n".join(keys).encode()).hexdigest()
        name = f"{plan.place.name}-{_digest(told)}"
        path = self.root / "index" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if keys is not None:
            list_file = path.with_name(f"{name}.keys")
            if not list_file.is_file():
                publish_text(list_file, "".join(f"{key}\n" for key in keys))
            settings = settings.model_copy(update={"include": list_file})
        result = build_one_index(path, settings, self.workspace.root)
        if result.state != "up to date":
            note(f"index {plan.place}: {len(result.index):,} samples, {result.index.num_labels:,} labels")
        self.indexes[plan.place] = path
        return path

    def _settings(self, plan: IndexPlan, places: Mapping[str, Place]) -> IndexConfig:
        tree: dict[str, Any] = {}
        if plan.settings.like is not None:
            tree = self.workspace.index(plan.settings.like).model_dump(exclude_unset=True)
        own = {"like", "set", "draw", "vocabulary_of"}
        tree |= plan.settings.model_dump(exclude=own, exclude_unset=True)
        for key, value in plan.settings.set.items():
            change(tree, key, value)
        for key in ("shards", "records", "class_names"):
            given = tree.get(key)
            if given is not None:
                paths = [self.path(str(path)) for path in (given if isinstance(given, list) else [given])]
                tree[key] = paths if isinstance(given, list) else paths[0]
        if plan.settings.vocabulary_of is not None:
            other = self.index(plan.settings.vocabulary_of, places)
            tree["vocabulary"] = {"file": other / VOCABULARY}
        return check(IndexConfig, tree, f"indexes.{plan.place}")

    def _draw(self, draw: Draw, places: Mapping[str, Place], where: str) -> list[str]:
        if draw.truth is not None:
            table = read_truth(Path(self.path(draw.truth)))
        else:
            assert draw.of is not None
            table = keys_and_classes(Index.open(self.index(draw.of, places)))
        keys = drawn(table, draw)
        if not keys:
            raise UsageError(f"{where}: the draw leaves no image of {len(table):,}")
        return keys


def lay_out(
    study: StudyConfig, root: Path, folder: Path | None, sources: Mapping[str, Path], note: Note
) -> StudyData:
    """Lays out the bundled sets and builds their workspaces' indexes; else finds the user's workspace."""
    unknown = [name for name in sources if name not in study.data]
    if unknown:
        known = ", ".join(study.data) or "it has none of its own"
        raise UsageError(f"--source {unknown[0]}=...: the study has no data of that name ({known})")
    folders = {}
    for name, chosen in study.data.items():
        path = root / "data" / _data_name(chosen, sources.get(name))
        if not (path / "wsl.yaml").is_file():
            note(f"data {name}: {path}")
        carried.make_workspace(
            path, chosen.dataset, num_labelled=chosen.num_labelled, source=sources.get(name)
        )
        folders[name] = path.resolve()

    # The study is about the user's own data.
    if study.workspace is None:
        return StudyData(root, Workspace.find(folder), folders)
    workspace = Workspace.find(folders[study.workspace])
    for _, path, settings, base in index_jobs(workspace, None):
        build_one_index(path, settings, base)
    return StudyData(root, workspace, folders)


def drawn(table: pl.DataFrame, draw: Draw) -> list[str]:
    """The keys that `draw` takes of a table of ``key`` and ``class`` (null: of no class), sorted.

    The images are in the order of a hash of seed and key, and the first are taken, so the draw depends
    neither on the order of the table nor on other images, and a larger draw contains a smaller one.
    """
    seed = str(draw.seed).encode()
    hashes = [hashlib.blake2b(key.encode(), key=seed, digest_size=8).digest() for key in table["key"]]
    ordered = table.with_columns(pl.Series("hash", hashes, dtype=pl.Binary)).sort("hash", "key")
    if draw.share is not None or draw.num_images is not None:
        share = float(draw.share or 0)
        take = round(share * len(ordered)) if draw.num_images is None else int(draw.num_images)
        taken = ordered.with_row_index("place").with_columns(taken=pl.col("place") < take)
    else:
        taken = _per_class(ordered, draw)
    return sorted(taken.filter(pl.col("taken") != draw.rest)["key"].to_list())


def _per_class(ordered: pl.DataFrame, draw: Draw) -> pl.DataFrame:
    """Which images are among the first of their class that are wanted."""
    default = None if draw.per_class is None else float(draw.per_class)
    sizes = dict(ordered.group_by("class").len().iter_rows())
    wanted = {}
    assert not isinstance(draw.classes, str), "references are replaced before"
    for label, size in sizes.items():
        asked = float(draw.classes[label]) if label in draw.classes else default
        wanted[label] = size if asked is None else round(asked * size) if asked < 1 else int(asked)
    return ordered.with_columns(
        taken=pl.int_range(pl.len()).over("class")
        < pl.col("class").replace_strict(wanted, return_dtype=pl.Int64)
    )


def read_truth(file: Path) -> pl.DataFrame:
    """A table of true classes: ``key`` (text) and ``class`` (u32)."""
    frame = scan(file)
    names = frame.collect_schema().names()
    if not {"key", "class"} <= set(names):
        raise UsageError(f"{file}: expected the columns key and class; its columns are: {', '.join(names)}")
    return frame.select(pl.col("key").cast(pl.String), pl.col("class").cast(pl.UInt32)).collect()


def keys_and_classes(index: Index) -> pl.DataFrame:
    """Every key of an index with its first label, null where it has none."""
    keys: list[str] = []
    first: list[int | None] = []
    for start in range(0, len(index), KEYS_AT_ONCE):
        ordinals = np.arange(start, min(start + KEYS_AT_ONCE, len(index)), dtype=np.int64)
        keys += index.keys(ordinals)
        first += [int(labels[0]) if len(labels) else None for labels in index.labels(ordinals)]
    return pl.DataFrame({"key": keys, "class": first}, schema={"key": pl.String, "class": pl.UInt32})


def _data_name(chosen: CarriedData, source: Path | None) -> str:
    """A folder for a set and its options."""
    number = f"-{chosen.num_labelled}" if chosen.dataset == "fashion-mnist" else ""
    full = "" if source is None else f"-{_digest(str(source.resolve()))[:6]}"
    return f"{chosen.dataset}{number}{full}"


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
