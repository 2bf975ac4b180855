"""The selection as a file: written as a stream, with the report of the selection in it.

`pseudolabels.parquet` has the columns ``sample``, ``key`` (where keys are known), ``class``, ``score``,
``probability`` and ``rank``, by ascending sample. Its metadata name where it comes from, and have the
report.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wsl._core import DataError, UsageError
from wsl.files import stores
from wsl.files.globs import find_files, fingerprint
from wsl.files.tables import scan
from wsl.selection.topk import Selection

SCHEMA = {
    "sample": pl.UInt64,
    "class": pl.UInt32,
    "score": pl.Float32,
    "probability": pl.Float32,
    "rank": pl.UInt32,
}
Keys = Callable[[np.ndarray], list[str]]
"""The keys of samples, given as int64."""


Find = Callable[[pl.Series], pl.Series]
"""Of keys the samples, a column ``sample`` of uint64, null where there is none."""


@dataclass(frozen=True)
class Truth:
    """The true class of some samples: columns sample and truth."""

    table: pl.DataFrame
    made_of: dict[str, str] = field(default_factory=dict)
    """The file and its column, for the report."""

    @classmethod
    def read(cls, file: Path, column: str, names: list[str] | None, find: Find | None) -> Truth:
        """Reads a table with `column`, a class by number or name, and ``sample``, or ``key`` where `find`
        finds which sample it is; keys that it does not know are passed over.

        UsageError for a missing column, DataError for a name that is no class.
        """
        # `sample` comes before `key`, since it can be used without an index.
        frame = scan(file)
        schema = frame.collect_schema()
        name = "sample" if "sample" in schema else "key"
        for wanted in (name, column):
            if wanted not in schema:
                raise UsageError(
                    f"{file}: expected columns sample or key, and {column}; its columns are: "
                    f"{', '.join(schema)}"
                )
        table = frame.select(name, column).collect()
        if name == "key":
            if find is None:
                raise UsageError(f"{file} names samples by key; say with --index which samples they are")
            table = table.with_columns(find(table["key"].cast(pl.String))).drop_nulls("sample")
        if table.schema[column] == pl.String:
            # Tables of text have numbers as text, too; a class called by a number goes by its name.
            digits = [text for text in table[column].unique().drop_nulls() if text.isdecimal()]
            most = 1 << 32 if names is None else len(names)
            numbers = {text: int(text) for text in digits if int(text) < most}
            numbers |= {text: number for number, text in enumerate(names or [])}
            unknown = [text for text in table[column].unique().to_list() if text not in numbers]
            if unknown:
                raise DataError(f"{file}: {column} holds {unknown[0]!r}, which names no class")
            table = table.with_columns(pl.col(column).replace_strict(numbers, return_dtype=pl.UInt32))
        table = table.select(pl.col("sample").cast(pl.UInt64), pl.col(column).cast(pl.UInt32).alias("truth"))
        return cls(table, truth_of(file, column))


def truth_of(file: Path, column: str) -> dict[str, str]:
    """The report's entry for the truth of a precision: the content of its files, and the column."""
    files = find_files(file)
    marks = [str(stores.stamp(name)) if stores.is_remote(name) else fingerprint(Path(name)) for name in files]
    return {"fingerprint": hashlib.sha256("\n".join(marks).encode()).hexdigest(), "column": column}


class _Precision:
    """How often the class of a pair is the image's true one, by class."""

    def __init__(self, truth: Truth, num_classes: int) -> None:
        self.made_of = truth.made_of
        self._truth = truth.table.unique("sample", keep="any")
        self.known = np.zeros(num_classes, dtype=np.int64)
        self.right = np.zeros(num_classes, dtype=np.int64)

    def add(self, pairs: pl.DataFrame) -> None:
        found = pairs.select("sample", "class").join(self._truth, on="sample", how="inner")
        classes = found["class"].to_numpy()
        size = len(self.known)
        self.known += np.bincount(classes, minlength=size)
        self.right += np.bincount(classes[(found["truth"] == found["class"]).to_numpy()], minlength=size)


