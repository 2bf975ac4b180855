"""What an index is built from, but for its inputs: one record from the options to the engine.

`wsl.yaml` and the command line fill in an `IndexConfig` (`wsl.workspace.config`); with its lists read it is a
`Recipe`. The engine reads the recipe by its attributes (``rust/src/python/recipe.rs``), a build that is
resumed compares it, and the parts of a build on a cluster carry it. A new option is a field here, a flag in
`wsl.cli.index`, and its use in the engine.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsl.workspace.settings import Config, Positive, Share

MOST_PART_ROWS = 1 << 20
"""Rows of a part of an index."""


class IndexOptions(Config):
    """How labels and keys are read, the same in `wsl.yaml` and in a recipe."""

    label_kind: Literal["hashtag", "class"] | None = None
    """What the labels are; absent for unlabelled shards."""
    key_column: str = "key"
    hashtags_column: str = "hashtags"
    separator: str | None = None
    """Where a column of text is split; white space where absent."""
    key_scope: Literal["global", "shard"] = "global"
    """Whether a key names one sample of the whole set, or keys begin anew in every shard."""
    shard_column: str | None = None
    """The column of the records that names their shard, in scope "shard"; else tables are beside shards."""
    key_format: str | None = None
    """How integer keys are written in the names of members, such as "{:09d}"."""
    limits: dict[str, Share] = {}
    """Shares above which the build is refused, such as {samples_without_record: 0.5}."""

    @property
    def is_by_path(self) -> bool:
        """Whether tables of records are beside their shards and have their names."""
        return self.key_scope == "shard" and self.shard_column is None


class Recipe(IndexOptions):
    """What an index is built from, but for its inputs."""

    min_count: Positive = 1
    """Hashtags on fewer records are no labels, where the vocabulary is made of counts."""
    max_labels: Positive | None = None
    """At most so many labels, the most frequent first."""
    class_names: list[str] | None = None
    """The name of class i is the i-th."""
    include: list[str] | None = None
    """The only keys to take."""
    exclude: list[str] = []
    """Keys to leave out."""
    part_rows: Annotated[int, Field(ge=1, le=MOST_PART_ROWS)] = MOST_PART_ROWS
    """Samples of a part of the index."""

    def of_rows(self) -> Recipe:
        """The same without what only the vocabulary and the end of a build follow from.

        Rows, keys and labels that were made stay as they are when these change.
        """
        end = ("limits", "min_count", "max_labels", "class_names", "part_rows")
        return self.model_copy(update={name: type(self).model_fields[name].get_default() for name in end})
