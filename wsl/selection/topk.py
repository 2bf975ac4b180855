"""Top-K/top-P selection of images for classes, from a teacher's scores.

Every class takes its K best-scored images, and an image is selected for at most P classes (Yalniz,
Jegou, Chen, Paluri, Mahajan 2019, "Billion-scale semi-supervised learning for image classification",
section 3.2). ``class-first`` lets the classes take their K first, and then cuts every image to its P
best among them; ``image-first``, as published, cuts every image to its P best classes first. They
agree where P is at least the number of classes. Nothing is refilled after a cut.

Scores are float32 and ranked as they are: the higher first, ties to the smaller sample, then to the
smaller class. The selection is a function of the set of scored pairs alone, however they are split
over calls, states that are merged, files, threads or limits of memory. Each class keeps K pairs and a
quarter, of 12 bytes; `update` reads a matrix of scores once and mostly forgets it. With a limit
of memory the rest goes to sorted runs in a private folder, which is gone at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from wsl import _core
from wsl._core import UsageError
from wsl.files.globs import plain_parquet
from wsl.files.resources import UNLIMITED, Resources

if TYPE_CHECKING:
    import polars as pl

    from wsl._core import ArrowStream

Order = Literal["class-first", "image-first"]

LAYOUT = ("sample", "class", "score", "classes", "scores")
"""The columns of scores, in the layouts that `TopK.update_pairs` takes."""

_LOW_PRECISION = ("float16", "bfloat16", "half", "float8", "float4")


class Selection:
    """What a selection came to; it stays as it is, whatever becomes of the state.

    `k`, `p` and `order` are what it was finished with. The counts are arrays with one number for each
    class: `before` and `after` (uint64) its images before and after the P cut, equal under
    ``image-first``, where that cut comes first; `lowest` (float32) the score of the last image that it
    took, before the P cut, NaN where it took none.
    """

    def __init__(self, core: _core.SelectedPairs, k: int, p: int, order: Order) -> None:
        self._core = core
        self.k, self.p, self.order = k, p, order
        self.before = np.frombuffer(core.num_before(), dtype=np.uint64)
        self.after = np.frombuffer(core.num_after(), dtype=np.uint64)
        self.lowest = np.frombuffer(core.lowest(), dtype=np.float32)

    @property
    def num_pairs(self) -> int:
        """Selected pairs."""
        return int(self.after.sum())

    @property
    def images_by_classes(self) -> dict[int, int]:
        """How many images are selected for 1, 2, ... classes."""
        return dict(self._core.images_by_classes())

    @property
    def short_classes(self) -> npt.NDArray[np.int64]:
        """The classes that fewer than K images were scored and kept for, ascending."""
        return np.flatnonzero(self.before < self.k)

    def stream(self) -> ArrowStream:
        """The selected pairs as an Arrow stream of sample, class, score and rank, as `table` has them;
        read from disk where they do not fit in memory, as often as wanted."""
        return cast("ArrowStream", self._core.table())

    def frames(self) -> Iterator[pl.DataFrame]:
        """The same batch by batch, with the probability.

        Columns:

        ======================  ======================================================================
        ``sample`` uint64       the image
        ``class`` uint32        the class that it is selected for
        ``score`` float32       its score; log-odds where logits were given
        ``probability`` float32 1 / (1 + exp(-score)): the softmax's probability where the score is the
                                log-odds, and without a meaning for scores of another kind
        ``rank`` uint32         its place among the images that the class took, from 1, before the P cut
        ======================  ======================================================================
        """
        import polars as pl

        for batch in self._core.batches():
            yield with_probability(pl.DataFrame(batch))

    @property
    def table(self) -> pl.DataFrame:
        """All pairs in memory: by ascending sample, then the best class first."""
        import polars as pl

        return with_probability(pl.DataFrame(self.stream()))

    def agreement(self, other: Selection) -> float:
        """The share of pairs that are in both of those that are in one of them; 1 where both are empty.

        Their Jaccard index; for instance of the two orders over the same scores.
        """
        common = self._core.num_common(other._core)
        either = self.num_pairs + other.num_pairs - common
        return common / either if either else 1.0


def with_probability(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs with the column that `Selection.frames` describes."""
    import polars as pl

    probability = (1.0 / (1.0 + (-pl.col("score").cast(pl.Float64)).exp())).cast(pl.Float32)
    return pairs.select("sample", "class", "score", probability.alias("probability"), "rank")