def write(
    selection: Selection,
    out: Path | str,
    provenance: dict[str, Any],
    *,
    keys: Keys | None = None,
    truth: Truth | None = None,
    agreement: float | None = None,
    num_dropped: int = 0,
) -> dict[str, Any]:
    """Writes the selection batch by batch, whole or not at all, and returns the report, which it has too.

    `out` is a path, or the URI of an object. `num_dropped` scored samples had been removed, and were
    left out.
    """
    precision = None if truth is None else _Precision(truth, len(selection.before))

    # Polars asks for the frames while it writes, and wraps what they raise. So the error itself, and whether
    # all frames were written, are noted here.
    raised: list[Exception] = []
    finished = False

    def frames(*_: object) -> Iterator[pl.DataFrame]:
        nonlocal finished
        try:
            for frame in selection.frames():
                if precision is not None:
                    precision.add(frame)
                yield frame if keys is None else _with_keys(frame, keys)
        except Exception as error:
            raised.append(error)
            raise
        finished = True

    # The metadata of Parquet are at the end of the file, so the report can be of all the rows before it.
    result: dict[str, Any] = {}

    def metadata(_: object) -> dict[str, str]:
        if not finished and selection.num_pairs:
            raise RuntimeError("the metadata were asked for before all rows were written")
        result.update(report(selection, provenance, precision, agreement) | {"num_dropped": num_dropped})
        return {"wsl": json.dumps(provenance | {"report": result})}

    # The order of the columns in the file: the key comes after the sample that it names.
    schema: dict[str, Any] = dict(SCHEMA)
    if keys is not None:
        schema = {"sample": schema.pop("sample"), "key": pl.String, **schema}
    with stores.publishing(out) as temporary:
        try:
            _stream(frames, schema).sink_parquet(temporary, metadata=metadata)
        except pl.exceptions.PolarsError:
            # What went wrong while a batch was made comes back wrapped.
            if raised:
                raise raised[0] from None
            raise
    return result


def _stream(frames: Callable[..., Iterator[pl.DataFrame]], schema: dict[str, Any]) -> pl.LazyFrame:
    from polars.io.plugins import register_io_source

    return register_io_source(frames, schema=schema)


def _with_keys(frame: pl.DataFrame, keys: Keys) -> pl.DataFrame:
    found = keys(frame["sample"].to_numpy().astype(np.int64))
    return frame.insert_column(1, pl.Series("key", found, dtype=pl.String))


def report(
    selection: Selection,
    provenance: dict[str, Any],
    precision: _Precision | None,
    agreement: float | None,
) -> dict[str, Any]:
    """What the user sees of a selection, as plain numbers."""
    names = provenance.get("class_names") or [str(number) for number in range(len(selection.before))]

    # The report becomes JSON, so NumPy's numbers become Python's.
    classes = []
    for number, name in enumerate(names):
        before = int(selection.before[number])
        lowest = float(selection.lowest[number])
        row: dict[str, Any] = {
            "class": name,
            "wanted": selection.k,
            "before": before,
            "after": int(selection.after[number]),
            "missing": selection.k - before,
            "lowest_score": lowest if before else None,
            "lowest_probability": _probability(lowest) if before else None,
        }
        if precision is not None:
            known = int(precision.known[number])
            row["precision"] = int(precision.right[number]) / known if known else None
        classes.append(row)
    by_classes = selection.images_by_classes
    found: dict[str, Any] = {
        "num_pairs": selection.num_pairs,
        "num_images": sum(by_classes.values()),
        "num_short_classes": len(selection.short_classes),
        "num_missing": int(sum(row["missing"] for row in classes)),
        "images_by_classes": {str(number): images for number, images in by_classes.items()},
        "agreement_of_orders": agreement,
        "classes": classes,
    }
    if precision is not None:
        known, right = int(precision.known.sum()), int(precision.right.sum())
        found |= {"num_pairs_of_known_truth": known, "precision": right / known if known else None}
        found["truth"] = precision.made_of
    return found


def _probability(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
