"""Hashtags: counting them, and how Zipf-like they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wsl import _core
from wsl.files.globs import plain_parquet

if TYPE_CHECKING:
    import polars as pl

HEADS = (1, 10, 100, 1000)
COVERAGES = (0.5, 0.8, 0.9)


class HashtagCounts:
    """On how many records each hashtag was seen; made by `count_hashtags`, joined by `merge`."""

    def __init__(self, core: _core.HashtagCounts | None = None) -> None:
        self._core = core or _core.HashtagCounts()

    @property
    def core(self) -> _core.HashtagCounts:
        """The engine's object."""
        return self._core

    @property
    def num_records(self) -> int:
        """Records read, those without tags included."""
        return int(self._tally("records"))

    @property
    def num_hashtags(self) -> int:
        """Hashtags kept, each once in its record."""
        return int(self._tally("hashtags"))

    @property
    def num_duplicates(self) -> int:
        """Hashtags dropped since their record has them already."""
        return int(self._tally("duplicates"))

    @property
    def num_distinct(self) -> int:
        """Different hashtags."""
        return self._core.num_distinct

    @property
    def rejected(self) -> dict[str, int]:
        """Rejected hashtags by cause: not_utf8, empty, control_character, too_long, null."""
        return dict(self._tally("rejected"))

    def _tally(self, name: str) -> Any:
        return self._core.tally()[name]

    def tags_per_record(self) -> dict[int, int]:
        """Number of records by how many tags they keep."""
        return self._core.tags_per_record()

    def count_of(self, tag: str) -> int:
        """On how many records `tag` was seen, once normalized."""
        normalized = _core.normalize_hashtag(tag)
        return 0 if normalized is None else self._core.count_of(normalized)

    def table(self) -> pl.DataFrame:
        """Columns hashtag (text) and count (u64), most frequent first, ties by byte order."""
        import polars as pl

        return pl.DataFrame(self._core.table())

    def stream(self) -> _core.Table:
        """The same as an Arrow stream, which takes no more memory than was allowed."""
        return self._core.table()

    def top(self, number: int) -> list[tuple[str, int]]:
        """The most frequent tags and their counts."""
        return self._core.top(number)

    def multiplicities(self) -> dict[int, int]:
        """How many tags have each count, by ascending count."""
        return self._core.multiplicities()

    def merge(self, other: HashtagCounts) -> None:
        """Adds counts made over other records; associative and commutative."""
        self._core.merge(other._core)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the counts, whole or not at all."""
        self._core.save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        memory_bytes: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
    ) -> HashtagCounts:
        """Reads what `save` wrote; DataError where the file is damaged or another."""
        return cls(_core.HashtagCounts.load(path, memory_bytes=memory_bytes, spill_dir=spill_dir))


def count_hashtags(
    source: object,
    *,
    hashtags_column: str = "hashtags",
    separator: str | None = None,
    memory_bytes: int | None = None,
    spill_dir: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    storage_options: Mapping[str, str] | None = None,
    progress: Callable[[int], object] | None = None,
) -> HashtagCounts:
    """Counts the hashtags of records: for each tag the records that have it.

    `source` is a path, a glob, a Polars frame or anything with ``__arrow_c_stream__``; `storage_options`
    go to Polars for URLs. The column has lists of tags, or one text split at `separator` (at white
    space where None); in tar shards it is a field of the ``.json`` members, or ``.txt``. `progress`
    is called with the number of records read. The result does not depend on threads, batches, memory
    or the order of the records.

    With `memory_bytes` (at least 1 MiB) the engine's tables take no more than that; what does not fit
    is written to unnamed files in `spill_dir` (the system's folder for temporary files where None),
    which vanish with the process. The reader of the source has its own buffers beside it.

    Raises UsageError for an unknown column and DataError for files that cannot be read.
    """
    # The engine reads plain Parquet by itself, which is faster; for all else Polars reads and the engine
    # counts.
    counts = HashtagCounts(_core.HashtagCounts(memory_bytes=memory_bytes, spill_dir=spill_dir))
    files = [] if separator is not None or storage_options else plain_parquet(source)
    if files and counts.core.update_parquet(
        files,
        hashtags_column=hashtags_column,
        num_threads=num_threads,
        progress=progress,
    ):
        return counts
    from wsl.files.tables import open_records

    records = open_records(
        source, hashtags_column=hashtags_column, separator=separator, storage_options=storage_options
    )
    with records.reading():
        counts.core.update(
            records.stream,
            hashtags_column=hashtags_column,
            separator=records.separator,
            num_threads=num_threads,
            progress=progress,
        )
    return counts


@dataclass(frozen=True)
class ZipfFit:
    """A power law fitted to the counts (Clauset, Shalizi and Newman 2009)."""

    alpha: float
    """Exponent of p(x) ~ x^-alpha for counts x >= x_min, by discrete maximum likelihood."""
    standard_error: float
    """Standard error of alpha."""
    x_min: int
    """The count from which on the law applies; it minimizes ks_distance."""
    ks_distance: float
    """Kolmogorov-Smirnov distance of data and law from x_min on."""
    num_tail: int
    """Hashtags with at least x_min."""
    rank_exponent: float
    """1 / (alpha - 1): the count of the tag of rank r falls as r^-rank_exponent."""
    loglog_slope: float
    """Least-squares slope of log count against log rank, over all tags."""
    head_shares: dict[int, float]
    """The share of all occurrences that the 1, 10, 100, 1000 most frequent tags have."""
    head_sizes: dict[float, int]
    """How many of the most frequent tags have 50, 80, 90 % of all occurrences."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def fit_zipf(counts: HashtagCounts, *, x_min: int | None = None) -> ZipfFit:
    """Fits a power law to the counts; x_min is chosen unless given.

    Raises UsageError where fewer than two different counts are there to fit.
    """
    core = counts.core
    alpha, error, least, distance, num_tail, exponent, slope = core.fit_zipf(x_min)
    return ZipfFit(
        alpha=alpha,
        standard_error=error,
        x_min=least,
        ks_distance=distance,
        num_tail=num_tail,
        rank_exponent=exponent,
        loglog_slope=slope,
        head_shares=dict(zip(HEADS, core.head_shares(list(HEADS)), strict=True)),
        head_sizes=dict(zip(COVERAGES, core.head_sizes(list(COVERAGES)), strict=True)),
    )