@dataclass(frozen=True)
class Cut:
    """What a selection keeps: K images of each class, P classes of each image, in an order.

    One record for all who begin one: a request, the states of a network that scores, the parts on a cluster.
    """

    num_classes: int
    k: int
    p: int
    order: Order = "class-first"

    def new(self, resources: Resources = UNLIMITED) -> TopK:
        """An empty selection."""
        return TopK(self.num_classes, self.k, self.p, self.order, **resources.options())

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """What `to_json` made; other names are passed over."""
        return cls(**{each.name: tree[each.name] for each in fields(cls)})


class TopK:
    """The state of a selection: give it scores as they come, then `finish`.

    `num_classes` classes take the `k` best images each, and an image is selected for at most `p` classes;
    `order` is ``class-first`` or ``image-first``. Beyond `memory_bytes` entries go to a private folder in
    `spill_dir` (the system's where absent) as sorted, checksummed runs, which are merged in the end; the
    folder goes with the state, and one that a killed process left is removed by the next. `num_threads`
    work together, as many as there are cores where absent. Neither changes the result. UsageError where a
    number is below 1 or the memory too little for so many classes, or for another order.

    Bad data (DataError: a score that is not finite, a class out of range, a sample that comes back
    under ``image-first``) and Ctrl-C leave a state half updated, which then refuses every further
    call. Wrong usage (UsageError) leaves it as it was.
    """

    def __init__(
        self,
        num_classes: int,
        k: int,
        p: int,
        order: Order = "class-first",
        *,
        memory_bytes: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self._engine = _core.TopK(
            num_classes,
            k,
            p,
            order,
            memory_bytes=memory_bytes,
            spill_dir=spill_dir,
            num_threads=num_threads,
        )

    @property
    def cut(self) -> Cut:
        """What it keeps."""
        return Cut(self.num_classes, self.k, self.p, self.order)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self._engine.num_classes

    @property
    def k(self) -> int:
        """The most images that a class takes."""
        return self._engine.k

    @property
    def p(self) -> int:
        """The most classes that an image is selected for."""
        return self._engine.p

    @property
    def order(self) -> Order:
        """Which cut comes first."""
        return cast("Order", self._engine.order)

    @property
    def num_pairs(self) -> int:
        """Scored pairs seen so far."""
        return self._engine.num_pairs

    def update_pairs(
        self,
        source: ArrowStream | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        grouped: bool = True,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Takes scores from files (a path, a glob, a list of them), or from anything with
        ``__arrow_c_stream__``, batch by batch.

        A row for each pair: ``sample`` and ``class``, integers of any width, not negative; ``score``,
        float32. Or a row for each sample: ``sample``, and the lists ``classes`` and ``scores`` of one
        length, or ``scores`` alone, a fixed-size list with a score for every class.

        Under ``image-first`` the pairs of a sample must be adjacent, also across calls; with `grouped`
        false they may be anywhere in this one source, and are sorted by sample first, on disk where they
        do not fit (16 bytes a pair). `progress` is called with the rows done so far. UsageError for a
        missing column or another type, DataError for a null, a class out of range, lists of two lengths
        or a score that is not finite.
        """
        named: list[Any] = list(source) if isinstance(source, (list, tuple)) else [source]
        if all(isinstance(path, (str, os.PathLike)) for path in named):
            if self.update_files(named, progress=progress):
                return
            from wsl.files.tables import open_stream, scan

            schema = scan(source).collect_schema()
            source = open_stream(source, [name for name in LAYOUT if name in schema])
        self._engine.update_pairs(cast("ArrowStream", source), grouped=grouped, progress=progress)

    def update_files(
        self, files: Sequence[str | os.PathLike[str]], *, progress: Callable[[int], object] | None = None
    ) -> bool:
        """Takes the pairs of local Parquet files under ``class-first``, as `update_pairs` does, without
        Polars; a sample is looked at only where its score may be among the K best of its class.

        False, and nothing is taken, where a file is not three columns of numbers, plain or with a
        dictionary, uncompressed, Snappy or Zstandard.
        """
        plain = plain_parquet(list(files))
        return bool(plain) and self._engine.update_parquet(plain, progress=progress)

    def update(self, samples: object, scores: object) -> None:
        """Takes a matrix of scores, which are ranked as they are: a NumPy array or a torch tensor on the
        CPU, float32, of the shape (rows, num_classes).

        `samples` are integers, one for each row; a ``range`` is not unpacked. The matrix is read in
        place: nothing may write to it during the call.
        UsageError for another type or shape, DataError that names sample and class for a score that
        is not finite.
        """
        matrix = _matrix(scores, "scores")
        ordinals, first = _samples(samples, len(matrix))
        self._engine.update(matrix, ordinals, first)

    def update_logits(self, samples: object, logits: object) -> None:
        """Takes a matrix like `update`, of logits z, and ranks by the softmax's log-odds,
        ``score_c = z_c - log(sum of exp(z_j) over all j but c)``, computed in float64.

        They order as the probability 1 / (1 + exp(-score)) does, and do not saturate at 0 or 1. The array
        is read in place: nothing may write to it during the call.
        """
        matrix = _matrix(logits, "logits")
        ordinals, first = _samples(samples, len(matrix))
        self._engine.update_logits(matrix, ordinals, first)

    def merge(self, other: TopK) -> None:
        """Adds what `other` took, over other pairs; under ``image-first``, over other samples.

        UsageError where the options differ; DataError where both have seen a sample (image-first).
        Either leaves this state as it was.
        """
        self._engine.merge(other._engine)

    def spill(self) -> None:
        """Writes what is in memory to disk now, for callers who want their memory back."""
        self._engine.spill()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file, whole or not at all: K pairs of a class at most."""
        self._engine.save(path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        memory_bytes: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        num_threads: int | None = None,
    ) -> Self:
        """Reads a file of `save`; DataError where it is cut short, altered or of another version."""
        top = cls.__new__(cls)
        top._engine = _core.TopK.load(
            path, memory_bytes=memory_bytes, spill_dir=spill_dir, num_threads=num_threads
        )
        return top

    def finish(self, k: int | None = None, p: int | None = None) -> Selection:
        """The selection over all pairs so far; the state stays, and can take more.

        Under ``class-first`` a smaller `k` and any `p` give what a selection with them from the start
        would have; under ``image-first`` a smaller `k` at the state's own `p` does. UsageError for
        others. DataError names a sample that is twice among the K best of a class.
        """
        found = self._engine.finish(k, p)
        return Selection(found, self.k if k is None else k, self.p if p is None else p, self.order)

    def __repr__(self) -> str:
        return repr(self._engine)


def log_odds(logits: object) -> npt.NDArray[np.float32]:
    """The softmax's log-odds of logits z: ``z_c - log(sum of exp(z_j) over all j but c)``.

    `logits` is float32, rows x classes (at least 2), a NumPy array or a torch tensor on the CPU; the
    result has the same shape. Computed in float64. DataError for a logit that is not finite.
    """
    matrix = _matrix(logits, "logits")
    return np.frombuffer(_core.log_odds(matrix), dtype=np.float32).reshape(np.shape(matrix))


def _matrix(value: object, name: str) -> npt.NDArray[np.float32]:
    dtype = str(getattr(value, "dtype", type(value).__name__)).removeprefix("torch.")
    if dtype.startswith(_LOW_PRECISION):
        raise UsageError(
            f"{name}: expected float32, got {dtype}; in a lower precision so many images tie that the "
            "tie rule would choose them, not the teacher: let its last layer compute in float32"
        )
    if dtype != "float32":
        raise UsageError(
            f"{name}: expected a NumPy array or torch tensor of float32, got {dtype}; cast it with "
            "numpy.asarray(x, dtype='float32') or x.float()"
        )
    array = _numpy(value, name)
    if array.ndim != 2:
        raise UsageError(
            f"{name}: expected 2 dimensions, a row for each sample and a column for each class, got "
            f"the shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _samples(value: object, num_rows: int) -> tuple[npt.NDArray[np.uint64] | None, int | None]:
    """The samples of rows: all of them, or the first of consecutive ones."""
    if isinstance(value, range) and value.step == 1 and len(value) == num_rows and 0 <= value.start < 1 << 64:
        return None, value.start
    array = _numpy(value, "samples")
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size > 0):
        raise UsageError(
            f"samples: expected integers, one for each row, got {array.dtype} of the shape {array.shape}"
        )
    if array.dtype.kind == "i" and array.size > 0 and array.min() < 0:
        raise UsageError(f"samples: expected no negative number, got {array.min()}")
    return np.ascontiguousarray(array, dtype=np.uint64), None


def _numpy(value: object, name: str) -> npt.NDArray[Any]:
    tensor: Any = value
    if hasattr(tensor, "detach") and hasattr(tensor, "device"):
        if tensor.device.type != "cpu":
            raise UsageError(
                f"{name}: expected a tensor on the CPU, got one on {tensor.device}; give it as x.cpu()"
            )
        return cast("npt.NDArray[Any]", tensor.detach().numpy())
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(list(value) if isinstance(value, range | Sequence) else tensor)
