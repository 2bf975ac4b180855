"""Vocabularies: which hashtag is which label, and what a vocabulary covers."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from wsl import _core
from wsl._core import DataError, UsageError
from wsl.files.publish import publishing
from wsl.files.tables import open_records
from wsl.hashtags.counts import HashtagCounts


@dataclass(frozen=True)
class Share:
    """Some of the hashtags."""

    num_tags: int
    """Different tags."""
    num_hashtags: int
    """The records that each is on, added up."""


@dataclass(frozen=True)
class Coverage:
    """What a vocabulary covers of the counts that it was made of."""

    all: Share
    covered: Share
    """Tags that lead to a label."""
    matched: Share
    """Tags that match a noun of WordNet."""
    ambiguous: Share
    """Those of them that match nouns of several synsets."""


class Vocabulary:
    """Which tag is which label; labels are ranks by count when it was made, and never change."""

    def __init__(self, core: _core.Vocabulary, coverage: Coverage | None = None) -> None:
        self._core = core
        self.coverage = coverage
        """What it covers of the counts that it was made of; None where it was read from a file."""

    @classmethod
    def build(
        cls,
        counts: HashtagCounts,
        *,
        min_count: int = 1,
        max_labels: int | None = None,
        wordnet: str | os.PathLike[str] | None = None,
        synsets: str | os.PathLike[str] | None = None,
        exclude: Collection[str] = (),
    ) -> Vocabulary:
        """Labels by descending count, those on at least `min_count` records, `max_labels` at most.

        The labels that the tags of `exclude` lead to are left out first, and others take their places.

        With `wordnet`, the dict folder of WordNet 3.0, the tags that match nouns of one synset become
        one label (Mahajan et al. 2018, section 2): its count is theirs added up. Spaces, ``_``, ``-``,
        ``'`` and ``.`` do not count in a match. Of several synsets those listed in the text file
        `synsets` (a WNID such as n02131653 on each line, ``#`` begins a comment) come first, then the
        lowest sense number, the largest count in ``cntlist``, the smallest offset. Other tags stay
        labels of their own.

        Raises UsageError for a folder without WordNet or an unknown WNID, DataError for damaged files.
        """
        if synsets is not None and wordnet is None:
            raise UsageError("synsets are chosen among WordNet's; name its folder with wordnet too")
        if max_labels is not None and max_labels < 1:
            raise UsageError(f"max_labels is {max_labels}: expected at least 1; leave it out for all")
        room = None if max_labels is None else max_labels + len(set(exclude))
        core, shares = _core.Vocabulary.from_counts(
            counts.core,
            min_count=min_count,
            max_labels=room,
            wordnet=wordnet,
            synsets=[] if synsets is None else read_synsets(Path(synsets)),
        )
        coverage = Coverage(*(Share(*share) for share in shares))
        made = cls(core, coverage)
        return made._without(exclude, max_labels, coverage) if exclude else made

    def _without(self, tags: Collection[str], max_labels: int | None, coverage: Coverage) -> Vocabulary:
        """The first `max_labels` labels but those of `tags`; the ranks of the others close up."""
        dropped = {label for tag in tags if (label := self.encode(tag)) is not None}
        kept = self.table().filter(~pl.col("label").is_in(list(dropped))).head(max_labels or len(self))
        covered = Share(int(kept["tags"].list.len().sum()), int(kept["tag_count"].sum()))
        labels = pl.Series("label", range(len(kept)), dtype=pl.UInt32)
        core = _core.Vocabulary.from_table(kept.with_columns(labels))
        return Vocabulary(core, replace(coverage, covered=covered))

    def cover(
        self,
        source: object,
        *,
        hashtags_column: str = "hashtags",
        separator: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[int, int]:
        """The number of records, and of those with a tag that leads to a label; reads them once."""
        records = open_records(source, hashtags_column=hashtags_column, separator=separator)
        with records.reading():
            return self._core.cover(
                records.stream,
                hashtags_column=hashtags_column,
                separator=records.separator,
                progress=progress,
            )

    @classmethod
    def of_classes(cls, names: list[str]) -> Vocabulary:
        """Class i is called `names[i]`; names are distinct and not empty."""
        return cls(_core.Vocabulary.from_class_names(names))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Reads a `vocabulary.parquet`; DataError where it is damaged or another table."""
        if not Path(path).is_file():
            raise FileNotFoundError(2, "no such vocabulary", str(path))
        try:
            table = pl.read_parquet(Path(path))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path}: expected a vocabulary as a Parquet file, found: {error}") from None
        try:
            return cls(_core.Vocabulary.from_table(table))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes `vocabulary.parquet`, whole or not at all."""
        with publishing(Path(path)) as temporary:
            self.table().write_parquet(temporary, compression="lz4", statistics=False)

    @property
    def core(self) -> _core.Vocabulary:
        """The engine's object."""
        return self._core

    @property
    def fingerprint(self) -> str:
        """A hash of the ordered content."""
        return self._core.fingerprint

    @property
    def names(self) -> list[str]:
        """The name of each label."""
        return self._core.names()

    def encode(self, tag: str) -> int | None:
        """The label of `tag`, once normalized, or None."""
        normalized = _core.normalize_hashtag(tag)
        return None if normalized is None else self._core.encode(normalized)

    def table(self) -> pl.DataFrame:
        """Columns label (u32), name, synset (text), tag_count (u64), tags (list of text)."""
        return pl.DataFrame(self._core.table())

    def __len__(self) -> int:
        return len(self._core)


def read_synsets(path: Path) -> list[str]:
    """The WNIDs of a text file, one a line; what follows a ``#`` is a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected WNIDs as text, one a line: {error}") from None
    wnids = []
    for number, line in enumerate(lines, start=1):
        wnid = line.partition("#")[0].strip()
        if wnid and not (len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdecimal()):
            raise DataError(f"{path}: line {number}: expected a WNID such as n02131653, found {wnid!r}")
        if wnid:
            wnids.append(wnid)
    return wnids
