"""Top-K/top-P selection of images for classes, from a teacher's scores.

Every class takes its K best-scored images, and an image may stand for at most P classes (Yalniz,
Jegou, Chen, Paluri, Mahajan 2019, "Billion-scale semi-supervised learning for image classification",
section 3.2). ``class-first`` lets the classes take their K first, and then cuts every image to its P
best among them; ``image-first``, as published, cuts every image to its P best classes first. They
agree where P is at least the number of classes. Nothing is refilled after a cut.

Scores are float32 and ranked as they are: the higher first, ties to the smaller sample, then to the
smaller class. The selection is a function of the set of scored pairs alone, however they are split
over calls, states that are merged, files or threads. Each class keeps no more than 2K pairs of 12
bytes; `update_dense` reads a matrix of scores once and mostly forgets it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from wsl import _core
from wsl._core import UsageError

if TYPE_CHECKING:
    from wsl._core import ArrowStream

Order = Literal["class-first", "image-first"]

_LOW_PRECISION = ("float16", "bfloat16", "half", "float8", "float4")


@dataclass(frozen=True, eq=False)
class Selection:
    """What a selection came to.

    `table` has a row for each selected pair, by ascending class, then rank:

    ======================  ==========================================================================
    ``sample`` uint64       the image
    ``class`` uint32        the class that it stands for
    ``score`` float32       its score; log-odds where logits were given
    ``probability`` float32 1 / (1 + exp(-score)): the softmax's probability where the score is the
                            log-odds, and without a meaning for scores of another kind
    ``rank`` uint32         its place among the images that the class took, from 1, before the P cut
    ======================  ==========================================================================

    `before` and `after` (uint64, one for each class) count the images of a class before and after the
    P cut; under ``image-first``, where that cut comes first, they are equal.
    """

    table: pl.DataFrame
    before: npt.NDArray[np.uint64]
    after: npt.NDArray[np.uint64]
    k: int
    p: int
    order: Order

    @property
    def short_classes(self) -> npt.NDArray[np.int64]:
        """The classes that fewer than K images were scored and kept for, ascending."""
        return np.flatnonzero(self.before < self.k)


class TopK:
    """The state of a selection: give it scores as they come, then `finish`.

    `num_classes` classes take the `k` best images each, and an image stands for at most `p` classes;
    `order` is ``class-first`` or ``image-first``. UsageError where a number is below 1, or for
    another order.

    Bad data (DataError: a score that is not finite, a class out of range, a sample that comes back
    under ``image-first``) and Ctrl-C leave a state half updated, which then refuses every further
    call. Wrong usage (UsageError) leaves it as it was.
    """

    def __init__(self, num_classes: int, k: int, p: int, order: Order = "class-first") -> None:
        self._engine = _core.TopK(num_classes, k, p, order)

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
        """The most classes that an image stands for."""
        return self._engine.p

    @property
    def order(self) -> Order:
        """Which cut comes first."""
        return cast("Order", self._engine.order)

    @property
    def num_pairs(self) -> int:
        """Scored pairs seen so far."""
        return self._engine.num_pairs

    def update_pairs(self, source: ArrowStream, *, progress: Callable[[int], object] | None = None) -> None:
        """Takes scored pairs from anything with ``__arrow_c_stream__``, batch by batch.

        Columns: ``sample`` and ``class``, integers of any width, not negative; ``score``, float32.
        Under ``image-first`` the pairs of a sample must be adjacent, also across calls. `progress` is
        called with the pairs done so far. UsageError for a missing column or another type, DataError
        for a null, a class out of range or a score that is not finite.
        """
        self._engine.update_pairs(source, progress=progress)

    def update_dense(
        self, scores: object, samples: object | None = None, first_sample: int | None = None
    ) -> None:
        """Takes a matrix of scores: a NumPy array or a torch tensor on the CPU, float32, of the shape
        (rows, num_classes).

        The rows are `samples` (integers, one for each row), or `first_sample` and those after it.
        UsageError for another type or shape, DataError that names sample and class for a score that
        is not finite.
        """
        matrix, ordinals = _matrix(scores, "scores"), _samples(samples)
        self._engine.update_dense(matrix, ordinals, first_sample)

    def update_logits(
        self, logits: object, samples: object | None = None, first_sample: int | None = None
    ) -> None:
        """Takes a matrix like `update_dense`, of logits z, and ranks by the softmax's log-odds,
        ``score_c = z_c - log(sum of exp(z_j) over all j but c)``, computed in float64.

        They order as the probability 1 / (1 + exp(-score)) does, and do not saturate at 0 or 1.
        """
        matrix, ordinals = _matrix(logits, "logits"), _samples(samples)
        self._engine.update_logits(matrix, ordinals, first_sample)

    def merge(self, other: TopK) -> None:
        """Adds what `other` took, over other pairs; under ``image-first``, over other samples.

        UsageError where the options differ; DataError where both have seen a sample (image-first).
        Either leaves this state as it was.
        """
        self._engine.merge(other._engine)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the state to a file, whole or not at all: K pairs of a class at most."""
        self._engine.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a file of `save`; DataError where it is cut short, altered or of another version."""
        top = cls.__new__(cls)
        top._engine = _core.TopK.load(path)
        return top

    def finish(self, k: int | None = None, p: int | None = None) -> Selection:
        """The selection over all pairs so far; the state stays, and can take more.

        Under ``class-first`` a smaller `k` and any `p` give what a selection with them from the start
        would have; under ``image-first`` a smaller `k` at the state's own `p` does. UsageError for
        others. DataError names a sample that is twice among the K best of a class.
        """
        table, before, after = self._engine.finish(k, p)
        frame = pl.DataFrame(table)
        probability = (1.0 / (1.0 + (-pl.col("score").cast(pl.Float64)).exp())).cast(pl.Float32)
        return Selection(
            table=frame.select("sample", "class", "score", probability.alias("probability"), "rank"),
            before=np.frombuffer(before, dtype=np.uint64),
            after=np.frombuffer(after, dtype=np.uint64),
            k=self.k if k is None else k,
            p=self.p if p is None else p,
            order=self.order,
        )

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


def _samples(value: object | None) -> npt.NDArray[np.uint64] | None:
    if value is None:
        return None
    array = _numpy(value, "samples")
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size > 0):
        raise UsageError(
            f"samples: expected integers, one for each row, got {array.dtype} of the shape {array.shape}"
        )
    if array.dtype.kind == "i" and array.size > 0 and array.min() < 0:
        raise UsageError(f"samples: expected no negative number, got {array.min()}")
    return np.ascontiguousarray(array, dtype=np.uint64)


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
